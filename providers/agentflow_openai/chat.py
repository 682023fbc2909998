"""Ours to OpenAI's Chat Completions, as gateways speak it too, and back. Pure: nothing here calls anybody."""

from __future__ import annotations

import json
from collections.abc import Sequence

from agentflow.providers import (
    FinishReason,
    Item,
    Message,
    ModelRequest,
    ModelResponse,
    ModelSettings,
    Origin,
    Part,
    ReasoningPart,
    TextPart,
    ToolCall,
    Usage,
    items_to_send_back,
    lower_output,
    tool_call,
    with_unique_ids,
)
from agentflow_openai.caching import cache_fields
from agentflow_openai.content import chat_content
from agentflow_openai.schemas import strict_schema

PROVIDER = "openai-chat"

_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
# What of a model's message has a place in the next request; gateways that carry reasoning say so in the
# second line.
_SENT_BACK = ("role", "content", "refusal", "tool_calls", "reasoning_details")


def request_body(request: ModelRequest, *, model: str, is_gateway: bool) -> Item:
    """The body of POST /v1/chat/completions for this request.

    `is_gateway`: not OpenAI's own server, so the older word for the limit of tokens.
    """
    request = lower_output(request)
    settings = request.settings
    body: Item = {"model": model, "messages": _messages(request)}
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.schema},
            }
            for tool in request.tools
        ]
        body |= _tool_choice(settings)
    if request.output is not None:
        strict = strict_schema(request.output.schema)
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                "name": request.output.name,
                "schema": strict or request.output.schema,
                "strict": strict is not None,
            },
        }
    if settings.effort is not None:
        body["reasoning_effort"] = settings.effort
    if settings.max_tokens is not None:
        body["max_tokens" if is_gateway else "max_completion_tokens"] = settings.max_tokens
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    if settings.top_p is not None:
        body["top_p"] = settings.top_p
    if settings.stop:
        body["stop"] = list(settings.stop)
    if settings.seed is not None:
        body["seed"] = settings.seed
    return {**body, **cache_fields(settings), **settings.extra}


def response_of(raw: Item) -> ModelResponse:
    """The normal form of a chat completion of theirs (of its first choice)."""
    choice: Item = (raw.get("choices") or [{}])[0]
    said = _with_unique_call_ids(choice.get("message") or {})
    parts = _parts([said])
    calls = [part for part in parts if isinstance(part, ToolCall)]
    finish_reason = _FINISH_REASONS.get(choice.get("finish_reason") or "", "stop")
    if said.get("refusal"):
        finish_reason = "refusal"
    elif calls and finish_reason == "stop":
        finish_reason = "tool_calls"  # some gateways say "stop" whatever they send
    return ModelResponse(
        text="".join(part.text for part in parts if isinstance(part, TextPart)),
        tool_calls=calls,
        messages=[Message(role="assistant", parts=parts, origin=Origin(provider=PROVIDER, items=[said]))],
        usage=usage_of(raw.get("usage") or {}),
        finish_reason=finish_reason,
        provider_id=raw.get("id") or None,
        model=raw.get("model") or "",
        raw=raw,
    )


def _tool_choice(settings: ModelSettings) -> Item:
    choice: Item = {}
    if settings.tool_choice in ("auto", "required", "none"):
        choice["tool_choice"] = settings.tool_choice
    elif settings.tool_choice is not None:
        choice["tool_choice"] = {"type": "function", "function": {"name": settings.tool_choice}}
    if settings.parallel_tool_calls is not None:
        choice["parallel_tool_calls"] = settings.parallel_tool_calls
    return choice


def _messages(request: ModelRequest) -> list[Item]:
    system = [{"role": "system", "content": request.instructions}] if request.instructions else []
    return [*system, *(item for message in request.messages for item in _items(message))]


def _items(message: Message) -> list[Item]:
    match message.role:
        case "user":
            return [{"role": "user", "content": chat_content(message.user_parts)}]
        case "tool":
            return [
                {"role": "tool", "tool_call_id": result.call_id, "content": result.text}
                for result in message.tool_results
            ]
        case "assistant":
            own = items_to_send_back(message, PROVIDER, _parts)
            if own is not None:
                return [_sent_back(item) for item in own]
            return [_assistant(message)] if message.text or message.tool_calls else []


def _sent_back(said: Item) -> Item:
    kept = {key: said[key] for key in _SENT_BACK if said.get(key) is not None}
    return {"role": "assistant", "content": None if said.get("tool_calls") else "", **kept}


def _assistant(message: Message) -> Item:
    item: Item = {"role": "assistant", "content": message.text or None}
    if message.tool_calls:
        item["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.invalid_args
                    if call.invalid_args is not None
                    else json.dumps(call.args),
                },
            }
            for call in message.tool_calls
        ]
    return item


def _with_unique_call_ids(said: Item) -> Item:
    if not said.get("tool_calls"):
        return said
    calls = [{"type": "function", **call} for call in said["tool_calls"]]
    return {**said, "tool_calls": with_unique_ids(calls, "id", is_call=lambda _: True)}


def _parts(items: Sequence[Item]) -> list[Part]:
    (said,) = items
    parts: list[Part] = []
    reasoning = said.get("reasoning_content") or said.get("reasoning")
    if isinstance(reasoning, str) and reasoning:
        parts.append(ReasoningPart(text=reasoning))
    text = _text(said.get("content")) or said.get("refusal")
    if text:
        parts.append(TextPart(text=text))
    for index, call in enumerate(said.get("tool_calls") or []):
        told = call.get("function") or call.get("custom") or {}
        arguments = told.get("arguments", told.get("input"))
        parts.append(tool_call(index, call["id"], told.get("name") or "", arguments))
    return parts


def _text(content: object) -> str:
    """Text, or the text blocks of a list, as some gateways send it."""
    if isinstance(content, list):
        return "".join(block.get("text") or "" for block in content if isinstance(block, dict))
    return content if isinstance(content, str) else ""


def usage_of(usage: Item) -> Usage:
    """The tokens, by the names of this API."""
    details_in = usage.get("prompt_tokens_details") or {}
    return Usage(
        input_tokens=usage.get("prompt_tokens") or 0,
        cached_tokens=details_in.get("cached_tokens") or 0,
        cache_write_tokens=details_in.get("cache_write_tokens") or 0,
        output_tokens=usage.get("completion_tokens") or 0,
        reasoning_tokens=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0,
    )
