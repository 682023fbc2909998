"""The conformance suite for providers: what any `Model` must hold, checked against the author's own server
or stub.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from agentflow.errors import ProviderError
from agentflow.models.answers import read_answer
from agentflow.models.messages import Message, ToolCall, ToolResult
from agentflow.models.output import output_spec
from agentflow.models.protocol import Model
from agentflow.models.response import ModelRequest, ModelResponse, RawAnswer, TextDelta, ToolSpec

__all__ = ["ProviderUnderTest", "provider_contract"]

TOOL = ToolSpec(
    name="lookup",
    description="Find something by its key.",
    schema={"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]},
)


@dataclass(frozen=True, kw_only=True)
class ProviderUnderTest:
    """A model, and how to make its API behave.

    `answers(*replies)`: the API's next answers, of the kinds of `ScriptedModel`. `fails(status)`: its next
    request is refused with this HTTP status. `requests()`: how many requests the API has seen.
    `fake_provider()` offers all three to a provider of one of its wire formats.
    """

    model: Model
    answers: Callable[..., None]
    fails: Callable[[int], None]
    requests: Callable[[], int]


MakeProvider = Callable[[], AbstractAsyncContextManager[ProviderUnderTest]]
Check = Callable[[ProviderUnderTest], Awaitable[None]]


def provider_contract(make: MakeProvider) -> dict[str, Callable[[], Awaitable[None]]]:
    """The checks by name, each a coroutine function without arguments; it raises `AssertionError`.

    CHECKS = provider_contract(my_provider)     # an async context manager that yields a ProviderUnderTest

    @pytest.mark.parametrize("name", CHECKS)
    async def test_my_provider(name):
        await CHECKS[name]()
    """

    def bound(check: Check) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            async with make() as provider:
                await check(provider)

        return run

    return {check.__name__: bound(check) for check in _CHECKS}


async def an_answer_is_read_and_counted(provider: ProviderUnderTest) -> None:
    provider.answers("Hello there")
    answer = await provider.model.request(_asking("Hi"))
    response = provider.model.parse(answer.raw)
    _expect(response.text == "Hello there", f"the text is {response.text!r}")
    _expect(response.finish_reason == "stop", f"the finish reason is {response.finish_reason!r}")
    _expect(response.usage.input_tokens > 0, "input tokens are not counted")
    _expect(response.usage.output_tokens > 0, "output tokens are not counted")
    _expect(response.usage.cached_tokens <= response.usage.input_tokens, "input must include cached tokens")
    _expect(
        [message.role for message in response.messages] == ["assistant"], "one assistant message is added"
    )
    _expect(response.messages[0].text == response.text, "the message says something else than the text")


async def a_raw_answer_is_json_and_parse_is_pure(provider: ProviderUnderTest) -> None:
    provider.answers("Hello there")
    answer = await provider.model.request(_asking("Hi"))
    stored = RawAnswer.model_validate_json(answer.model_dump_json())
    before = json.dumps(stored.raw)
    _expect(stored == answer, "the raw answer does not come back equal from JSON")
    _expect(
        provider.model.parse(stored.raw) == provider.model.parse(answer.raw), "parse is not a function of raw"
    )
    _expect(json.dumps(stored.raw) == before, "parse changes the raw answer")
    _expect(
        (answer.provider, answer.model) == (provider.model.provider, provider.model.model), "it names another"
    )


async def a_stream_ends_with_the_answer(provider: ProviderUnderTest) -> None:
    provider.answers("Hello there, all of you")
    *deltas, answer = [event async for event in provider.model.stream(_asking("Hi"))]
    _expect(isinstance(answer, RawAnswer), "the last item of a stream is no RawAnswer")
    _expect(not any(isinstance(delta, RawAnswer) for delta in deltas), "a RawAnswer comes before the end")
    assert isinstance(answer, RawAnswer)
    text = provider.model.parse(answer.raw).text
    _expect(text == "Hello there, all of you", f"the streamed answer says {text!r}")
    told = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    _expect(told in ("", text), f"the deltas say {told!r}, the answer {text!r}")


async def tool_calls_pair_up_with_their_results(provider: ProviderUnderTest) -> None:
    if not provider.model.capabilities.tools:
        return
    provider.answers(
        [ToolCall(name="lookup", args={"key": "a"}), ToolCall(name="lookup", args={"key": "b"})], "Both"
    )
    first = await _ask(provider.model, _asking("Look up a and b"))
    _expect([call.index for call in first.tool_calls] == [0, 1], "calls are not numbered from 0")
    _expect([call.args for call in first.tool_calls] == [{"key": "a"}, {"key": "b"}], "arguments differ")
    _expect(first.finish_reason == "tool_calls", f"the finish reason is {first.finish_reason!r}")
    kept = [Message.model_validate_json(message.model_dump_json()) for message in first.messages]
    results = [ToolResult(call_id=call.id, content={"found": call.index}) for call in first.tool_calls]
    conversation = ["Look up a and b", *kept, Message(role="tool", parts=list(results))]
    second = await _ask(provider.model, _asking(*conversation))
    _expect(second.text == "Both", "the conversation does not go on after tool results")


async def an_output_is_filled(provider: ProviderUnderTest) -> None:
    spec = output_spec(dict[str, int], capabilities=provider.model.capabilities)
    provider.answers({"a": 1} if provider.model.capabilities.tools else '{"a": 1}')
    answer = await provider.model.request(_asking("Count", output=spec, tools=()))
    response = read_answer(provider.model, answer, spec=spec, output=dict[str, int])
    _expect(response.output == {"a": 1}, f"the output is {response.output!r}")


async def a_refused_request_is_not_billed(provider: ProviderUnderTest) -> None:
    for status, retriable in ((429, True), (400, False), (401, False)):
        provider.fails(status)
        error = await _failure(provider, _asking("Hi"))
        _expect(error.billed == "no", f"status {status} is billed {error.billed!r}")
        _expect(error.retriable is retriable, f"status {status} is retriable: {error.retriable}")
        _expect(error.status == status, f"status {status} is told as {error.status}")


async def a_server_error_is_in_doubt_and_asked_once(provider: ProviderUnderTest) -> None:
    before = provider.requests()
    provider.fails(500)
    error = await _failure(provider, _asking("Hi"))
    _expect(
        (error.billed, error.retriable) == ("possible", True), "a status 500 is to be in doubt and retriable"
    )
    _expect(provider.requests() - before == 1, "the request was repeated: that is the step's to decide")


_CHECKS: list[Check] = [
    an_answer_is_read_and_counted,
    a_raw_answer_is_json_and_parse_is_pure,
    a_stream_ends_with_the_answer,
    tool_calls_pair_up_with_their_results,
    an_output_is_filled,
    a_refused_request_is_not_billed,
    a_server_error_is_in_doubt_and_asked_once,
]


def _asking(*messages: Any, **more: Any) -> ModelRequest:
    return ModelRequest(**{"model": "any:model", "messages": list(messages), "tools": (TOOL,), **more})


async def _ask(model: Model, request: ModelRequest) -> ModelResponse:
    return model.parse((await model.request(request)).raw)


async def _failure(provider: ProviderUnderTest, request: ModelRequest) -> ProviderError:
    try:
        await provider.model.request(request)
    except Exception as error:
        return provider.model.classify(error).error
    raise AssertionError("a refused request raises nothing")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
