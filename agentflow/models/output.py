"""Structured output: what a model is told of the type it is to fill, and how its answer becomes that type.

Three ways, chosen by what the model can do: its own JSON Schema mode, a tool called `final_answer`, or
words in the instructions. `lower_output` turns the last two into an ordinary request, so that a provider
need only know the first.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from agentflow.errors import ConfigurationError, OutputInvalid
from agentflow.models.messages import Message, TextPart, ToolCall, ToolResult
from agentflow.models.protocol import Capabilities
from agentflow.models.response import ModelRequest, ModelResponse, OutputMode, OutputSpec, ToolSpec

FINAL_ANSWER = "final_answer"

T = TypeVar("T")


def output_spec(output: Any, *, capabilities: Capabilities) -> OutputSpec | None:
    """What to ask for so that the answer can become `output` (any type pydantic knows); None for text."""
    if output is None or output is str:
        return None
    try:
        return _kept_spec(output, _mode_for(capabilities))
    except TypeError:  # Annotated[..., something unhashable]
        return _spec(output, _mode_for(capabilities))


def lower_output(request: ModelRequest) -> ModelRequest:
    """The same request with an output by tool or by words written out; a native one is left to the
    provider.
    """
    spec = request.output
    if spec is None:
        return request
    if any(tool.name == FINAL_ANSWER for tool in request.tools):
        raise ConfigurationError(
            f"a tool is called {FINAL_ANSWER!r}, which is the tool of the structured output: rename it"
        )
    if spec.mode == "native":
        return request
    if spec.mode == "tool":
        return _with_final_answer_tool(request, spec)
    told = (
        "Answer with one JSON object and nothing else. It must be valid by this JSON Schema:\n"
        f"{json.dumps(spec.schema)}"
    )
    instructions = f"{request.instructions}\n\n{told}" if request.instructions else told
    return request.model_copy(update={"instructions": instructions, "output": None})


def with_output(response: ModelResponse, spec: OutputSpec | None, output: Any) -> ModelResponse:
    """The response with its `output` filled in; raises `OutputInvalid(.response)` when the answer does not
    validate.

    A turn that is not the last one (ordinary tool calls, a pause) and a refusal have no output. The call of
    the `final_answer` tool is taken out of `tool_calls` and gets its result in `messages`, so that the
    conversation can go on after it.
    """
    if spec is None:
        return response.model_copy(update={"output": response.text})
    final = next((call for call in response.tool_calls if call.name == FINAL_ANSWER), None)
    # By any mode: a provider may use the tool where its own schema mode cannot express the type.
    if final is not None:
        value = _validate(_unwrapped(_arguments(final, response), spec, response), output, response)
        return _final(response, final, value)
    if response.tool_calls or response.finish_reason in ("pause", "refusal", "content_filter"):
        return response
    value = _validate(_unwrapped(_json_in(response), spec, response), output, response)
    return response.model_copy(update={"output": value})


def ask_again(invalid: OutputInvalid) -> list[Message]:
    """What to add to the conversation after an invalid output, so that the model can mend it."""
    response = invalid.response
    if response is None:
        return []
    told = f"{invalid}\nAnswer again, and mend this."
    final = next((call for call in response.tool_calls if call.name == FINAL_ANSWER), None)
    if final is not None:
        return [
            *response.messages,
            Message(role="tool", parts=[ToolResult(call_id=final.id, content=told, is_error=True)]),
        ]
    return [*response.messages, Message(role="user", parts=[TextPart(text=told)])]


def _spec(output: Any, mode: OutputMode) -> OutputSpec:
    schema = _adapter(output).json_schema()
    wrapped = schema.get("type") != "object"
    return OutputSpec(
        name=_schema_name(output),
        schema=_wrapped(schema) if wrapped else schema,
        mode=mode,
        wrapped=wrapped,
    )


_kept_spec = lru_cache(maxsize=256)(_spec)
"""A schema takes pydantic long to make, and each turn asks for it."""


def _mode_for(capabilities: Capabilities) -> OutputMode:
    if capabilities.json_schema:
        return "native"
    return "tool" if capabilities.tools else "prompted"


def _with_final_answer_tool(request: ModelRequest, spec: OutputSpec) -> ModelRequest:
    tool = ToolSpec(
        name=FINAL_ANSWER, description="Give the final answer. It ends the task.", schema=spec.schema
    )
    settings = request.settings
    if settings.tool_choice in (None, "auto"):
        settings = settings.model_copy(update={"tool_choice": "required"})
    return request.model_copy(update={"tools": (*request.tools, tool), "settings": settings, "output": None})


def _final(response: ModelResponse, final: ToolCall, value: object) -> ModelResponse:
    others = [call for call in response.tool_calls if call is not final]
    answered = Message(
        role="tool", parts=[ToolResult(call_id=final.id, content="Taken as the final answer.")]
    )
    return response.model_copy(
        update={
            "output": value,
            "tool_calls": others,
            "messages": [*response.messages, answered],
            "finish_reason": "tool_calls" if others else "stop",
        }
    )


def _arguments(final: ToolCall, response: ModelResponse) -> object:
    if final.invalid_args is not None:
        raise OutputInvalid(_shortly("the final answer is not valid JSON", response), response=response)
    return final.args


_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


def _json_in(response: ModelResponse) -> object:
    text = response.text.strip()
    candidates = [text, *_FENCED.findall(text), text[text.find("{") : text.rfind("}") + 1]]
    for candidate in candidates:
        try:
            return from_json(candidate)
        except ValueError:
            continue
    raise OutputInvalid(_shortly("the answer is not valid JSON", response), response=response)


def _shortly(what: str, response: ModelResponse) -> str:
    cut = " (it was cut at max_tokens)" if response.finish_reason == "length" else ""
    return f"{what}{cut}: {response.text[:200]!r}"


def _unwrapped(value: object, spec: OutputSpec, response: ModelResponse) -> object:
    if not spec.wrapped:
        return value
    if not isinstance(value, dict) or "value" not in value:
        raise OutputInvalid("the answer has no property 'value', as its schema demands", response=response)
    return value["value"]


def _validate(value: object, output: Any, response: ModelResponse) -> object:
    try:
        # As JSON, not as Python: a strict model takes a datetime from its text only there.
        return _adapter(output).validate_json(json.dumps(value))
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'answer'}: {e['msg']}" for e in error.errors())
        raise OutputInvalid(f"the answer does not validate: {reasons}", response=response) from error


def _wrapped(schema: dict[str, Any]) -> dict[str, Any]:
    schema = dict(schema)
    definitions = schema.pop("$defs", None)
    return {
        "type": "object",
        "properties": {"value": schema},
        "required": ["value"],
        "additionalProperties": False,
    } | ({"$defs": definitions} if definitions else {})


def _schema_name(output: Any) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]", "_", getattr(output, "__name__", "output"))[:64]


@lru_cache(maxsize=256)
def _hashable_adapter(output: Any) -> TypeAdapter[Any]:
    return TypeAdapter(output)


def _adapter(output: Any) -> TypeAdapter[Any]:
    try:
        return _hashable_adapter(output)
    except TypeError:  # Annotated[..., something unhashable]
        return TypeAdapter(output)
