"""The official SDKs played from cassettes, with the cassette as the meter of what would be paid.

Record anew: `pytest tests/providers/test_cassettes.py --record-mode=rewrite` (with OPENAI_API_KEY and
ANTHROPIC_API_KEY from the real APIs, else from the fake provider).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agentflow_anthropic import Anthropic
from agentflow_openai import OpenAIChat, OpenAIResponses
from pydantic import BaseModel

from agentflow.models.answers import read_answer
from agentflow.models.output import output_spec
from agentflow.providers import Message, Model, ModelRequest, ToolCall, ToolResult, ToolSpec
from agentflow.testing.cassettes import meter
from tests.providers.conftest import CASSETTES

pytestmark = [pytest.mark.vcr, pytest.mark.block_network(allowed_hosts=["127.0.0.1"])]

WEATHER = ToolSpec(
    name="weather",
    description="The weather of a city.",
    schema={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


class Capital(BaseModel):
    city: str
    country: str


def openai() -> Model:
    return OpenAIResponses("gpt-5-mini")


def openai_chat() -> Model:
    # Said outright, so that the body is the same at the server where it is recorded.
    return OpenAIChat("gpt-4o-mini", json_schema=True)


def anthropic() -> Model:
    return Anthropic("claude-sonnet-4-5")


each_api = pytest.mark.parametrize("make", [openai, openai_chat, anthropic])


def asking(*messages: Any, **more: Any) -> ModelRequest:
    return ModelRequest(model="any:model", messages=list(messages), **more)


@each_api
async def test_a_tool_is_called_and_its_result_answered(
    make: Callable[[], Model], apis: Callable[..., None], vcr: Any
) -> None:
    apis(ToolCall(name="weather", args={"city": "Paris"}), "It is sunny in Paris.")
    model = make()

    question = "What is the weather in Paris? Use the tool."
    first = model.parse((await model.request(asking(question, tools=(WEATHER,)))).raw)
    (call,) = first.tool_calls
    result = Message(role="tool", parts=[ToolResult(call_id=call.id, content="sunny, 21 degrees")])
    second = model.parse(
        (await model.request(asking(question, *first.messages, result, tools=(WEATHER,)))).raw
    )

    assert (call.name, call.args) == ("weather", {"city": "Paris"})
    assert "sunny" in second.text
    assert second.usage.input_tokens > 0
    meter(vcr).check()
    assert meter(vcr).recorded == 2


@each_api
async def test_a_structured_output_is_streamed(
    make: Callable[[], Model], apis: Callable[..., None], vcr: Any
) -> None:
    apis({"city": "Paris", "country": "France"})
    model = make()
    spec = output_spec(Capital, capabilities=model.capabilities)

    *deltas, answer = [event async for event in model.stream(asking("The capital of France?", output=spec))]

    response = read_answer(model, answer, spec=spec, output=Capital)  # type: ignore[arg-type]
    assert response.output == Capital(city="Paris", country="France")
    assert "".join(delta.text for delta in deltas) == response.text  # type: ignore[union-attr]
    meter(vcr).check()


@pytest.mark.default_cassette("asked_once")
async def test_asking_twice_for_one_answer_is_fatal_and_not_retried(
    apis: Callable[..., None], vcr: Any
) -> None:
    apis("Hello")
    model = anthropic()
    request = asking("Say hello.")
    await model.request(request)
    if vcr.dirty:
        pytest.skip("recording: the second answer must not be on the tape")

    with pytest.raises(Exception, match=r"Connection error|can.t|Can.t") as raised:
        await model.request(request)

    failure = model.classify(raised.value)
    assert (failure.billed, failure.retriable) == ("no", False)
    assert "cassette" in str(failure.error).lower()
    meter(vcr).check()


@pytest.mark.default_cassette("asked_once")
async def test_an_answer_nobody_asked_for_is_found_by_the_meter(vcr: Any) -> None:
    with pytest.raises(AssertionError, match="0 of 1"):
        meter(vcr).check()


def test_no_cassette_holds_a_secret_and_each_says_where_it_came_from() -> None:
    cassettes = sorted(Path(CASSETTES).glob("*.yaml"))
    assert len(cassettes) == 7
    for cassette in cassettes:
        text = cassette.read_text(encoding="utf-8")
        assert text.startswith("# Answers of ")
        for secret in ("sk-", "authorization", "x-api-key", "127.0.0.1", "user-agent"):
            assert secret not in text.lower(), f"{cassette.name} holds {secret!r}"
        assert "https://api.openai.com/" in text or "https://api.anthropic.com/" in text
