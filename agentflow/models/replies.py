"""Replies written by hand, and the raw answer they stand for: what functions and scripts answer in a
model's place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from agentflow.errors import ConfigurationError
from agentflow.models.media import characters_that_count
from agentflow.models.messages import Message, Part, TextPart, ToolCall
from agentflow.models.output import FINAL_ANSWER
from agentflow.models.response import ModelRequest, ModelResponse, Usage
from agentflow.models.values import canonical_json

Reply: TypeAlias = str | ToolCall | BaseModel | dict[str, Any] | Sequence[Any] | BaseException | ModelResponse
"""Text, a tool call or several, a structured output (model, dict, list), an exception to raise, a whole
response.
"""


def encode_reply(reply: Reply, request: ModelRequest, *, name: str) -> dict[str, Any]:
    """The raw answer of a model called `name` that replies so; raises the reply if it is an exception."""
    if isinstance(reply, BaseException):
        raise reply
    if isinstance(reply, ModelResponse):
        whole = reply.model_copy(update=_missing_in(reply))
        raw = whole.model_dump(mode="json", exclude={"output", "raw"})
        raw["model"] = reply.model or name
    else:
        raw = _raw_of(_parts(reply, request), request, name=name)
    if not raw["provider_id"]:
        digest = hashlib.sha256(canonical_json([name, request.digest(), raw]).encode())
        raw["provider_id"] = f"reply_{digest.hexdigest()[:24]}"
    return raw


def decode_reply(raw: dict[str, Any]) -> ModelResponse:
    """The response in a raw answer of `encode_reply`."""
    response = ModelResponse.model_validate({**raw, "raw": raw})
    missing = {
        name: value for name, value in _missing_in(response).items() if value != getattr(response, name)
    }
    return response.model_copy(update=missing) if missing else response


def _missing_in(response: ModelResponse) -> dict[str, Any]:
    """What makes text, calls and messages agree: a response written by hand may give only one of them."""
    if response.messages:
        said = response.messages[-1]
        if response.text and response.tool_calls:
            return {}
        return {"text": response.text or said.text, "tool_calls": response.tool_calls or said.tool_calls}
    calls = _numbered(response.tool_calls)
    parts: list[Part] = [TextPart(text=response.text)] if response.text or not calls else []
    finish_reason = "tool_calls" if calls and response.finish_reason == "stop" else response.finish_reason
    return {
        "tool_calls": calls,
        "messages": [Message(role="assistant", parts=[*parts, *calls])],
        "finish_reason": finish_reason,
    }


def _raw_of(parts: list[str | ToolCall], request: ModelRequest, *, name: str) -> dict[str, Any]:
    """What the JSON of the response would be, as it says text and calls alone: a test makes thousands of them."""
    text = "".join([part for part in parts if isinstance(part, str)])
    calls = _numbered([part for part in parts if isinstance(part, ToolCall)])
    called = [call.model_dump(mode="json") for call in calls]
    said = [{"kind": "text", "text": text}] if text or not calls else []
    usage = Usage(
        input_tokens=_tokens(characters_that_count(len(request.canonical), request.media)),
        output_tokens=_tokens(len(text))
        + sum([_tokens(len(call.name) + len(canonical_json(call.args))) for call in calls]),
    )
    return {
        "text": text,
        "tool_calls": called,
        "messages": [{"role": "assistant", "parts": [*said, *called], "origin": None}],
        "usage": usage.model_dump(),
        "cost": None,
        "finish_reason": "tool_calls" if calls else "stop",
        "provider_id": None,
        "model": name,
    }


def _parts(reply: object, request: ModelRequest) -> list[str | ToolCall]:
    if isinstance(reply, str | ToolCall):
        return [reply]
    if isinstance(reply, list | tuple) and reply and all(isinstance(part, str | ToolCall) for part in reply):
        return list(reply)
    if isinstance(reply, BaseModel | dict | list | tuple):
        return [_structured(to_jsonable_python(reply), request)]
    raise ConfigurationError(
        f"a model cannot reply with {type(reply).__name__}: give a str, ToolCall, list, pydantic model, "
        "dict, exception or ModelResponse"
    )


def _structured(value: Any, request: ModelRequest) -> str | ToolCall:
    spec = request.output
    if spec is None:
        return canonical_json(value)
    # A list or number may be given bare or, as the model would write it, inside its wrapper.
    if spec.wrapped and not (isinstance(value, dict) and value.keys() == {"value"}):
        value = {"value": value}
    return ToolCall(name=FINAL_ANSWER, args=value) if spec.mode == "tool" else canonical_json(value)


def _numbered(calls: Sequence[ToolCall]) -> list[ToolCall]:
    return [
        call
        if call.id and call.index == index
        else call.model_copy(update={"index": index, "id": call.id or f"call_{index}"})
        for index, call in enumerate(calls)
    ]


def _tokens(characters: int) -> int:
    """About as many as a real model would count: four characters each."""
    return (characters + 3) // 4
