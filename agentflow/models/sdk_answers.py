"""The answer of an SDK's call as a memo, and the SDK's own object again.

What is stored is the answer's JSON and the name of its class; OpenAI's and Anthropic's clients both build their typed
objects from that. What another SDK returns is stored as plain JSON, and is plain JSON on the first run too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from agentflow.errors import InvalidInput, Unserialisable

# The arguments that name a type to parse the answer into, and the fields that then hold the value.
_TYPE_ARGUMENTS = ("text_format", "response_format", "output_format")
_PARSED_FIELDS = ("parsed", "parsed_output")


@runtime_checkable
class SdkObject(Protocol):
    """What both SDKs' own models can do, besides being pydantic's."""

    def to_dict(self, *, mode: Literal["json"], warnings: bool) -> dict[str, object]: ...

    @classmethod
    def construct(cls, **values: Any) -> Any: ...


def encode_sdk_answer(answer: object) -> dict[str, Any]:
    """The JSON to store; raises `Unserialisable`."""
    if isinstance(answer, SdkObject) and isinstance(answer, BaseModel):
        generic = type(answer).__pydantic_generic_metadata__
        memo = {
            "type": _path(generic["origin"] or type(answer)),
            "data": answer.to_dict(mode="json", warnings=False),
        }
        of = [_path(kind) for kind in generic["args"] if isinstance(kind, type)]
        request_id = getattr(answer, "_request_id", None)
        return memo | ({"of": of} if of else {}) | ({"request_id": request_id} if request_id else {})
    try:
        return {"data": to_jsonable_python(answer)}
    except PydanticSerializationError as error:
        raise Unserialisable(f"an answer of type {type(answer).__name__} is no JSON: {error}") from error


def decode_sdk_answer(memo: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """The SDK's object again. `arguments` are the call's: a type to parse into is only known from them.

    Raises `InvalidInput` when its class is gone, or what was parsed does not fit its type any more.
    """
    if "data" not in memo:
        raise InvalidInput("what is stored is no answer of a wrapped call")
    if "type" not in memo:
        return memo["data"]
    try:
        return _rebuilt(memo, arguments)
    except ValidationError as error:
        told = "; ".join(f"{item['loc']}: {item['msg']}" for item in error.errors()[:3])
        raise InvalidInput(
            f"a stored {memo['type']} does not fit the type it is parsed into: {told}"
        ) from error
    except (ImportError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InvalidInput(f"a stored {memo['type']} cannot be built again: {error!r}") from error


def _rebuilt(memo: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    kind = _imported(memo["type"])
    parsed_into = next(
        (arguments[name] for name in _TYPE_ARGUMENTS if _is_type(arguments.get(name))),
        None,
    )
    if kind.__pydantic_generic_metadata__["parameters"]:
        if parsed_into is not None:
            kind = kind[parsed_into]
        elif "of" in memo:
            kind = kind[tuple(_imported(path) for path in memo["of"])]
    answer = kind.construct(**memo["data"])
    adapter = None if parsed_into is None else TypeAdapter(parsed_into)
    _parse_again(answer, memo["data"], adapter, _tool_types(arguments.get("tools")))
    if "request_id" in memo:
        answer._request_id = memo["request_id"]
    return answer


def _parse_again(
    item: object, data: object, adapter: TypeAdapter[Any] | None, tools: Mapping[str, type[BaseModel]]
) -> None:
    """Let what was parsed be of its type again, however deep in the answer; the SDKs do not look at it twice."""
    if isinstance(item, list) and isinstance(data, list):
        for inner, value in zip(item, data, strict=True):
            _parse_again(inner, value, adapter, tools)
    if not (isinstance(item, BaseModel) and isinstance(data, Mapping)):
        return
    for name in type(item).model_fields:
        value = data.get(name)
        if name in _PARSED_FIELDS:
            # Anthropic's is not in the JSON of its block, whose whole text it is.
            text = data.get("text") if name not in data else None if value is None else json.dumps(value)
            if adapter is not None and text is not None:
                setattr(item, name, adapter.validate_json(text))
        elif name == "parsed_arguments" and data.get("name") in tools:
            if value is not None:
                setattr(item, name, tools[data["name"]].model_validate_json(json.dumps(value)))
        elif value is not None:
            _parse_again(getattr(item, name), value, adapter, tools)


def _tool_types(tools: object) -> dict[str, type[BaseModel]]:
    """The models whose schemas were given as tools (`openai.pydantic_function_tool`), by the tool's name."""
    found: dict[str, type[BaseModel]] = {}
    for tool in tools if isinstance(tools, list | tuple) else ():
        told_as: list[Any] = [tool, tool.get("function")] if isinstance(tool, Mapping) else []
        for told in told_as:
            model = getattr(told, "model", None)
            if isinstance(model, type) and issubclass(model, BaseModel):
                found[told["name"]] = model
    return found


def _is_type(value: object) -> bool:
    """A class, or what stands for one in an annotation; not the schema that a dict tells."""
    return isinstance(value, type) or hasattr(value, "__origin__")


def _path(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found
