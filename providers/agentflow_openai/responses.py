"""Ours to OpenAI's Responses API and back. Pure: nothing here calls anybody."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from agentflow.providers import (
    FinishReason,
    Item,
    Message,
    ModelRequest,
    ModelResponse,
    ModelSettings,
    OpaquePart,
    Origin,
    Part,
    ReasoningPart,
    TextPart,
    ToolCall,
    ToolResult,
    Usage,
    items_to_send_back,
    lower_output,
    tool_call,
    with_unique_ids,
)
from agentflow_openai.caching import cache_fields
from agentflow_openai.content import response_content, response_part
from agentflow_openai.schemas import strict_schema

PROVIDER = "openai"

_REASONING_MODELS = re.compile(r"^(o\d|gpt-([5-9]|\d\d)|codex|computer-use)")
ENCRYPTED_REASONING = "reasoning.encrypted_content"


def request_body(request: ModelRequest, *, model: str) -> Item:
    """The body of POST /v1/responses for this request.

    Nothing is stored at OpenAI, so reasoning comes encrypted and goes back with the next turn.
    """
    request = lower_output(request)
    settings = request.settings
    body: Item = {"model": model, "input": _input(request.messages), "store": False}
    if reasons(model):
        body["include"] = [ENCRYPTED_REASONING]
    if request.instructions:
        body["instructions"] = request.instructions
    if request.tools:
        body["tools"] = [_tool(tool.name, tool.description, tool.schema) for tool in request.tools]
        body |= _tool_choice(settings)
    if request.output is not None:
        strict = strict_schema(request.output.schema)
        body["text"] = {
            "format": {
                "type": "json_schema",
                "name": request.output.name,
                "schema": strict or request.output.schema,
                "strict": strict is not None,
            }
        }
    if settings.effort is not None:
        body["reasoning"] = {"effort": settings.effort}
    if settings.max_tokens is not None:
        body["max_output_tokens"] = settings.max_tokens
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    if settings.top_p is not None:
        body["top_p"] = settings.top_p
    return {**body, **cache_fields(settings), **settings.extra}


def response_of(raw: Item) -> ModelResponse:
    """The normal form of a response of theirs."""
    items = with_unique_ids(_carried(raw), "call_id", is_call=_is_function_call)
    parts = _parts(items)
    calls = [part for part in parts if isinstance(part, ToolCall)]
    return ModelResponse(
        text="".join(part.text for part in parts if isinstance(part, TextPart)),
        tool_calls=calls,
        messages=[Message(role="assistant", parts=parts, origin=Origin(provider=PROVIDER, items=items))],
        usage=usage_of(raw.get("usage") or {}),
        finish_reason=_finish_reason(raw, bool(calls)),
        provider_id=raw.get("id"),
        model=raw.get("model") or "",
        raw=raw,
    )


def reasons(model: str) -> bool:
    """Whether the model is of those that reason; others refuse to be asked for encrypted reasoning."""
    return bool(_REASONING_MODELS.match(model)) and "chat" not in model


def _tool(name: str, description: str, schema: Item) -> Item:
    strict = strict_schema(schema)
    # Left out, strict would be true here, and a tool with a default argument a 400.
    return {
        "type": "function",
        "name": name,
        "description": description,
        "parameters": strict or schema,
        "strict": strict is not None,
    }


def _tool_choice(settings: ModelSettings) -> Item:
    choice: Item = {}
    if settings.tool_choice in ("auto", "required", "none"):
        choice["tool_choice"] = settings.tool_choice
    elif settings.tool_choice is not None:
        choice["tool_choice"] = {"type": "function", "name": settings.tool_choice}
    if settings.parallel_tool_calls is not None:
        choice["parallel_tool_calls"] = settings.parallel_tool_calls
    return choice


def _input(messages: Sequence[Message]) -> list[Item]:
    return [item for message in messages for item in _items(message)]


def _items(message: Message) -> list[Item]:
    own = items_to_send_back(message, PROVIDER, _parts)
    if own is not None:
        return _as_taken_back(own)
    if message.role == "user":
        return [{"role": "user", "content": response_content(message.user_parts)}]
    return [item for part in message.parts for item in _item(part)]


def _item(part: Part) -> list[Item]:
    match part:
        case TextPart(text=text):
            return [{"role": "assistant", "content": text}] if text else []
        case ToolCall():
            arguments = part.invalid_args if part.invalid_args is not None else json.dumps(part.args)
            return [
                {"type": "function_call", "call_id": part.id, "name": part.name, "arguments": arguments},
            ]
        case ToolResult():
            return [{"type": "function_call_output", "call_id": part.call_id, "output": _result(part)}]
        case _:
            return []  # another provider's thinking, which nobody else can read


def _result(part: ToolResult) -> str | list[Item]:
    return [response_part(block) for block in part.blocks] or part.text


def _carried(raw: Item) -> list[Item]:
    """The output items that may go back: reasoning that is neither stored nor encrypted (nor told) may not.

    Where such an item stays behind, the others lose their ids, or they would be missed without it.
    """
    items: list[Item] = raw.get("output") or []
    if raw.get("store") is True:
        return items
    kept = [
        item
        for item in items
        if item.get("type") != "reasoning" or item.get("encrypted_content") or item.get("content")
    ]
    if len(kept) == len(items):
        return items
    return [{key: value for key, value in item.items() if key != "id"} for item in kept]


def _parts(items: Sequence[Item]) -> list[Part]:
    parts: list[Part] = []
    calls = 0
    for item in items:
        match item.get("type"):
            case "message":
                # A refusal is what the model said, too.
                parts.extend(
                    TextPart(text=block.get("text") or block.get("refusal") or "") for block in _blocks(item)
                )
            case "reasoning":
                summary = item.get("summary") or item.get("content") or []
                parts.append(ReasoningPart(text="\n\n".join(block.get("text") or "" for block in summary)))
            case "function_call":
                parts.append(tool_call(calls, item["call_id"], item.get("name") or "", item.get("arguments")))
                calls += 1
            case other:
                parts.append(OpaquePart(type=str(other)))
    return parts


def _blocks(item: Item) -> list[Item]:
    """The content of a message, which some servers tell as mere text."""
    content = item.get("content") or []
    return [{"type": "output_text", "text": content}] if isinstance(content, str) else content


def _as_taken_back(items: list[Item]) -> list[Item]:
    """The items without what they tell and refuse: `created_by`, and reasoning that led to nothing (it was cut)."""
    kept = [{key: value for key, value in item.items() if key != "created_by"} for item in items]
    while kept and kept[-1].get("type") == "reasoning":
        kept.pop()
    return kept


def _is_function_call(item: Item) -> bool:
    return item.get("type") == "function_call"


def _finish_reason(raw: Item, has_calls: bool) -> FinishReason:
    if raw.get("status") == "incomplete":
        reason = (raw.get("incomplete_details") or {}).get("reason")
        return "content_filter" if reason == "content_filter" else "length"
    said = [item for item in raw.get("output") or [] if item.get("type") == "message"]
    if any(block.get("type") == "refusal" for item in said for block in _blocks(item)):
        return "refusal"
    return "tool_calls" if has_calls else "stop"


def usage_of(usage: Item) -> Usage:
    """The tokens, by the names of this API."""
    details_in = usage.get("input_tokens_details") or {}
    return Usage(
        input_tokens=usage.get("input_tokens") or 0,
        cached_tokens=details_in.get("cached_tokens") or 0,
        cache_write_tokens=details_in.get("cache_write_tokens") or 0,
        output_tokens=usage.get("output_tokens") or 0,
        reasoning_tokens=(usage.get("output_tokens_details") or {}).get("reasoning_tokens") or 0,
    )
