"""Each provider against a real server: answers, structured outputs, and every way to fail."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from agentflow_anthropic import Anthropic
from agentflow_openai import OpenAIChat, OpenAIResponses
from pydantic import BaseModel

from agentflow.errors import (
    ConfigurationError,
    ContextTooLong,
    InvalidInput,
    ProviderError,
    RateLimited,
    Refused,
)
from agentflow.models.answers import priced, read_answer
from agentflow.models.output import ask_again, output_spec
from agentflow.providers import (
    Failure,
    Message,
    Model,
    ModelRequest,
    ModelResponse,
    ModelSettings,
    ReasoningPart,
    TextPart,
    ToolCall,
    ToolResult,
    ToolSpec,
    resolve_model,
)
from agentflow.testing.provider_server import BrokenStream, Cut, FakeProvider, HttpError, Stall

MODELS = [
    "openai:gpt-5-mini",
    "openai-chat:gpt-4o",
    "anthropic:claude-sonnet-4-5",
    "anthropic:claude-sonnet-4-0",
]

ADD = ToolSpec(
    name="add",
    description="Add two numbers.",
    schema={
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
)


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, server: FakeProvider) -> Model:
    return resolve_model(request.param)


@pytest.fixture(params=MODELS[:3])
def api(request: pytest.FixtureRequest, server: FakeProvider) -> Model:
    """One model of each API."""
    return resolve_model(request.param)


@pytest.fixture(params=["request", "stream"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def ask(model: Model, *messages: Any, way: str = "request", **more: Any) -> Any:
    request = ModelRequest(model="any:model", messages=list(messages), **more)
    if way == "request":
        return await model.request(request)
    return [event async for event in model.stream(request)][-1]


async def failure_of(model: Model, *messages: Any, way: str = "request", **more: Any) -> Failure:
    try:
        await ask(model, *messages, way=way, **more)
    except Exception as error:
        return model.classify(error)
    raise AssertionError("the call was expected to fail")


async def test_request_and_stream_bring_the_same_answer(model: Model, server: FakeProvider) -> None:
    server.add(*[["Let me see.", ToolCall(name="add", args={"a": 1, "b": 2})]] * 2)

    responses = [
        model.parse((await ask(model, "1 + 2?", tools=(ADD,), way=way)).raw) for way in ("request", "stream")
    ]

    for response in responses:
        assert response.text == "Let me see."
        assert [(call.index, call.name, call.args) for call in response.tool_calls] == [
            (0, "add", {"a": 1, "b": 2})
        ]
        assert response.finish_reason == "tool_calls"
    assert responses[0].usage == responses[1].usage
    assert responses[0].usage.input_tokens > 0
    assert server.generations == 2


async def test_a_conversation_with_thinking_and_tools_goes_on(model: Model, server: FakeProvider) -> None:
    # The server refuses thoughts that come back without their seal, and calls without a result.
    thought = Message(
        role="assistant",
        parts=[
            ReasoningPart(text="I should add them up."),
            TextPart(text="One moment."),
            ToolCall(index=0, id="call_a", name="add", args={"a": 1, "b": 2}),
            ToolCall(index=1, id="call_b", name="add", args={"a": 3, "b": 4}),
        ],
    )
    server.add(ModelResponse(messages=[thought], finish_reason="tool_calls"), "3 and 7")

    first = model.parse((await ask(model, "1 + 2? 3 + 4?", tools=(ADD,))).raw)
    kept = [Message.model_validate_json(message.model_dump_json()) for message in first.messages]
    results = [ToolResult(call_id="call_a", content=3), ToolResult(call_id="call_b", content={"sum": 7})]
    second = await ask(model, "1 + 2? 3 + 4?", *kept, Message(role="tool", parts=results), tools=(ADD,))

    assert [call.id for call in first.tool_calls] == ["call_a", "call_b"]
    assert model.parse(second.raw).text == "3 and 7"


@pytest.mark.parametrize("other", MODELS)
async def test_another_providers_conversation_is_told_in_its_own_words(
    model: Model, other: str, server: FakeProvider
) -> None:
    call = ToolCall(id="call_a", name="add", args={"a": 1, "b": 2})
    thought = Message(role="assistant", parts=[ReasoningPart(text="Hm."), TextPart(text="So:"), call])
    server.add(ModelResponse(messages=[thought]), "3")

    first = resolve_model(other).parse((await ask(resolve_model(other), "1 + 2?", tools=(ADD,))).raw)
    result = Message(role="tool", parts=[ToolResult(call_id="call_a", content="3")])
    answer = await ask(model, "1 + 2?", *first.messages, result, tools=(ADD,))

    assert model.parse(answer.raw).text == "3"


async def test_a_message_that_was_changed_is_sent_as_it_is_now(model: Model, server: FakeProvider) -> None:
    server.add("The key is 1234.", "ok")
    (said,) = model.parse((await ask(model, "Hi")).raw).messages
    redacted = said.model_copy(update={"parts": [TextPart(text="The key is [redacted].")]})

    await ask(model, "Hi", redacted, "And now?")

    assert "1234" not in str(server.requests[-1].body)
    assert "[redacted]" in str(server.requests[-1].body)


@pytest.mark.parametrize("output", [Person, list[Person], dict[str, int], Person | int])
async def test_an_output_of_any_type_comes_back_as_that_type(
    model: Model, way: str, output: Any, server: FakeProvider
) -> None:
    values = {str(Person): {"name": "Ana", "age": 41}, str(dict[str, int]): {"a": 1}}
    value = values.get(str(output), {"value": [{"name": "Ana", "age": 41}] if "list" in str(output) else 7})
    server.add(value)
    spec = output_spec(output, capabilities=model.capabilities)

    answer = await ask(model, "Who?", way=way, output=spec)
    response = read_answer(model, answer, spec=spec, output=output)

    expected = {str(Person): Person(name="Ana", age=41), str(dict[str, int]): {"a": 1}}
    assert response.output == expected.get(
        str(output), [Person(name="Ana", age=41)] if "list" in str(output) else 7
    )
    assert (response.finish_reason, response.tool_calls) == ("stop", [])


async def test_an_output_that_does_not_validate_can_be_asked_for_again(
    model: Model, server: FakeProvider
) -> None:
    from agentflow.errors import OutputInvalid

    server.add({"name": "Ana", "age": "unknown"}, {"name": "Ana", "age": 41})
    spec = output_spec(Person, capabilities=model.capabilities)
    answer = await ask(model, "Who?", output=spec)
    with pytest.raises(OutputInvalid, match="age") as raised:
        read_answer(model, answer, spec=spec, output=Person)

    again = await ask(model, "Who?", *ask_again(raised.value), output=spec)
    final = read_answer(model, again, spec=spec, output=Person)

    assert final.output == Person(name="Ana", age=41)
    # And a thread goes on after it, whichever way the output was given.
    server.add("You are welcome.")
    thread = ["Who?", *ask_again(raised.value), *final.messages, "Thanks!"]
    assert model.parse((await ask(model, *thread, output=spec)).raw).text == "You are welcome."


async def test_the_cost_of_an_answer_is_stored_with_it(model: Model, server: FakeProvider) -> None:
    server.add("Hello")

    answer, _ = priced(model, await ask(model, "Hi"))

    assert answer.cost is not None
    assert answer.cost > 0
    assert answer.priced_by is not None
    assert answer.priced_by.startswith("genai-prices ")


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "billed", "retriable", "generated"),
    [
        (HttpError(429, retry_after=2), RateLimited, "no", True, 0),
        (HttpError(429, code="insufficient_quota"), RateLimited, "no", False, 0),
        (HttpError(400, "prompt is too long: 3 tokens > 2 maximum"), ContextTooLong, "no", False, 0),
        (HttpError(400, "no", code="content_policy_violation"), Refused, "no", False, 0),
        (HttpError(413), ContextTooLong, "no", False, 0),
        (HttpError(401), ProviderError, "no", False, 0),
        (HttpError(404), ProviderError, "no", False, 0),
        (HttpError(409), ProviderError, "no", True, 0),
        (HttpError(408), ProviderError, "possible", True, 0),
        (HttpError(500), ProviderError, "possible", True, 0),
        (HttpError(529), ProviderError, "possible", True, 0),
        (HttpError(529, should_retry=True), ProviderError, "no", True, 0),
        (HttpError(500, should_retry=False), ProviderError, "possible", False, 0),
        (Cut(after=0), ProviderError, "possible", True, 1),
        (Cut(after=0.5), ProviderError, "possible", True, 1),
        (BrokenStream("a rather long text that is broken off"), ProviderError, "possible", True, 1),
    ],
)
async def test_a_failure_says_what_it_means_for_the_bill(
    api: Model,
    way: str,
    fault: Any,
    kind: type[ProviderError],
    billed: str,
    retriable: bool,
    generated: int,
    server: FakeProvider,
) -> None:
    server.add(fault)

    failure = await failure_of(api, "Hi", way=way)

    assert type(failure.error) is kind
    assert (failure.billed, failure.retriable) == (billed, retriable)
    assert failure.retry_after == getattr(fault, "retry_after", None)
    assert (failure.error.provider, failure.error.model) == (api.provider, api.model)
    # Asked once: no SDK repeats a request behind our back.
    assert (len(server.requests), server.generations) == (1, generated)


async def test_a_server_that_cannot_be_reached_bills_nothing(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:1")

    failure = await failure_of(model, "Hi")

    assert (failure.billed, failure.retriable) == ("no", True)
    assert "could not be reached" in str(failure.error)


@pytest.mark.parametrize("kind", ["openai", "openai-chat", "anthropic"])
async def test_a_read_timeout_is_in_doubt(kind: str, server: FakeProvider) -> None:
    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI

    openai = AsyncOpenAI(timeout=0.2)
    anthropic = AsyncAnthropic(timeout=0.2)
    models: dict[str, Model] = {
        "openai": OpenAIResponses("gpt-5-mini", client=openai),
        "openai-chat": OpenAIChat("gpt-4o", client=openai),
        "anthropic": Anthropic("claude-sonnet-4-5", client=anthropic),
    }
    server.add(Stall())
    async with openai, anthropic:
        failure = await failure_of(models[kind], "Hi")

    assert (failure.billed, failure.retriable) == ("possible", True)
    assert server.generations == 1
    assert len(server.requests) == 1


async def test_a_missing_key_is_named_and_nothing_is_asked(
    model: Model, server: FakeProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    variable = "ANTHROPIC_API_KEY" if model.provider == "anthropic" else "OPENAI_API_KEY"
    monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))

    with pytest.raises(ConfigurationError, match=variable) as raised:
        await ask(model, "Hi")

    failure = model.classify(raised.value)
    assert (failure.billed, failure.retriable, server.requests) == ("no", False, [])


async def test_an_unanswered_call_is_refused_before_the_request(model: Model, server: FakeProvider) -> None:
    call = Message(role="assistant", parts=[ToolCall(id="c1", name="add", args={})])

    with pytest.raises(InvalidInput, match="'c1'"):
        await ask(model, "Hi", call, "Well?")

    assert server.requests == []


async def test_what_is_asked_at_once_takes_no_latency(model: Model, server: FakeProvider) -> None:
    with pytest.raises(ConfigurationError, match="batch"):
        await ask(model, "Hi", settings=ModelSettings(latency="batch"))

    assert server.requests == []


# --- what only one API can do ---------------------------------------------------------------------


async def test_a_background_job_is_found_again_by_its_id(server: FakeProvider) -> None:
    server.add("Found")
    before, after = OpenAIResponses("gpt-5-mini"), OpenAIResponses("gpt-5-mini")

    job = await before.submit(
        ModelRequest(model="openai:gpt-5-mini", messages=["Hi"]), metadata={"step": "s1"}, stream=True
    )
    assert await after.poll(job.provider_id) is None
    answer = await after.poll(job.provider_id)
    *_, streamed = [event async for event in after.resume(job.provider_id)]

    assert answer is not None
    assert answer == streamed
    assert after.parse(answer.raw).text == "Found"
    assert server.generations == 1


async def test_a_stored_completion_is_found_again_by_its_metadata(server: FakeProvider) -> None:
    server.add(Cut("Found", after=0))
    model = OpenAIChat("gpt-4o")
    request = ModelRequest(model="openai-chat:gpt-4o", messages=["Hi"])

    with pytest.raises(Exception, match="Connection error"):
        await model.request_stored(request, metadata={"step": "s1", "attempt": "1"})
    answer = await model.find({"step": "s1", "attempt": "1"})

    assert answer is not None
    assert model.parse(answer.raw).text == "Found"
    assert await model.find({"step": "s1", "attempt": "2"}) is None
    assert server.generations == 1


def test_no_sdk_is_imported_on_the_event_loops_thread() -> None:
    # An SDK takes seconds to import, and a loop that stands still for so long loses its leases.
    code = """
import asyncio, os, sys, threading
from agentflow.providers import ModelRequest, resolve_model
from agentflow.testing.provider_server import fake_provider

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("openai", "anthropic") and threading.current_thread() is threading.main_thread():
            print("imported on the loop:", name)

async def main():
    async with fake_provider(["a", "b", {"name": "c"}]) as provider:
        os.environ.update(provider.environment())
        sys.meta_path.insert(0, Watch())
        for name in ("openai:gpt-5", "openai-chat:gpt-4o", "anthropic:claude-sonnet-4-5"):
            await resolve_model(name).request(ModelRequest(model=name, messages="Hi"))

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
