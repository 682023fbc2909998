"""Ours to Anthropic's Messages API and back. Pure: nothing here calls anybody."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from agentflow.errors import InvalidInput
from agentflow.providers import (
    FilePart,
    FinishReason,
    ImagePart,
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
from agentflow_anthropic.caching import with_breakpoints
from agentflow_anthropic.content import block_of
from agentflow_anthropic.events import UNREADABLE_INPUTS

PROVIDER = "anthropic"

_FINISH_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
    "pause_turn": "pause",
    "compaction": "pause",
}
_TOOL_CHOICES = {"auto": "auto", "required": "any", "none": "none"}


def request_body(request: ModelRequest, *, model: str) -> Item:
    """The body of POST /v1/messages for this request."""
    request = lower_output(_by_tool_where_the_schema_cannot_be_said(request))
    settings = request.settings
    body: Item = {
        "model": model,
        "max_tokens": _max_tokens(settings, model),
        "messages": _messages(request.messages),
    }
    if request.instructions:
        body["system"] = request.instructions
    if request.tools:
        body["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.schema}
            for tool in request.tools
        ]
        body |= _tool_choice(settings)
    if request.output is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": _closed(request.output.schema)}}
    if settings.effort == "none":
        body["thinking"] = {"type": "disabled"}
    elif settings.effort is not None:
        effort = "low" if settings.effort == "minimal" else settings.effort
        body["output_config"] = {**body.get("output_config", {}), "effort": effort}
    if settings.thinking_tokens is not None:
        body["thinking"] = {"type": "enabled", "budget_tokens": settings.thinking_tokens}
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    if settings.top_p is not None:
        body["top_p"] = settings.top_p
    if settings.stop:
        body["stop_sequences"] = list(settings.stop)
    if settings.cache is not None:
        body = with_breakpoints(body, settings.cache)
    return {**body, **settings.extra, **_container(request.messages, settings.extra)}


def response_of(raw: Item) -> ModelResponse:
    """The normal form of a message of theirs."""
    items = with_unique_ids(raw.get("content") or [], "id", is_call=_is_tool_use)
    unreadable = raw.get(UNREADABLE_INPUTS, {})
    parts = _parts(items, unreadable)
    calls = [part for part in parts if isinstance(part, ToolCall)]
    finish_reason = _FINISH_REASONS.get(raw.get("stop_reason") or "", "stop")
    container = raw.get("container") or {}
    origin = Origin(
        provider=PROVIDER,
        items=items,
        beside={"container": container["id"]} if container.get("id") else {},
    )
    return ModelResponse(
        text="".join(part.text for part in parts if isinstance(part, TextPart)),
        tool_calls=calls,
        messages=[Message(role="assistant", parts=parts, origin=origin)],
        usage=usage_of(raw.get("usage") or {}),
        finish_reason="tool_calls" if calls and finish_reason in ("stop", "pause") else finish_reason,
        provider_id=raw.get("id"),
        model=raw.get("model") or "",
        raw=raw,
    )


def supports_json_schema(model: str) -> bool:
    """Whether the model is of those that take `output_config.format`: Opus 4.1, and all from 4.5 on."""
    version = re.search(r"(opus|sonnet|haiku|claude)-(\d{1,2})(?:-(\d{1,2}))?(?!\d)", model)
    if version is None:
        return False
    major, minor = int(version[2]), int(version[3] or 0)
    return (major, minor) >= (4, 5) or (version[1], major, minor) == ("opus", 4, 1)


def _by_tool_where_the_schema_cannot_be_said(request: ModelRequest) -> ModelRequest:
    # Their schema mode knows closed objects only: a dict of anything would come back empty.
    if (
        request.output is None
        or request.output.mode != "native"
        or not _has_open_object(request.output.schema)
    ):
        return request
    return request.model_copy(update={"output": replace(request.output, mode="tool")})


def _has_open_object(schema: object) -> bool:
    if isinstance(schema, list):
        return any(_has_open_object(item) for item in schema)
    if not isinstance(schema, dict):
        return False
    if schema.get("type") == "object" and (
        "properties" not in schema or schema.get("additionalProperties") not in (None, False)
    ):
        return True
    return any(_has_open_object(value) for value in schema.values())


def _closed(schema: Item) -> Item:
    from anthropic import transform_schema

    return transform_schema(schema)


def _max_tokens(settings: ModelSettings, model: str) -> int:
    """Theirs is a required field; the most that every model of a generation gives where nobody says."""
    if settings.max_tokens is not None:
        return settings.max_tokens
    if re.search(r"claude-3-(opus|sonnet|haiku)", model):
        return 4_096
    if "claude-3-5" in model:
        return 8_192
    return 16_384 + (settings.thinking_tokens or 0)


def _tool_choice(settings: ModelSettings) -> Item:
    wanted = settings.tool_choice
    if settings.thinking_tokens is not None and wanted not in (None, "auto", "none"):
        wanted = "auto"  # a model that thinks may not be forced to call a tool: they answer 400
    if wanted is None and settings.parallel_tool_calls is None:
        return {}
    kind = _TOOL_CHOICES.get(wanted or "auto")
    choice: Item = {"type": kind} if kind else {"type": "tool", "name": wanted}
    if settings.parallel_tool_calls is False and kind != "none":
        choice["disable_parallel_tool_use"] = True
    return {"tool_choice": choice}


def _messages(messages: Sequence[Message]) -> list[Item]:
    """Theirs, where tool results are the user's, and neighbours of one role are one message."""
    theirs: list[Item] = []
    for message in messages:
        role = "assistant" if message.role == "assistant" else "user"
        content = [item for item in _content(message) if not _is_blank(item)]
        if not content and message.role == "user":
            raise InvalidInput("a user's message without any text: Anthropic's API refuses it")
        if not content:
            continue
        if role == "user":
            _end_last(theirs)
        if theirs and theirs[-1]["role"] == role:
            theirs[-1]["content"].extend(content)
        else:
            theirs.append({"role": role, "content": list(content)})
    _end_last(theirs)
    return theirs


def _end_last(theirs: list[Item]) -> None:
    """Leave off what an assistant's message may not end with: thinking that led to nothing (cut at max_tokens)."""
    if not theirs or theirs[-1]["role"] != "assistant":
        return
    content = theirs[-1]["content"]
    while content and content[-1].get("type") in ("thinking", "redacted_thinking"):
        content.pop()
    if not content:
        theirs.pop()


def _container(messages: Sequence[Message], extra: Item) -> Item:
    """The container in which the code of a turn runs that is not over: they refuse to go on without it."""
    for message in reversed(messages):
        if message.role == "user":
            break
        if message.origin is not None and message.origin.provider == PROVIDER:
            id = message.origin.beside.get("container")
            if id is not None:
                wanted = extra.get("container", id)
                return {"container": {"id": id, **wanted} if isinstance(wanted, dict) else wanted}
    return {}


def _content(message: Message) -> list[Item]:
    own = items_to_send_back(message, PROVIDER, _parts)
    if own is None:
        return [item for part in message.parts for item in _item(part)]
    return [_as_taken_back(item) for item in own]


def _as_taken_back(item: Item) -> Item:
    # They tell the `file_id` of a citation, and answer 400 when it comes back.
    if not item.get("citations"):
        return item
    citations = [
        {key: value for key, value in citation.items() if key != "file_id"} for citation in item["citations"]
    ]
    return {**item, "citations": citations}


def _is_blank(item: Item) -> bool:
    # Claude writes blocks of bare line breaks, and its API answers 400 when they come back.
    return item.get("type") == "text" and not (item.get("text") or "").strip() and not item.get("citations")


def _item(part: Part) -> list[Item]:
    match part:
        case TextPart() | ImagePart() | FilePart():
            return [block_of(part)]
        case ToolCall():
            return [{"type": "tool_use", "id": part.id, "name": part.name, "input": part.args}]
        case ToolResult():
            result = {"type": "tool_result", "tool_use_id": part.call_id, "content": _result(part)}
            return [result | {"is_error": True} if part.is_error else result]
        case _:
            return []  # another provider's thinking, which nobody else can read


def _result(part: ToolResult) -> str | list[Item]:
    blocks = [block_of(block) for block in part.blocks]
    return [block for block in blocks if not _is_blank(block)] or part.text


def _parts(items: Sequence[Item], unreadable: dict[str, str] | None = None) -> list[Part]:
    parts: list[Part] = []
    calls = 0
    for position, item in enumerate(items):
        match item.get("type"):
            case "text":
                parts.append(TextPart(text=item.get("text") or ""))
            case "thinking" | "redacted_thinking":
                parts.append(ReasoningPart(text=item.get("thinking") or ""))
            case "tool_use":
                arguments = (unreadable or {}).get(str(position), item.get("input"))
                parts.append(tool_call(calls, item["id"], item.get("name") or "", arguments))
                calls += 1
            case other:
                parts.append(OpaquePart(type=str(other)))
    return parts


def _is_tool_use(item: Item) -> bool:
    return item.get("type") == "tool_use"


def usage_of(usage: Item) -> Usage:
    """Their `input_tokens` leaves out what was read from and written to the cache: it is added up."""
    cached = usage.get("cache_read_input_tokens") or 0
    written = usage.get("cache_creation_input_tokens") or 0
    return Usage(
        input_tokens=(usage.get("input_tokens") or 0) + cached + written,
        cached_tokens=cached,
        cache_write_tokens=written,
        output_tokens=usage.get("output_tokens") or 0,
        reasoning_tokens=(usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0,
    )


def priced_apart(usage: Item) -> dict[str, int]:
    """The tokens that were written to be kept for an hour, which cost more than those for five minutes."""
    written = (usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
    return {"cache_write_1h_tokens": written} if written else {}
