"""Messages as Anthropic's API sends them, over real HTTP and the official SDK: read right, sent back as they came."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agentflow_anthropic import Anthropic

from agentflow.models.clients import held_clients
from agentflow.providers import (
    Message,
    ModelRequest,
    ModelResponse,
    ModelSettings,
    ReasoningDelta,
    TextDelta,
    TextPart,
    ToolArgsDelta,
    ToolResult,
    Usage,
)
from tests.providers.raw_server import (
    COMMENT,
    FRAMINGS,
    PING,
    Framing,
    Json,
    RawServer,
    body,
    exact,
    pieces,
    raw_server,
)
from tests.providers.told_by_anthropic import (
    CASES,
    CONTAINER,
    SERVER_TOOLS,
    THINKING,
    events_of,
    message,
    tool_use,
)


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with raw_server() as served, held_clients():
        yield served


def model_at(server: RawServer) -> Anthropic:
    return Anthropic("claude-opus-4-6", base_url=server.url, api_key="none")


def asking(*messages: Any, **more: Any) -> ModelRequest:
    return ModelRequest(model="anthropic:claude-opus-4-6", messages=["Hello", *messages], **more)


async def streamed(model: Anthropic) -> tuple[list[Any], Json]:
    *deltas, answer = [event async for event in model.stream(asking())]
    return deltas, answer.raw


def stored(response: ModelResponse) -> list[Message]:
    """What the response said, as it comes back from a database, and a result for each of its calls."""
    kept = [Message.model_validate_json(message.model_dump_json()) for message in response.messages]
    results = [ToolResult(call_id=call.id, content="ok") for call in response.tool_calls]
    return [*kept, Message(role="tool", parts=[*results])] if results else kept


@pytest.mark.parametrize("case", CASES)
async def test_a_streamed_message_is_the_message(case: str, server: RawServer) -> None:
    told = CASES[case]
    server.add(*[way.stream([*events_of(told)], named=True, done=False) for way in FRAMINGS.values()])

    for framing in FRAMINGS:
        deltas, raw = await streamed(model_at(server))
        assert exact(raw) == exact(told), framing
    texts = [block["text"] for block in told["content"] if block["type"] == "text"]
    thoughts = [block["thinking"] for block in told["content"] if block["type"] == "thinking"]
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == "".join(texts)
    assert "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)) == "".join(thoughts)
    calls: dict[int, str] = {}
    for delta in deltas:
        if isinstance(delta, ToolArgsDelta):
            calls[delta.index] = calls.get(delta.index, "") + delta.text
    inputs = [block["input"] for block in told["content"] if block["type"] == "tool_use"]
    assert [json.loads(text or "{}") for _, text in sorted(calls.items())] == inputs


@pytest.mark.parametrize("noise", [COMMENT, PING], ids=["comments", "pings"])
async def test_what_is_strewn_between_the_events_is_no_event(noise: str, server: RawServer) -> None:
    told = CASES["thinking and tools"]
    server.add(Framing("\r\n", 5, [noise]).stream([*events_of(told)], named=True, done=False))

    assert exact((await streamed(model_at(server)))[1]) == exact(told)


async def test_a_message_that_comes_whole_is_read_the_same(server: RawServer) -> None:
    for told in CASES.values():
        server.add(body(told))
        assert exact((await streamed(model_at(server)))[1]) == exact(told)


@pytest.mark.parametrize(
    ("case", "finish_reason", "text", "calls"),
    [
        ("thinking and tools", "tool_calls", "I look. 🌍", ["toolu_1", "toolu_2"]),
        ("server tools, paused", "pause", "I search.It is so", []),
        ("what nobody knows yet", "stop", "There.", []),
        ("refused", "refusal", "", []),
        ("window full", "length", "And so", []),
        ("stopped", "stop", "A", []),
        ("nothing", "stop", "", []),
        ("a reason to come", "stop", "A", []),
    ],
)
async def test_a_message_is_read_and_goes_back_as_it_came(
    case: str, finish_reason: str, text: str, calls: list[str], server: RawServer
) -> None:
    told = CASES[case]
    model = model_at(server)
    server.add(body(told), body(CASES["nothing"]))

    response = model.parse((await model.request(asking())).raw)
    await model.request(asking(*stored(response), "And?"))

    assert (response.finish_reason, response.text) == (finish_reason, text)
    assert [call.id for call in response.tool_calls] == calls
    assert [call.args for call in response.tool_calls] == [
        block["input"] for block in told["content"] if block["type"] == "tool_use"
    ]
    assert response.usage == Usage(
        input_tokens=135, cached_tokens=5, cache_write_tokens=30, output_tokens=321, reasoning_tokens=200
    )
    sent = server.sent[1]["messages"]
    if told["content"]:
        assert exact(sent[1]) == exact({"role": "assistant", "content": told["content"]})
    assert [block.get("tool_use_id") for block in sent[-1]["content"] if "tool_use_id" in block] == calls


async def test_a_citation_goes_back_without_the_field_that_is_refused(server: RawServer) -> None:
    place = {"type": "char_location", "cited_text": "It is.", "document_index": 0, "start_char_index": 1}
    cited = {
        "type": "text",
        "text": "So.",
        "citations": [{**place, "file_id": None}, {**place, "file_id": "f"}],
    }
    model = model_at(server)
    server.add(body(message([cited], "end_turn")), body(CASES["nothing"]))
    response = model.parse((await model.request(asking())).raw)
    await model.request(asking(*stored(response), "And?"))

    assert response.raw["content"] == [cited]
    assert server.sent[1]["messages"][1]["content"] == [{**cited, "citations": [place, place]}]


async def test_the_container_of_a_turn_that_is_not_over_goes_back(server: RawServer) -> None:
    model = model_at(server)
    ran = message([SERVER_TOOLS[4], tool_use("toolu_1", {})], "tool_use", container=CONTAINER)
    server.add(body(ran), *[body(CASES["nothing"])] * 3)
    response = model.parse((await model.request(asking())).raw)
    skills = {"skills": [{"type": "anthropic", "skill_id": "pptx"}]}

    await model.request(asking(*stored(response)))
    await model.request(asking(*stored(response), settings=ModelSettings(extra={"container": skills})))
    await model.request(asking(*stored(response), "Another question, long after"))

    assert server.sent[1]["container"] == "container_01"
    assert server.sent[2]["container"] == {"id": "container_01", **skills}
    # The container may be gone by then, and nothing waits in it.
    assert "container" not in server.sent[3]


@pytest.mark.parametrize("is_last", [True, False])
async def test_thinking_that_led_to_nothing_stays_behind(is_last: bool, server: RawServer) -> None:
    # Cut at max_tokens: they refuse a message that ends with a thought, or whose thought is not signed.
    model = model_at(server)
    server.add(
        body(message([*THINKING[:3], {**THINKING[0], "signature": ""}], "max_tokens")),
        body(message([{**THINKING[0], "signature": ""}], "max_tokens")),
        body(CASES["nothing"]),
    )
    first = model.parse((await model.request(asking())).raw)
    second = model.parse((await model.request(asking())).raw)

    await model.request(asking(*first.messages, "Go on.", *second.messages, *([] if is_last else ["Well?"])))

    assert first.finish_reason == second.finish_reason == "length"
    assert [part["role"] for part in server.sent[2]["messages"]] == ["user", "assistant", "user"]
    assert server.sent[2]["messages"][1]["content"] == THINKING[:3]
    texts = ["Go on."] if is_last else ["Go on.", "Well?"]
    assert [block["text"] for block in server.sent[2]["messages"][2]["content"]] == texts


async def test_a_pause_and_what_came_after_it_are_one_message(server: RawServer) -> None:
    model = model_at(server)
    server.add(body(CASES["server tools, paused"]), body(CASES["thinking and tools"]), body(CASES["nothing"]))
    first = model.parse((await model.request(asking())).raw)
    second = model.parse((await model.request(asking(*stored(first)))).raw)

    await model.request(asking(*stored(first), *stored(second)))

    assert server.sent[1]["messages"][-1] == {"role": "assistant", "content": SERVER_TOOLS}
    assert server.sent[2]["messages"][1] == {"role": "assistant", "content": SERVER_TOOLS + THINKING}


@pytest.mark.parametrize("written", ['{"a": "un', "[1]", "nul", '"text"'])
async def test_a_tool_input_that_is_no_object_is_told_and_does_not_go_back(
    written: str, server: RawServer
) -> None:
    told = message([THINKING[0], tool_use("toolu_1", {})], "max_tokens")
    events = [event for event in events_of(told) if (event.get("delta") or {}).get("partial_json") is None]
    at = next(i for i, event in enumerate(events) if event.get("index") == 1) + 1
    events[at:at] = [
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": piece},
        }
        for piece in pieces(written, 2)
    ]
    server.add(FRAMINGS["whole"].stream(events, named=True, done=False), body(CASES["nothing"]))
    model = model_at(server)

    response = model.parse((await streamed(model))[1])
    await model.request(asking(*stored(response)))

    assert (response.tool_calls[0].args, response.tool_calls[0].invalid_args) == ({}, written)
    assert response.finish_reason == "length"
    assert server.sent[1]["messages"][1]["content"] == told["content"]


async def test_blocks_are_told_apart_by_what_their_index_says(server: RawServer) -> None:
    # Some gateways begin at 1, or leave a number out.
    told = CASES["thinking and tools"]
    events = [
        {**event, "index": event["index"] * 2 + 1} if "index" in event else event for event in events_of(told)
    ]
    server.add(FRAMINGS["whole"].stream(events, named=True, done=False))

    assert exact((await streamed(model_at(server)))[1]) == exact(told)


async def test_calls_with_the_same_id_pair_up_with_their_results(server: RawServer) -> None:
    model = model_at(server)
    server.add(
        body(message([tool_use("t", {"n": 1}), tool_use("t", {"n": 2}), tool_use("", {})], "tool_use")),
        body(CASES["nothing"]),
    )
    response = model.parse((await model.request(asking())).raw)
    await model.request(asking(*stored(response)))

    ids = [call.id for call in response.tool_calls]
    assert len({*ids}) == 3
    calls, results = server.sent[1]["messages"][1:]
    assert [block["id"] for block in calls["content"]] == ids
    assert [block["tool_use_id"] for block in results["content"]] == ids


def test_a_message_that_somebody_changed_goes_back_as_it_is_now() -> None:
    model = Anthropic("claude-opus-4-6")
    said = model.parse(CASES["thinking and tools"]).messages[0]
    changed = said.model_copy(update={"parts": [TextPart(text="[cut]")]})
    assert "Hm" not in json.dumps(_sent(changed))


def _sent(*messages: Message) -> Json:
    from agentflow_anthropic.mapping import request_body

    return request_body(asking(*messages, "And?"), model="claude-opus-4-6")
