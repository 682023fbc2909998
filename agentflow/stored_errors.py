"""Exceptions as JSON text: agentflow's own come back as their class, all others as `StepError`.

Nothing is imported by a name from the stored text: a class is looked up among those of `agentflow.errors`.
"""

from __future__ import annotations

import functools
import inspect
import traceback as traceback_module
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json

from agentflow import errors
from agentflow.errors import AgentflowError, InvalidInput, NonRetriable, RetryAfter, RunFailed, StepError
from agentflow.roundtrip import Plain, to_plain

MESSAGE_CAP = 4_000
TRACEBACK_CAP = 16_000
ATTRIBUTES_CAP = 16_000

_OWN: dict[str, type[AgentflowError]] = {
    name: kind
    for name, kind in vars(errors).items()
    # What only says how to retry a step is stored as the step's failure; the root says nothing.
    if isinstance(kind, type) and issubclass(kind, AgentflowError)
    if kind not in (AgentflowError, NonRetriable, RetryAfter)
}
_attribute_types: dict[tuple[type[AgentflowError], str], object] = {}


@dataclass(frozen=True)
class StoredError:
    """What the text of an exception holds. `own` is the class of `agentflow.errors` it comes back as."""

    name: str
    message: str
    traceback: str | None
    attributes: dict[str, Any]
    own: str | None


def encode_error(error: BaseException, *, traceback: bool = True) -> str:
    """The JSON text of an exception: name, message, traceback, and those attributes that are plain JSON.

    Each part is capped, except the attributes of agentflow's own errors.
    """
    own = _own_class(type(error))
    stored = {
        "name": type(error).__name__,
        "message": _storable(_message(error), MESSAGE_CAP),
        "traceback": _traceback(error) if traceback else None,
        "attributes": _own_attributes(error) if own else _foreign_attributes(error),
        "own": own.__name__ if own else None,
    }
    return to_json(stored).decode()


def decode_error(text: str | bytes) -> StoredError:
    """The stored exception as a value. Raises `InvalidInput` for a text that is none."""
    try:
        return _stored_error().validate_json(text)
    except ValidationError as error:
        raise InvalidInput(f"the stored text is not an exception: {error.errors()[0]['msg']}") from error


def error_from(stored: StoredError, *, step_id: str, attempts: int = 1) -> AgentflowError:
    """What a step call raises for a stored exception, on the first run and on replay alike."""
    kind = _OWN.get(stored.own or "")
    if kind is None:
        return StepError(
            step_id,
            name=stored.name,
            message=stored.message,
            attempts=attempts,
            attributes=stored.attributes,
            traceback=stored.traceback,
        )
    own = kind.__new__(kind, stored.message)
    values = _defaults(kind) | {name: _revive(kind, name, value) for name, value in stored.attributes.items()}
    for name, value in values.items():
        if _is_public(name):
            setattr(own, name, value)
    return own


def register_error_attribute(kind: type[AgentflowError], name: str, annotation: object) -> None:
    """Tell the type of an attribute of an own error, from a layer that this one may not import."""
    _attribute_types[kind, name] = annotation


@functools.cache
def _stored_error() -> TypeAdapter[StoredError]:
    return TypeAdapter(StoredError)


def _own_class(kind: type[BaseException]) -> type[AgentflowError] | None:
    """The class itself or the nearest base of it that `agentflow.errors` knows."""
    for base in kind.__mro__:
        if base in (AgentflowError, NonRetriable, RetryAfter):
            return None
        if _OWN.get(base.__name__) is base:
            return base
    return None


def _own_attributes(error: BaseException) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for name, value in _public_attributes(error).items():
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json")
        plain = to_plain(value.isoformat() if isinstance(value, datetime) else value)
        if isinstance(plain, Plain):
            attributes[name] = plain.value
    return attributes


def _foreign_attributes(error: BaseException) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    left = ATTRIBUTES_CAP
    for name, value in _public_attributes(error).items():
        plain = to_plain({name: value})
        if isinstance(plain, Plain) and (size := len(to_json(plain.value))) <= left:
            attributes |= plain.value
            left -= size
    return attributes


def _public_attributes(error: BaseException) -> dict[str, Any]:
    return {name: value for name, value in getattr(error, "__dict__", {}).items() if _is_public(name)}


def _is_public(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_") and not hasattr(BaseException, name)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # somebody's __str__
        return f"<{type(error).__name__} without a printable message>"


def _traceback(error: BaseException) -> str | None:
    if error.__traceback__ is None:
        return None
    try:
        # A long message must not push the frames out.
        text = "".join(_storable(part, MESSAGE_CAP) for part in traceback_module.format_exception(error))
    except Exception:  # somebody's __str__ again
        text = "".join(traceback_module.format_tb(error.__traceback__))
    # The end says what happened and where; the beginning is the frames of the worker.
    return _storable(text if len(text) <= TRACEBACK_CAP else f"...{text[3 - TRACEBACK_CAP :]}", TRACEBACK_CAP)


def _storable(text: str, cap: int) -> str:
    clean = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
    return clean if len(clean) <= cap else f"{clean[: cap - 3]}..."


def _defaults(kind: type[AgentflowError]) -> dict[str, Any]:
    """The fields that a row of an older version may lack."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    named = [item for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]
    return {
        item.name: None if item.default is item.empty else item.default
        for item in named
        if item.name != "message" or kind is StepError
    }


def _revive(kind: type[AgentflowError], name: str, value: Any) -> Any:
    annotation = _attribute_type(kind, name)
    if annotation is None or value is None:
        return value
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise InvalidInput(f"the stored {kind.__name__}.{name} does not validate: {error}") from error


def _attribute_type(kind: type[AgentflowError], name: str) -> Any:
    if kind is RunFailed and name == "error":
        from agentflow.runs import ErrorInfo

        return ErrorInfo
    if kind is errors.AlreadyDecided and name == "request":
        from agentflow.approvals import ApprovalRequest  # it imports the codec

        return ApprovalRequest
    if kind is errors.BudgetExceeded and name == "resets_at":
        return datetime
    return _attribute_types.get((kind, name))


__all__ = [
    "ATTRIBUTES_CAP",
    "MESSAGE_CAP",
    "TRACEBACK_CAP",
    "StoredError",
    "decode_error",
    "encode_error",
    "error_from",
    "register_error_attribute",
]
