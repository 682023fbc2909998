"""What a model writes that no database keeps and no API takes back, as NUL or half a surrogate pair: the run goes on,
its thread stays usable, and the model is told.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

# Imported here: it takes longer than the timeouts of these tests.
import genai_prices  # noqa: F401
import openai.resources.responses  # noqa: F401
import pytest
from agentflow_openai import OpenAIChat

from agentflow import Agent, AgentInput, App, ToolCall, tool
from agentflow.errors import InvalidInput
from agentflow.models.clients import close_clients
from agentflow.providers import Message, ModelRequest
from agentflow.testing import harness
from agentflow.testing.provider_server import FakeProvider, fake_provider
from tests.providers.raw_server import STREAM_TYPE, Raw, RawServer, raw_server

MODELS = ["openai:gpt-5-mini", "openai-chat:gpt-4o", "anthropic:claude-sonnet-4-5"]
UNTAKEN = {
    "NUL": ('{"text": "a\\u0000b"}', "at $.text: it holds a NUL character"),
    "half a pair": ('{"text": "a\\ud83db"}', "at $.text: it holds a lone surrogate"),
    "NaN": ('{"text": "a", "more": NaN}', "at $.more: "),
    "too deep": ('{"text": ' + "[" * 300 + "]" * 300 + "}", "it is nested deeper than 100"),
    "without an end": ('{"text": ' + "[" * 3_000, "The arguments are not a JSON object"),
}


@pytest.fixture
async def provider(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    async with fake_provider() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
        await close_clients()


def writer(model: Any, *, approval: bool = False) -> tuple[App, Agent[str], list[str]]:
    written: list[str] = []

    @tool(approval=approval)
    async def write(text: str) -> str:
        """Write it down."""
        written.append(text)
        return "written"

    app = App("t")
    agent = Agent("writer", model=model, tools=[write])
    app.add(agent)
    return app, agent, written


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("approval", [False, True])
@pytest.mark.parametrize("case", UNTAKEN)
async def test_arguments_that_cannot_be_kept_are_answered_to_the_model(
    provider: FakeProvider, model: str, approval: bool, case: str
) -> None:
    arguments, reason = UNTAKEN[case]
    provider.add(ToolCall(name="write", invalid_args=arguments), "I give up.")
    app, agent, written = writer(model, approval=approval)
    async with harness(app) as h:
        run = await h.start(agent, "Write.")
        await h.idle()
        assert await run.result(5) == "I give up."
        assert (await app.approvals.list()).data == []
    assert provider.generations == 2
    assert written == []
    assert reason in str(provider.requests[1].body)


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    event = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [choice],
    }
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def said(text: str) -> Raw:
    return Raw(chunk({"role": "assistant", "content": text}) + chunk({}, "stop"), headers=STREAM_TYPE)


@pytest.fixture
async def gateway() -> AsyncIterator[RawServer]:
    async with raw_server() as server:
        yield server
        await close_clients()


async def test_a_thread_outlives_an_answer_that_cannot_be_kept(gateway: RawServer) -> None:
    gateway.add(said("Half \ud83d, none \x00, whole \ud83d\ude00."), said("And good-bye."))
    app, agent, _ = writer(OpenAIChat("m", base_url=gateway.url, api_key="none"))
    whole = "Half \ufffd, none \ufffd, whole \U0001f600."
    async with harness(app) as h:
        first = await h.start(agent, AgentInput("Hello.", thread="t"))
        await h.idle()
        assert await first.result(5) == whole
        assert [item.data async for item in first.stream() if item.kind == "text.delta"] == [whole]
        second = await h.start(agent, AgentInput("Good-bye.", thread="t"))
        await h.idle()
        assert await second.result(5) == "And good-bye."
        kept = (await app.runs.steps(first.id)).data[1].output
    assert gateway.sent[1]["messages"][1]["content"] == "Half \ufffd, none \x00, whole \U0001f600."
    assert json.loads(kept["raw_text"])["choices"][0]["message"]["content"].startswith(
        "Half \ud83d, none \x00"
    )


@pytest.mark.parametrize("name", ["wr\x00ite", "wr\ud83dite"])
async def test_a_tool_name_that_cannot_be_kept_does_not_hold_up_the_run(
    gateway: RawServer, name: str
) -> None:
    called = {"index": 0, "id": "c1", "type": "function", "function": {"name": name, "arguments": "{}"}}
    asks = Raw(chunk({"tool_calls": [called]}) + chunk({}, "tool_calls"), headers=STREAM_TYPE)
    gateway.add(asks, said("There is none."))
    app, agent, written = writer(OpenAIChat("m", base_url=gateway.url, api_key="none"))
    async with harness(app) as h:
        run = await h.start(agent, "Write.")
        await h.idle()
        assert await run.result(5) == "There is none."
    assert written == []


async def test_a_prompt_that_cannot_be_sent_is_refused_once_and_says_why() -> None:
    request = ModelRequest(model="acme:oracle", messages=[Message(role="user", parts="Half \ud83d.")])
    with pytest.raises(InvalidInput, match=r"acme:oracle is to be asked holds a lone surrogate.*Half"):
        request.digest()
