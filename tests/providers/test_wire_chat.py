"""Chat completions as OpenAI and gateways send them, over real HTTP and the official SDK: read right, and sent back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from agentflow_openai import OpenAIChat

from agentflow.errors import ContextTooLong, ProviderError, RateLimited
from agentflow.models.clients import held_clients
from agentflow.providers import (
    Message,
    ModelRequest,
    ModelResponse,
    ReasoningDelta,
    TextDelta,
    ToolArgsDelta,
    ToolResult,
    Usage,
)
from tests.providers.raw_server import (
    COMMENT,
    FRAMINGS,
    Framing,
    Json,
    RawServer,
    body,
    exact,
    pieces,
    raw_server,
)

USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 300,
    "total_tokens": 400,
    "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 256, "accepted_prediction_tokens": 0},
}


def completion(message: Json, finish_reason: str | None, **more: Any) -> Json:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason, **more}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1741476542,
        "model": "gpt-5-mini-2025-08-07",
        "choices": [choice],
        "usage": USAGE,
        "service_tier": "default",
        "system_fingerprint": "fp_1",
    }


def call(id: str, arguments: str, **more: Any) -> Json:
    return {"id": id, "type": "function", "function": {"name": "look", "arguments": arguments}, **more}


SEALED = {"extra_content": {"google": {"thought_signature": "CpwBAdHtim9" * 9}}}
DETAILS = [{"type": "reasoning.encrypted", "data": "gAAAAAB", "index": 0}]
LOGPROBS = {
    "content": [{"token": "A", "logprob": -0.5, "bytes": [65], "top_logprobs": []}] * 3,
    "refusal": None,
}
CASES: dict[str, Json] = {
    "calls": completion(
        {
            "content": None,
            "tool_calls": [call("call_1", '{"city":"Zürich","near":1.0}', **SEALED), call("call_2", "{}")],
        },
        "tool_calls",
    ),
    "text": completion({"content": "It is so. 🌍\u2028思考"}, "stop", logprobs=LOGPROBS),
    "text and a call": completion({"content": "One moment.", "tool_calls": [call("call_1", "{}")]}, "stop"),
    "refused": completion({"content": None, "refusal": "I will not."}, "stop"),
    "cut": completion({"content": "And so"}, "length"),
    "cut in a call": completion({"content": None, "tool_calls": [call("call_1", '{"city":"Z')]}, "length"),
    "filtered": completion(
        {"content": "And"}, "content_filter", content_filter_results={"hate": {"filtered": True}}
    ),
    "nothing": completion({"content": ""}, "stop"),
    "null": completion({"content": None}, "stop"),
    "a reason to come": completion({"content": "A", "mood": {"of": "the day"}}, "tired", x_groq={"id": "1"}),
    "a gateway's thoughts": completion(
        {"content": "A", "reasoning": "Hm. 思考", "reasoning_details": DETAILS}, "stop"
    ),
    "a custom tool": completion(
        {
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "custom", "custom": {"name": "look", "input": "SELECT"}}],
        },
        "tool_calls",
    ),
}


def chunks_of(told: Json) -> Iterator[Json]:
    """The stream in which the API would tell this completion."""
    (choice,) = told["choices"]
    head = {key: told[key] for key in told if key not in ("choices", "usage")}
    head |= {"object": "chat.completion.chunk", "usage": None, "obfuscation": "x1"}
    message = choice["message"]
    yield {**head, "choices": [], "prompt_filter_results": []}  # Azure's first one
    yield {
        **head,
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}],
    }
    deltas: list[Json] = []
    for key, value in message.items():
        if key == "tool_calls":
            for index, made in enumerate(value):
                kind = made["type"]
                written = "arguments" if kind == "function" else "input"
                deltas.append({"tool_calls": [{**made, "index": index, kind: {**made[kind], written: ""}}]})
                deltas += [
                    {"tool_calls": [{"index": index, kind: {written: piece}}]}
                    for piece in pieces(made[kind][written], 2)
                ]
        elif isinstance(value, str) and key != "role":
            deltas += [{key: piece} for piece in pieces(value)] or [{key: ""}]
        elif key != "role" and value is not None:
            deltas.append({key: value})
    for delta in deltas:
        yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    more = {key: value for key, value in choice.items() if key not in ("message", "finish_reason")}
    for part in (more.get("logprobs") or {}).get("content") or []:
        told_now = {"content": [part], "refusal": None}
        yield {
            **head,
            "choices": [{"index": 0, "delta": {}, "logprobs": told_now, "finish_reason": None}],
        }
    more.pop("logprobs", None)
    yield {**head, "choices": [{**more, "delta": {}, "finish_reason": choice["finish_reason"]}]}
    yield {**head, "choices": [], "usage": told["usage"]}


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with raw_server() as served, held_clients():
        yield served


def model_at(server: RawServer) -> OpenAIChat:
    return OpenAIChat("gpt-5-mini", base_url=f"{server.url}/v1", api_key="none")


def asking(*messages: Any, **more: Any) -> ModelRequest:
    return ModelRequest(model="openai-chat:gpt-5-mini", messages=["Hello", *messages], **more)


async def streamed(model: OpenAIChat) -> tuple[list[Any], Json]:
    *deltas, answer = [event async for event in model.stream(asking())]
    return deltas, answer.raw


def stored(response: ModelResponse) -> list[Message]:
    """What the response said, as it comes back from a database, and a result for each of its calls."""
    kept = [Message.model_validate_json(message.model_dump_json()) for message in response.messages]
    results = [ToolResult(call_id=call.id, content="ok") for call in response.tool_calls]
    return [*kept, Message(role="tool", parts=[*results])] if results else kept


@pytest.mark.parametrize("case", CASES)
async def test_a_streamed_completion_is_the_completion(case: str, server: RawServer) -> None:
    told = CASES[case]
    server.add(*[way.stream([*chunks_of(told)], named=False, done=True) for way in FRAMINGS.values()])

    for framing in FRAMINGS:
        deltas, raw = await streamed(model_at(server))
        assert raw.pop("prompt_filter_results") == [], framing
        assert exact(raw) == exact(told), framing
    response = model_at(server).parse(raw)
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == response.text
    message = told["choices"][0]["message"]
    thoughts = message.get("reasoning") or ""
    assert "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)) == thoughts
    calls: dict[int, str] = {}
    for delta in deltas:
        if isinstance(delta, ToolArgsDelta):
            calls[delta.index] = calls.get(delta.index, "") + delta.text
    made = message.get("tool_calls") or []
    assert [calls[index] for index in sorted(calls)] == [
        call["function"]["arguments"] if "function" in call else call["custom"]["input"] for call in made
    ]


async def test_comments_between_the_chunks_are_no_chunk(server: RawServer) -> None:
    told = CASES["calls"]
    server.add(Framing("\r\n", 5, [COMMENT]).stream([*chunks_of(told)], named=False, done=False))

    _, raw = await streamed(model_at(server))

    assert exact(raw["choices"]) == exact(told["choices"])


async def test_a_gateway_may_name_a_call_in_every_piece_of_it(server: RawServer) -> None:
    told = completion({"content": None, "tool_calls": [call("c1", '{"near": 1}')]}, "tool_calls")
    chunks = [*chunks_of(told)]
    for chunk in chunks:
        for choice in chunk["choices"]:
            for piece in choice["delta"].get("tool_calls", []):
                piece |= {"id": "c1", "function": {**piece["function"], "name": "look"}}
    server.add(FRAMINGS["whole"].stream(chunks, named=False, done=True))

    _, raw = await streamed(model_at(server))

    assert exact(raw["choices"][0]["message"]["tool_calls"]) == exact([call("c1", '{"near": 1}')])


async def test_other_choices_than_the_first_are_left_alone(server: RawServer) -> None:
    told = CASES["text"]
    others = [
        {**chunk, "choices": [{**choice, "index": 1, "finish_reason": "stop"} for choice in chunk["choices"]]}
        for chunk in chunks_of(CASES["cut"])
    ]
    mixed = [chunk for pair in zip(others, chunks_of(told), strict=False) for chunk in pair]
    rest = [*chunks_of(told)][len(others) :]
    server.add(FRAMINGS["whole"].stream([*mixed, *rest], named=False, done=True))

    assert exact((await streamed(model_at(server)))[1]["choices"]) == exact(told["choices"])


@pytest.mark.parametrize(
    ("case", "finish_reason", "text", "args"),
    [
        ("calls", "tool_calls", "", [{"city": "Zürich", "near": 1.0}, {}]),
        ("text", "stop", "It is so. 🌍\u2028思考", []),
        ("text and a call", "tool_calls", "One moment.", [{}]),
        ("refused", "refusal", "I will not.", []),
        ("cut", "length", "And so", []),
        ("cut in a call", "length", "", [{}]),
        ("filtered", "content_filter", "And", []),
        ("nothing", "stop", "", []),
        ("null", "stop", "", []),
        ("a reason to come", "stop", "A", []),
        ("a gateway's thoughts", "stop", "A", []),
        ("a custom tool", "tool_calls", "", [{}]),
    ],
)
async def test_a_completion_is_read_and_goes_back(
    case: str, finish_reason: str, text: str, args: list[Json], server: RawServer
) -> None:
    told = CASES[case]
    model = model_at(server)
    server.add(body(told), body(CASES["nothing"]))

    answer = await model.request(asking())
    response = model.parse(answer.raw)
    await model.request(asking(*stored(response), "And?"))

    assert exact(answer.raw) == exact(told)
    assert (response.finish_reason, response.text) == (finish_reason, text)
    assert [call.args for call in response.tool_calls] == args
    assert {call.name for call in response.tool_calls} <= {"look"}
    assert response.usage == Usage(
        input_tokens=100, cached_tokens=64, output_tokens=300, reasoning_tokens=256
    )
    message = told["choices"][0]["message"]
    said, *results, _ = server.sent[1]["messages"][1:]
    for key in ("tool_calls", "refusal", "reasoning_details"):
        assert exact(said.get(key)) == exact(message.get(key))
    assert said["content"] == (message["content"] if message["content"] or "tool_calls" in message else "")
    assert [result["tool_call_id"] for result in results] == [
        call["id"] for call in message.get("tool_calls", [])
    ]


@pytest.mark.parametrize(
    ("told", "kind", "retriable"),
    [
        ({"message": "Upstream is down", "code": 502}, ProviderError, True),
        ({"message": "Slow down", "type": "rate_limit_error", "code": None}, RateLimited, True),
        (
            {"message": "This model's maximum context length is 5", "type": "invalid_request_error"},
            ContextTooLong,
            False,
        ),
        ({"message": "No such tool", "type": "invalid_request_error"}, ProviderError, False),
        ("it broke", ProviderError, True),
    ],
)
@pytest.mark.parametrize("way", ["request", "stream", "a stream nobody asked for"])
async def test_an_error_in_a_200_is_in_doubt_and_says_what_it_is(
    told: Any, kind: type[ProviderError], retriable: bool, way: str, server: RawServer
) -> None:
    model = model_at(server)
    *begun, _, _ = chunks_of(CASES["text"])
    error = {"error": told}
    server.add(
        body(error) if way == "request" else FRAMINGS["whole"].stream([*begun, error], named=False, done=True)
    )

    with pytest.raises(Exception) as raised:
        await (streamed(model) if way == "stream" else model.request(asking()))
    failure = model.classify(raised.value)

    assert type(failure.error) is kind
    assert (failure.billed, failure.retriable) == ("possible", retriable)
    if isinstance(told, dict):
        assert told["message"] in str(failure.error)


@pytest.mark.parametrize("choices", [[], None])
async def test_an_answer_without_a_choice_is_no_answer(choices: Any, server: RawServer) -> None:
    server.add(body({**CASES["text"], "choices": choices}))

    with pytest.raises(ProviderError, match="without a choice") as raised:
        await model_at(server).request(asking())

    assert (raised.value.billed, raised.value.retriable) == ("possible", True)


async def test_a_stream_that_ends_too_soon_is_no_answer(server: RawServer) -> None:
    *begun, _, _ = chunks_of(CASES["text"])
    server.add(FRAMINGS["whole"].stream(begun, named=False, done=True))

    with pytest.raises(ProviderError, match="ended before") as raised:
        await streamed(model_at(server))

    assert (raised.value.billed, raised.value.retriable) == ("possible", True)
