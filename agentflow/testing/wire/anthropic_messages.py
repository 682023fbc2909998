"""Anthropic's Messages API, as a server speaks it."""

from __future__ import annotations

import json
from typing import Any

from agentflow.models.messages import Message, Part, ReasoningPart, TextPart, ToolCall, ToolResult
from agentflow.models.output import FINAL_ANSWER
from agentflow.models.response import ModelRequest, ModelResponse, OutputSpec, ToolSpec
from agentflow.testing.wire import BadRequest, Event, Json, pieces, seal
from agentflow.testing.wire.media import anthropic_part

_STOP_REASONS = {
    "stop": "end_turn",
    "tool_calls": "tool_use",
    "length": "max_tokens",
    "refusal": "refusal",
    "content_filter": "refusal",
    "pause": "pause_turn",
}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def request_of(body: Json) -> ModelRequest:
    """The request in a body of POST /v1/messages; raises `BadRequest` as they would."""
    if not isinstance(body.get("max_tokens"), int):
        raise BadRequest("max_tokens: Field required")
    _check_cache_marks(body)
    tools = tuple(
        ToolSpec(name=tool["name"], description=tool.get("description", ""), schema=tool["input_schema"])
        for tool in body.get("tools", [])
    )
    wanted = (body.get("output_config") or {}).get("format")
    final = next((tool for tool in tools if tool.name == FINAL_ANSWER), None)
    output = None
    if wanted:
        output = OutputSpec(name="output", schema=wanted["schema"], wrapped=_is_wrapped(wanted["schema"]))
    elif final:
        output = OutputSpec(
            name="output", schema=final.schema, mode="tool", wrapped=_is_wrapped(final.schema)
        )
    return ModelRequest(
        model=f"anthropic:{body['model']}",
        messages=[message for item in body["messages"] for message in _messages(item)],
        instructions=_system(body.get("system")),
        tools=tools,
        output=output,
    )


def answer(response: ModelResponse, body: Json, *, number: int) -> Json:
    usage = response.usage
    return {
        "id": response.provider_id or f"msg_{number:06d}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [_block(part) for part in response.messages[-1].parts],
        "stop_reason": _STOP_REASONS[response.finish_reason],
        "stop_sequence": None,
        "usage": {
            "input_tokens": usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens,
            "cache_read_input_tokens": usage.cached_tokens,
            "cache_creation_input_tokens": usage.cache_write_tokens,
            "cache_creation": _by_lifetime(usage.cache_write_tokens, body),
            "output_tokens": usage.output_tokens,
        },
    }


def events(answer: Json) -> list[Event]:
    start = {
        **answer,
        "content": [],
        "stop_reason": None,
        "usage": {**answer["usage"], "output_tokens": 1},
    }
    told: list[Event] = [("message_start", {"type": "message_start", "message": start})]
    told.append(("ping", {"type": "ping"}))
    for index, block in enumerate(answer["content"]):
        told.extend(_block_events(index, block))
    ending = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
    told.append(("message_delta", {"type": "message_delta", "delta": ending, "usage": answer["usage"]}))
    told.append(("message_stop", {"type": "message_stop"}))
    return told


def error(status: int, message: str, code: str | None) -> Json:
    kind = code or _ERROR_TYPES.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_fake"}


def error_event(message: str, code: str | None) -> Event:
    return "error", error(529, message, code)


def _messages(item: Json) -> list[Message]:
    content = item["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not blocks or any(block["type"] == "text" and not block["text"] for block in blocks):
        raise BadRequest("messages: text content blocks must be non-empty")
    if item["role"] == "assistant":
        return [Message(role="assistant", parts=[_assistant_part(block) for block in blocks])]
    results: list[Part] = [
        ToolResult(
            call_id=block["tool_use_id"], content=block["content"], is_error=bool(block.get("is_error"))
        )
        for block in blocks
        if block["type"] == "tool_result"
    ]
    for block in blocks:
        if block["type"] == "tool_result" and isinstance(block["content"], list):
            [anthropic_part(shown) for shown in block["content"]]
    said: list[Part] = [anthropic_part(block) for block in blocks if block["type"] != "tool_result"]
    told = [Message(role="tool", parts=results)] if results else []
    return [*told, Message(role="user", parts=said)] if said else told


def _system(given: Any) -> str | None:
    return given if given is None or isinstance(given, str) else "\n\n".join(block["text"] for block in given)


def _by_lifetime(written: int, body: Json) -> Json:
    is_long = any(block["cache_control"].get("ttl") == "1h" for block in _marked(body))
    return {
        "ephemeral_5m_input_tokens": 0 if is_long else written,
        "ephemeral_1h_input_tokens": written if is_long else 0,
    }


def _marked(body: Json) -> list[Json]:
    """The blocks with a breakpoint of the cache, in the order of the prompt."""
    blocks = list(body.get("tools", []))
    blocks += body["system"] if isinstance(body.get("system"), list) else []
    for item in body["messages"]:
        blocks += item["content"] if isinstance(item["content"], list) else []
    return [block for block in blocks if block.get("cache_control") is not None]


def _check_cache_marks(body: Json) -> None:
    """Raise `BadRequest` as they would for breakpoints of the cache that they do not take."""
    marks = []
    for block in _marked(body):
        mark = block["cache_control"]
        marks.append(mark.get("ttl", "5m"))
        if mark["type"] != "ephemeral" or marks[-1] not in ("5m", "1h"):
            raise BadRequest(f"cache_control: {mark!r} is not expected")
        if block.get("type") in ("thinking", "redacted_thinking"):
            raise BadRequest(f"{block['type']} blocks cannot have cache_control")
        if block.get("type") == "text" and not block["text"].strip():
            raise BadRequest("cache_control cannot be set for empty text blocks")
    if len(marks) > 4:
        raise BadRequest(f"A maximum of 4 blocks with cache_control may be provided. Found {len(marks)}.")
    if "1h" in marks and "5m" in marks[: marks.index("1h")]:
        raise BadRequest("a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block")


def _assistant_part(block: Json) -> Part:
    match block["type"]:
        case "text":
            return TextPart(text=block["text"])
        case "thinking":
            if block.get("signature") != seal(block["thinking"]):
                raise BadRequest("messages: Invalid `signature` in `thinking` block")
            return ReasoningPart(text=block["thinking"])
        case "tool_use":
            return ToolCall(id=block["id"], name=block["name"], args=block["input"])
        case other:
            raise BadRequest(f"messages: a block of type {other!r} is not expected")


def _block(part: Part) -> Json:
    match part:
        case TextPart(text=text):
            return {"type": "text", "text": text}
        case ReasoningPart(text=text):
            return {"type": "thinking", "thinking": text, "signature": seal(text)}
        case ToolCall():
            written: Any = part.args if part.invalid_args is None else part.invalid_args
            return {"type": "tool_use", "id": part.id, "name": part.name, "input": written}
        case _:
            raise TypeError(f"Anthropic's API has no block for {part!r}")


def _block_events(index: int, block: Json) -> list[Event]:
    empty, deltas = _in_pieces(block)
    told: list[Event] = [
        (
            "content_block_start",
            {"type": "content_block_start", "index": index, "content_block": empty},
        )
    ]
    told.extend(
        ("content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta})
        for delta in deltas
    )
    told.append(("content_block_stop", {"type": "content_block_stop", "index": index}))
    return told


def _in_pieces(block: Json) -> tuple[Json, list[Json]]:
    match block["type"]:
        case "text":
            return {**block, "text": ""}, [
                {"type": "text_delta", "text": text} for text in pieces(block["text"])
            ]
        case "thinking":
            thoughts = [{"type": "thinking_delta", "thinking": text} for text in pieces(block["thinking"])]
            signed = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*thoughts, signed]
        case _:
            asked = block["input"]
            written = asked if isinstance(asked, str) else json.dumps(asked)
            return {**block, "input": {}}, [
                {"type": "input_json_delta", "partial_json": text} for text in pieces(written)
            ]


def _is_wrapped(schema: Json) -> bool:
    return list(schema.get("properties", {})) == ["value"]
