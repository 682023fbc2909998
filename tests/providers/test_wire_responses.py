"""Responses as OpenAI's Responses API sends them, over real HTTP and the official SDK: read right, and sent back as
they came.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from agentflow_openai import OpenAIResponses

from agentflow.errors import ProviderError, RateLimited, Refused
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
    KEEPALIVE,
    Framing,
    Json,
    RawServer,
    body,
    exact,
    raw_server,
)
from tests.providers.told_by_responses import CASES, call, events_of, reasoning, response, said, text


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with raw_server() as served, held_clients():
        yield served


def model_at(server: RawServer) -> OpenAIResponses:
    return OpenAIResponses("gpt-5-mini", base_url=f"{server.url}/v1", api_key="none")


def asking(*messages: Any, **more: Any) -> ModelRequest:
    return ModelRequest(model="openai:gpt-5-mini", messages=["Hello", *messages], **more)


async def streamed(model: OpenAIResponses) -> tuple[list[Any], Json]:
    *deltas, answer = [event async for event in model.stream(asking())]
    return deltas, answer.raw


def stored(response: ModelResponse) -> list[Message]:
    """What the response said, as it comes back from a database, and a result for each of its calls."""
    kept = [Message.model_validate_json(message.model_dump_json()) for message in response.messages]
    results = [ToolResult(call_id=call.id, content="ok") for call in response.tool_calls]
    return [*kept, Message(role="tool", parts=[*results])] if results else kept


@pytest.mark.parametrize("case", CASES)
async def test_a_streamed_response_is_the_response(case: str, server: RawServer) -> None:
    told = CASES[case]
    server.add(*[way.stream([*events_of(told)], named=True, done=True) for way in FRAMINGS.values()])

    for framing in FRAMINGS:
        deltas, raw = await streamed(model_at(server))
        assert exact(raw) == exact(told), framing
    response = model_at(server).parse(raw)
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == response.text
    thoughts = [
        part["text"] for item in told["output"] if item["type"] == "reasoning" for part in item["summary"]
    ]
    assert "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)) == "".join(thoughts)
    calls: dict[int, str] = {}
    for delta in deltas:
        if isinstance(delta, ToolArgsDelta):
            calls[delta.index] = calls.get(delta.index, "") + delta.text
    written = [item["arguments"] for item in told["output"] if item["type"] == "function_call"]
    assert [calls[index] for index in sorted(calls)] == written


@pytest.mark.parametrize("noise", [COMMENT, KEEPALIVE], ids=["comments", "keepalives"])
async def test_what_is_strewn_between_the_events_is_no_event(noise: str, server: RawServer) -> None:
    told = CASES["thought and calls"]
    server.add(Framing("\r\n", 5, [noise]).stream([*events_of(told)], named=True, done=False))

    assert exact((await streamed(model_at(server)))[1]) == exact(told)


@pytest.mark.parametrize(
    ("case", "finish_reason", "text", "args"),
    [
        ("thought and calls", "tool_calls", "One moment. 🌍", [{"city": "Zürich", "near": 1.0}, {}]),
        ("texts and annotations", "stop", "It is so.\u2028", []),
        ("tools at their side", "stop", "Done", []),
        ("what nobody knows yet", "stop", "A", []),
        ("refused", "refusal", "I will not.", []),
        ("cut", "length", "And so", []),
        ("filtered", "content_filter", "And", []),
        ("cut in a call", "length", "", [{}]),
        ("nothing", "stop", "", []),
    ],
)
async def test_a_response_is_read_and_goes_back_as_it_came(
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
    assert response.usage == Usage(
        input_tokens=100, cached_tokens=64, cache_write_tokens=8, output_tokens=300, reasoning_tokens=256
    )
    sent = server.sent[1]["input"]
    assert exact(sent[1 : 1 + len(told["output"])]) == exact(told["output"])
    calls = [item for item in told["output"] if item["type"] == "function_call"]
    results = [item for item in sent if item.get("type") == "function_call_output"]
    assert [item["call_id"] for item in results] == [item["call_id"] for item in calls]
    if case == "cut in a call":
        assert response.tool_calls[0].invalid_args == '{"city":"Z'


async def test_calls_without_ids_of_their_own_pair_up_with_their_results(server: RawServer) -> None:
    model = model_at(server)
    calls = [call(1, "{}", ""), call(2, "{}", "same"), call(3, "{}", "same"), call(4, "nonsense")]
    server.add(body(response(calls)), body(CASES["nothing"]))
    read = model.parse((await model.request(asking())).raw)
    await model.request(asking(*stored(read)))

    ids = [made.id for made in read.tool_calls]
    assert len({*ids}) == 4
    assert [made.index for made in read.tool_calls] == [0, 1, 2, 3]
    assert [item["call_id"] for item in server.sent[1]["input"][1:]] == ids + ids
    assert server.sent[1]["input"][4]["arguments"] == "nonsense"


async def test_reasoning_that_led_to_nothing_stays_behind(server: RawServer) -> None:
    # They refuse a reasoning item without the item it was for.
    model = model_at(server)
    cut = response(
        [reasoning("rs_1", "Hm")], "incomplete", incomplete_details={"reason": "max_output_tokens"}
    )
    server.add(body(cut), body(CASES["nothing"]))
    read = model.parse((await model.request(asking())).raw)
    await model.request(asking(*stored(read), "Go on."))

    assert (read.finish_reason, read.text) == ("length", "")
    assert [item["content"] for item in server.sent[1]["input"]] == ["Hello", "Go on."]


async def test_an_item_goes_back_without_the_field_that_is_refused(server: RawServer) -> None:
    compacted = {"id": "cmp_1", "type": "compaction", "encrypted_content": "gAAAA"}
    model = model_at(server)
    server.add(body(response([{**compacted, "created_by": "u"}, said(text("A"))])), body(CASES["nothing"]))
    read = model.parse((await model.request(asking())).raw)
    await model.request(asking(*stored(read), "And?"))

    assert server.sent[1]["input"][1:3] == [compacted, said(text("A"))]


async def test_reasoning_that_is_told_openly_goes_back_to_the_servers_that_tell_it(server: RawServer) -> None:
    told = [{"type": "reasoning_text", "text": "Hm"}]
    thought = {"id": "rs_1", "type": "reasoning", "summary": [], "content": told}
    model = model_at(server)
    server.add(body(response([thought, call(1, "{}")])), body(CASES["nothing"]))
    read = model.parse((await model.request(asking())).raw)
    await model.request(asking(*stored(read)))

    assert exact(server.sent[1]["input"][1:3]) == exact([thought, call(1, "{}")])


async def test_items_that_the_last_event_leaves_out_are_those_told_before(server: RawServer) -> None:
    told = CASES["thought and calls"]
    events = [*events_of(told)]
    events[-1] = {**events[-1], "response": {**told, "output": []}}
    server.add(FRAMINGS["whole"].stream(events, named=True, done=False))

    assert exact((await streamed(model_at(server)))[1]) == exact(told)


# --- failures in a 200 ----------------------------------------------------------------------------

FAILURES: list[tuple[str, str, type[ProviderError], bool]] = [
    ("server_error", "The server had an error", ProviderError, True),
    ("rate_limit_exceeded", "Rate limit reached. Please try again in 1.2s.", RateLimited, True),
    ("vector_store_timeout", "Timed out", ProviderError, True),
    ("invalid_prompt", "Your prompt was flagged", Refused, False),
    ("bio_policy", "Not this", Refused, False),
    ("image_content_policy_violation", "Not this", Refused, False),
    ("invalid_image_url", "No image there", ProviderError, False),
    ("insufficient_quota", "You exceeded your current quota", ProviderError, False),
]


def failed(code: str, told: str) -> Json:
    return response([], "failed", error={"code": code, "message": told}, usage=None, background=True)


@pytest.mark.parametrize(("code", "told", "kind", "retriable"), FAILURES)
@pytest.mark.parametrize("way", ["request", "stream", "poll", "error event"])
async def test_a_failed_response_is_in_doubt_and_says_what_it_is(
    way: str, code: str, told: str, kind: type[ProviderError], retriable: bool, server: RawServer
) -> None:
    model = model_at(server)
    begun = next(events_of(CASES["nothing"]))
    error = {"type": "error", "code": code, "message": told, "param": None, "sequence_number": 1}
    ends = {"error event": error, "stream": {"type": "response.failed", "response": failed(code, told)}}
    server.add(
        FRAMINGS["whole"].stream([begun, ends[way]], named=True, done=False)
        if way in ends
        else body(failed(code, told))
    )

    asked: dict[str, Callable[[], Awaitable[object]]] = {
        "request": lambda: model.request(asking()),
        "poll": lambda: model.poll("resp_01"),
    }
    with pytest.raises(Exception) as raised:
        await asked.get(way, lambda: streamed(model))()
    failure = model.classify(raised.value)

    assert type(failure.error) is kind
    assert (failure.billed, failure.retriable, failure.error.code) == ("possible", retriable, code)
    assert told in str(failure.error)


async def test_a_background_job_is_an_answer_when_it_is_cut_and_none_when_it_is_cancelled(
    server: RawServer,
) -> None:
    model = model_at(server)
    job = {"background": True, "store": True}
    server.add(
        body(response([], "queued", **job)),
        body(response([], "queued", **job)),
        body(response([], "in_progress", **job)),
        body({**CASES["cut"], **job}),
        body(response([], "cancelled", **job)),
    )
    submitted = await model.submit(asking(), metadata={"step": "1"})

    assert submitted.answer is None
    assert [await model.poll("resp_01"), await model.poll("resp_01")] == [None, None]
    answer = await model.poll("resp_01")
    assert answer is not None
    assert model.parse(answer.raw).finish_reason == "length"
    with pytest.raises(ProviderError, match="resp_01 is cancelled"):
        await model.poll("resp_01")


async def test_a_stream_that_ends_too_soon_is_no_answer(server: RawServer) -> None:
    told = [*events_of(CASES["thought and calls"])]
    server.add(FRAMINGS["whole"].stream(told[:-1], named=True, done=False))

    with pytest.raises(ProviderError, match="ended before") as raised:
        await streamed(model_at(server))

    assert (raised.value.billed, raised.value.retriable) == ("possible", True)
