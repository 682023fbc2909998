"""What providers are told of their caches of prompts, and what reading from them and writing to them costs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from agentflow_anthropic import Anthropic
from agentflow_anthropic import mapping as anthropic
from agentflow_openai import chat, responses

from agentflow.models.answers import priced
from agentflow.models.deferral import deferred
from agentflow.models.pricing import cost_of
from agentflow.providers import (
    Message,
    ModelRequest,
    ModelResponse,
    ModelSettings,
    RawAnswer,
    TextPart,
    ToolCall,
    ToolResult,
    ToolSpec,
    Usage,
)
from agentflow.testing.provider_server import FakeProvider

FIVE_MINUTES = {"type": "ephemeral"}
AN_HOUR = {"type": "ephemeral", "ttl": "1h"}
TOOLS = tuple(
    ToolSpec(name, "A tool.", {"type": "object", "properties": {}}) for name in ("search", "lookup")
)


def asking(*messages: Any, **more: Any) -> ModelRequest:
    more = {"settings": ModelSettings(cache="5m"), "tools": TOOLS, "instructions": "Be brief.", **more}
    return ModelRequest(model="any:model", messages=list(messages) or ["Hi"], **more)


def after_turns(turns: int) -> list[Message]:
    """A conversation in which a tool was called so many times."""
    said = [Message("user", ["Hi"])]
    for turn in range(turns):
        call = ToolCall(0, f"c{turn}", "search", {})
        said.append(Message("assistant", [TextPart("I look."), call]))
        said.append(Message("tool", [ToolResult(call.id, f"found {turn}")]))
    return said


def marks(body: Any) -> dict[str, Any]:
    """Where the body's breakpoints are."""
    found: dict[str, Any] = {}
    places = {"tools": body.get("tools", []), "system": body.get("system", [])}
    places |= {f"message {number}": item["content"] for number, item in enumerate(body["messages"])}
    for place, blocks in places.items():
        for number, block in enumerate(blocks if isinstance(blocks, list) else []):
            if "cache_control" in block:
                found[f"{place}, {number - len(blocks)}"] = block["cache_control"]
    return found


def test_tools_instructions_and_the_last_two_messages_of_the_user_are_marked() -> None:
    body = anthropic.request_body(asking(*after_turns(3)), model="m")
    assert marks(body) == {
        "tools, -1": FIVE_MINUTES,
        "system, -1": FIVE_MINUTES,
        "message 4, -1": FIVE_MINUTES,
        "message 6, -1": FIVE_MINUTES,
    }
    assert body["system"] == [{"type": "text", "text": "Be brief.", "cache_control": FIVE_MINUTES}]
    assert body["messages"][6]["content"] == [
        {
            "type": "tool_result",
            "tool_use_id": "c2",
            "content": "found 2",
            "cache_control": FIVE_MINUTES,
        }
    ]


def test_what_a_turn_wrote_the_next_one_reads() -> None:
    """The prompt up to a turn's last mark is, but for the marks, where the next turn has its mark before the last."""

    def prefix(body: Any, place: int) -> Any:
        told = copy.deepcopy([body["tools"], body["system"], body["messages"][: place + 1]])
        return json.loads(json.dumps(told).replace(f', "cache_control": {json.dumps(FIVE_MINUTES)}', ""))

    for turns in range(1, 5):
        before = anthropic.request_body(asking(*after_turns(turns - 1)), model="m")
        now = anthropic.request_body(asking(*after_turns(turns)), model="m")
        place = len(before["messages"]) - 1
        assert f"message {place}, -1" in marks(before)
        assert f"message {place}, -1" in marks(now)
        assert prefix(before, place) == prefix(now, place)


@pytest.mark.parametrize(("lifetime", "mark"), [("5m", FIVE_MINUTES), ("1h", AN_HOUR), ("24h", AN_HOUR)])
def test_the_marks_say_for_how_long(lifetime: Any, mark: Any) -> None:
    body = anthropic.request_body(asking(settings=ModelSettings(cache=lifetime)), model="m")
    assert set(map(str, marks(body).values())) == {str(mark)}


def test_without_the_setting_nothing_is_marked_and_what_is_not_there_neither() -> None:
    plain = anthropic.request_body(asking(*after_turns(1), settings=ModelSettings()), model="m")
    assert marks(plain) == {}
    assert plain["system"] == "Be brief."
    bare = anthropic.request_body(asking(tools=(), instructions=None), model="m")
    assert list(marks(bare)) == ["message 0, -1"]
    blank = anthropic.request_body(asking(tools=(), instructions=" \n"), model="m")
    assert list(marks(blank)) == ["message 0, -1"]


def test_what_the_model_wrote_is_never_marked_and_never_changed() -> None:
    raw = {
        "id": "msg_1",
        "model": "m",
        "stop_reason": "pause_turn",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "text", "text": "Wait."},
        ],
    }
    said = anthropic.response_of(raw).messages
    before = said[0].model_dump_json()
    body = anthropic.request_body(asking("Hi", *said), model="m")
    assert list(marks(body)) == ["tools, -1", "system, -1", "message 0, -1"]
    assert body["messages"][1]["content"] == raw["content"]
    assert said[0].model_dump_json() == before


def test_the_same_request_is_told_in_the_same_bytes() -> None:
    def body() -> str:
        return json.dumps(anthropic.request_body(asking(*after_turns(2)), model="m"))

    assert body() == body()


def test_openai_is_told_the_key_and_only_a_longer_time() -> None:
    def told(**settings: Any) -> dict[str, Any]:
        request = asking(settings=ModelSettings(**settings))
        bodies = (
            responses.request_body(request, model="m"),
            chat.request_body(request, model="m", is_gateway=False),
        )
        first, second = ({k: v for k, v in body.items() if k.startswith("prompt_cache")} for body in bodies)
        assert first == second
        return first

    assert told() == told(cache="5m") == told(cache="1h") == {}
    assert told(cache="24h") == {"prompt_cache_retention": "24h"}
    assert told(cache_key="support") == {"prompt_cache_key": "support"}


def test_the_fields_are_known_to_the_sdk() -> None:
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
    from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming

    for params in (CompletionCreateParamsNonStreaming, ResponseCreateParamsNonStreaming):
        assert {"prompt_cache_key", "prompt_cache_retention"} <= params.__annotations__.keys()


# --- what it costs --------------------------------------------------------------------------------

CLAUDE = (
    "claude-sonnet-4-5"  # per million: 3 in, 15 out, 0.30 read, 3.75 written for 5 minutes, 6 for an hour
)


async def test_a_recorded_read_and_write_cost_what_anthropic_says(recording: Callable[[str], Any]) -> None:
    async with recording("anthropic/prompt_cache").model(CLAUDE) as model:
        read, _ = priced(model, await model.request(asking()))
        written, counted = priced(model, await model.request(asking()))
    assert counted is not None
    assert (counted.usage.cached_tokens, counted.usage.cache_write_tokens) == (1_111, 418)
    # 3 in, 1111 read, 406 out
    assert read.cost == Decimal("0.0064323")
    # 3 in, 1111 read, 418 written, 33 out
    assert written.cost == Decimal("0.0024048")
    assert written.cost == (3 * 3 + 1111 * Decimal("0.3") + 418 * Decimal("3.75") + 33 * 15) / 1_000_000


@pytest.mark.parametrize(("lifetime", "price"), [("5m", Decimal("3.75")), ("1h", Decimal(6))])
async def test_what_is_kept_for_an_hour_costs_more_to_write(
    server: FakeProvider, lifetime: Any, price: Decimal
) -> None:
    usage = Usage(input_tokens=1_600, cached_tokens=500, cache_write_tokens=1_000, output_tokens=10)
    server.add(ModelResponse(text="Hello", usage=usage))
    model = Anthropic(CLAUDE)
    answer, counted = priced(model, await model.request(asking(settings=ModelSettings(cache=lifetime))))
    assert counted is not None
    assert counted.usage == usage
    assert answer.cost == (100 * 3 + 500 * Decimal("0.3") + 1_000 * price + 10 * 15) / 1_000_000


def test_a_batch_prices_what_is_kept_for_an_hour_apart_too() -> None:
    written = {"cache_creation_input_tokens": 1_000, "cache_creation": {"ephemeral_1h_input_tokens": 1_000}}
    usage = {"input_tokens": 0, "output_tokens": 0, **written}
    raw = {"id": "msg_1", "model": CLAUDE, "content": [], "stop_reason": "end_turn", "usage": usage}
    model = deferred(Anthropic(CLAUDE), "batch")
    answer, _ = priced(model, RawAnswer(provider="anthropic", model=CLAUDE, raw=raw), latency="batch")
    assert answer.cost == Decimal(1_000) * 6 / 1_000_000 / 2


def test_tokens_that_are_priced_apart_are_not_counted_twice() -> None:
    usage = Usage(input_tokens=1_000, cache_write_tokens=1_000)
    mixed = cost_of("anthropic", CLAUDE, usage, apart={"cache_write_1h_tokens": 400})
    assert mixed == (600 * Decimal("3.75") + 400 * 6) / 1_000_000


async def test_the_server_takes_every_turn_of_a_long_conversation(server: FakeProvider) -> None:
    model = Anthropic(CLAUDE)
    for turns in range(4):
        server.add("Hello")
        await model.request(asking(*after_turns(turns)))
    assert len(marks(server.requests[-1].body)) == 4


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"system": [{"type": "text", "text": "x", "cache_control": FIVE_MINUTES}] * 5}, "maximum of 4"),
        ({"system": [{"type": "text", "text": " ", "cache_control": FIVE_MINUTES}]}, "empty text"),
        (
            {
                "system": [
                    {"type": "text", "text": "x", "cache_control": FIVE_MINUTES},
                    {"type": "text", "text": "x", "cache_control": AN_HOUR},
                ]
            },
            "must not come after",
        ),
    ],
)
async def test_marks_that_the_real_api_refuses_are_refused_by_the_fake_one(
    server: FakeProvider, extra: dict[str, Any], told: str
) -> None:
    server.add("never")
    with pytest.raises(Exception, match=told):
        await Anthropic(CLAUDE).request(asking(settings=ModelSettings(extra=extra)))
