"""The JSON round trip every value takes through the database, and the canonical form for comparisons.

A value that would not come back equal is refused when it is stored, not found out when it is needed.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import types
import typing
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, Never, NoReturn, TypeVar, cast

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation
from pydantic_core import from_json, to_json

from agentflow.errors import ConfigurationError, InvalidInput, Unserialisable
from agentflow.roundtrip import MAX_DEPTH, Fault, find_difference, find_fault, is_too_deep, to_plain
from agentflow.stored_errors import StoredError, decode_error, encode_error, error_from

T = TypeVar("T")

_UNANNOTATED = (inspect.Signature.empty, Any, object, NoReturn, Never)
_AWAITABLES = (Awaitable, Coroutine, types.CoroutineType)


class Codec(ABC, Generic[T]):
    """How values of one type become JSON text and come back."""

    def encode(self, value: T, where: str) -> str:
        """The JSON text of `value`; `where` is the step for the message of `Unserialisable`."""
        return self.round_trip(value, where)[0]

    @abstractmethod
    def round_trip(self, value: T, where: str) -> tuple[str, T]:
        """The JSON text of `value`, and the new value that `decode` makes of it. Raises `Unserialisable`."""

    @abstractmethod
    def decode(self, text: str | bytes) -> T:
        """The value of stored text. Raises `InvalidInput` when it does not validate."""

    @abstractmethod
    def validate(self, value: object) -> T:
        """`value` itself, or what validates to the type. Raises `InvalidInput`."""

    @abstractmethod
    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema of the type; `{}` for plain JSON."""


class _PlainCodec(Codec[Any]):
    """Plain JSON, for values nobody annotated: no guess is made at what a string may have been."""

    def round_trip(self, value: Any, where: str) -> tuple[str, Any]:
        try:
            raw = to_json(value)
            back = from_json(raw, allow_inf_nan=False)
            if back == value and _is_shallow(raw) and b"\\u0000" not in raw:
                return raw.decode(), back
        except (
            Exception
        ):  # a type that JSON does not have, or its own `__eq__`: the slow way says which and where
            pass
        plain = to_plain(value)
        if isinstance(plain, Fault):
            raise _unserialisable(plain, where)
        raw = to_json(plain.value)
        return raw.decode(), from_json(raw, allow_inf_nan=False)

    def decode(self, text: str | bytes) -> Any:
        try:
            return from_json(text, allow_inf_nan=False)
        except (ValueError, TypeError) as error:  # TypeError: a str with a lone surrogate
            raise InvalidInput(f"the stored text is not JSON: {error}") from error

    def validate(self, value: object) -> Any:
        try:
            return self.round_trip(value, "the value")[1]
        except Unserialisable as error:
            raise InvalidInput(str(error)) from error

    def json_schema(self) -> dict[str, Any]:
        return {}


PLAIN: Codec[Any] = _PlainCodec()


class _TypedCodec(Codec[T]):
    """A type that pydantic knows how to write and to read."""

    def __init__(self, annotation: object, *, coerce: bool) -> None:
        self._adapter: TypeAdapter[T] = _adapter(annotation)
        self._name = _type_name(annotation)
        self._coerce = coerce
        self._load = self._adapter.validator.validate_json
        self._dump = self._adapter.serializer.to_json

    def round_trip(self, value: T, where: str) -> tuple[str, T]:
        try:
            # Data by alias and by field name both pass; written is by alias, as users of FastAPI expect.
            raw = self._dump(value, by_alias=True, warnings=False)
            back: T = self._load(raw, by_alias=True, by_name=True)
            again = self._dump(back, by_alias=True, warnings=False)
            # Equality alone takes 1.0 for 1 and 1 for True. Written again, they differ.
            if back == value and again == raw and _is_shallow(raw) and _is_storable(raw):
                return raw.decode(), back
        except Exception:  # the slow way says what is wrong and where
            pass
        return self._settle(value, where)

    def decode(self, text: str | bytes) -> T:
        try:
            return cast(T, self._load(text, by_alias=True, by_name=True))
        except ValidationError as error:
            raise InvalidInput(f"it does not validate as {self._name}: {_summary(error)}") from error

    def validate(self, value: object) -> T:
        try:
            return self._adapter.validate_python(value, by_alias=True, by_name=True)
        except ValidationError as error:
            raise InvalidInput(f"it does not validate as {self._name}: {_summary(error)}") from error

    def json_schema(self) -> dict[str, Any]:
        return self._adapter.json_schema()

    def _settle(self, value: T, where: str) -> tuple[str, T]:
        """Look closely: pass what differs only as a tuple does from a list, name what differs otherwise."""
        fault = find_fault(value)
        if fault is not None:
            raise _unserialisable(fault, where)
        outcome = self._compare(value, by_alias=True)
        if isinstance(outcome, Fault):
            # A field with a serialisation alias only is not read by that alias; by name it may come back.
            by_name = self._compare(value, by_alias=False)
            outcome = outcome if isinstance(by_name, Fault) else by_name
        if isinstance(outcome, Fault) and self._coerce and not self._is_of_type(value):
            outcome = self._coerced(value, outcome)
        if isinstance(outcome, Fault):
            raise _unserialisable(outcome, where)
        return outcome

    def _compare(self, value: T, *, by_alias: bool) -> tuple[str, T] | Fault:
        try:
            raw = self._dump(value, by_alias=by_alias, warnings=False)
            back: T = self._load(raw, by_alias=True, by_name=True)
        except ValidationError as error:
            return Fault("$", f"{_short(value)} does not come back as {self._name}: {_summary(error)}")
        except Exception as error:
            return Fault("$", f"{_short(value)} cannot be written as {self._name}: {error}")
        fault = find_difference(value, back) or _fault_of_text(raw)
        return fault or (raw.decode(), back)

    def _is_of_type(self, value: object) -> bool:
        """Whether nothing needs to be coerced: what is wrong is in the value, as a datetime in a field of `Any`."""
        try:
            return find_difference(value, self._adapter.validate_python(value, strict=True)) is None
        except Exception:  # a validator of the user's may raise anything
            return False

    def _coerced(self, value: object, first: Fault) -> tuple[str, T] | Fault:
        try:
            coerced: T = self._load(to_json(value), by_alias=True, by_name=True)
        except ValidationError as error:
            return Fault("$", f"it does not validate as {self._name}: {_summary(error)}")
        except Exception:
            return first
        return find_fault(coerced) or self._compare(coerced, by_alias=True)


class _FaithfulCodec(_TypedCodec[T]):
    """A type of our own, all of whose values come back equal: what is written is not read to see whether they do."""

    def round_trip(self, value: T, where: str) -> tuple[str, T]:
        try:
            raw = self._dump(value, by_alias=True, warnings=False)
            if _is_shallow(raw) and _is_storable(raw):
                return raw.decode(), value
        except Exception:  # the slow way says what is wrong and where
            pass
        return self._settle(value, where)


def faithful_codec(annotation: type[T]) -> Codec[T]:
    """The codec of a type whose values are plain JSON in all their fields of `Any`, and differ in nothing from what
    their JSON is read as. A value that was just stored is then the one that was given, not a copy."""
    return _FaithfulCodec(annotation, coerce=False)


def codec_for(annotation: object, *, coerce: bool = False) -> Codec[Any]:
    """The codec of a type; plain JSON for `Any` and a missing annotation; `Awaitable[T]` counts as `T`.

    A value has to be of the type. With `coerce` it may also be what validates to it, as a dict does with
    `output=Model`. Raises `ConfigurationError` for a type that has no JSON form.
    """
    try:
        return _cached_codec(annotation, coerce)
    except TypeError:  # not hashable, as Annotated[int, [1]] is
        return _make_codec(annotation, coerce)


def codec_for_return(function: Callable[..., object]) -> Codec[Any]:
    """The codec of what a function returns, by its return annotation; a class returns its instances."""
    return codec_for(return_annotation(function))


def return_annotation(function: Callable[..., object]) -> object:
    """A callable's return annotation, `inspect.Signature.empty` without one; strings are resolved.

    Raises `ConfigurationError` for a string with a name that cannot be found.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, type):
        return function
    plain = _plain_function(function)
    if plain is None:
        return inspect.Signature.empty
    annotation = plain.__annotations__.get("return", inspect.Signature.empty)
    if annotation is None or annotation is inspect.Signature.empty or isinstance(annotation, type):
        return annotation
    try:
        return _resolved[plain]
    except KeyError:
        return _resolved.setdefault(plain, _resolve(plain, annotation))


def loads(text: str | bytes) -> Any:
    """Plain JSON from outside.

    Raises `InvalidInput` for what is malformed, not finite, nested over 100 deep or not storable.
    """
    try:
        value = from_json(text, allow_inf_nan=False)
    except (ValueError, TypeError) as error:  # TypeError: a str with a lone surrogate
        if "recursion limit" in str(error):
            raise InvalidInput(f"the JSON is nested deeper than {MAX_DEPTH}") from None
        raise InvalidInput(f"this is not JSON: {error}") from None
    raw = text if isinstance(text, bytes) else text.encode()
    check_depth(value)
    # 1e400 is legal JSON and reads as infinity, whatever the reader was told about infinities.
    if b"\\u0000" in raw or b"\x00" in raw or b"Infinity" in to_json(value):
        fault = find_fault(value)
        if fault is not None:
            raise InvalidInput(f"{fault.path}: {fault.reason}")
    return value


def size_of(text: str) -> int:
    """How many bytes a JSON text has where it is stored: limits are of bytes, not of characters."""
    return len(text) if text.isascii() else len(text.encode())


def check_depth(value: object) -> None:
    """Raise `InvalidInput` when a JSON value is nested over 100 deep."""
    if is_too_deep(value):
        raise InvalidInput(f"the JSON is nested deeper than {MAX_DEPTH}")


def canonical_json(value: object) -> str:
    """One text for equal JSON values: sorted keys, no spaces, numbers by value.

    So `1.0` is `1`, but neither `"1"` nor true. Raises `Unserialisable` for what is not plain JSON.
    """
    # Every value of an arriving event comes by here alone; most are of these types.
    if type(value) is str and value.isascii() and "\x00" not in value:
        return _canonical.encode(value)
    if type(value) is int and -(2**63) < value < 2**63:
        return str(value)
    plain = to_plain(value, numbers_by_value=True)
    if isinstance(plain, Fault):
        raise _unserialisable(plain, "canonical JSON")
    return _canonical.encode(plain.value)


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


# json.dumps makes a new one for each call with these, at twice the cost of the text.
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_resolved: weakref.WeakKeyDictionary[types.FunctionType, object] = weakref.WeakKeyDictionary()


@functools.lru_cache(maxsize=1024)
def _cached_codec(annotation: object, coerce: bool) -> Codec[Any]:
    return _make_codec(annotation, coerce)


def _make_codec(annotation: object, coerce: bool) -> Codec[Any]:
    if isinstance(annotation, str):
        raise ConfigurationError(f"the annotation {annotation!r} is a string: give the type itself")
    if typing.get_origin(annotation) in _AWAITABLES_ORIGINS:
        return codec_for(typing.get_args(annotation)[-1], coerce=coerce)
    if annotation in _AWAITABLES or any(annotation is missing for missing in _UNANNOTATED):
        return PLAIN
    return _TypedCodec(type(None) if annotation is None else annotation, coerce=coerce)


_AWAITABLES_ORIGINS = tuple(
    typing.get_origin(kind[int] if kind is Awaitable else kind) or kind for kind in _AWAITABLES
)


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError) as error:
        raise ConfigurationError(
            f"{_type_name(annotation)} has no JSON form ({error.message}): "
            "use a pydantic model, a dataclass or plain types"
        ) from error


def _plain_function(function: Callable[..., object]) -> types.FunctionType | None:
    """The function with the annotations: of a method, of an object with `__call__`, under decorators."""
    unwrapped: Any = inspect.unwrap(function)
    if isinstance(unwrapped, types.MethodType):
        unwrapped = inspect.unwrap(unwrapped.__func__)
    elif not isinstance(unwrapped, types.FunctionType):
        unwrapped = inspect.unwrap(type(unwrapped).__call__)
    return unwrapped if isinstance(unwrapped, types.FunctionType) else None


def _resolve(function: types.FunctionType, annotation: object) -> object:
    local = {
        name: _content(cell)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    }
    local |= {parameter.__name__: parameter for parameter in getattr(function, "__type_params__", ())}
    holder = types.SimpleNamespace(__annotations__={"return": annotation})
    try:
        return typing.get_type_hints(holder, function.__globals__, local, include_extras=True)["return"]
    except Exception as error:
        raise ConfigurationError(
            f"the return annotation {annotation!r} of {function.__module__}.{function.__qualname__} "
            f"cannot be resolved ({error}): import the name at module level, outside `if TYPE_CHECKING`, "
            "or pass output="
        ) from error


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # a variable the enclosing function has not set yet
        return None


def _is_shallow(raw: bytes) -> bool:
    """Whether JSON is not nested too deep. Raises `ValueError` where it is far too deep."""
    return (
        len(raw) <= 2 * MAX_DEPTH
        or raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH
        or not is_too_deep(from_json(raw))
    )


def _is_storable(raw: bytes) -> bool:
    return b"\\u0000" not in raw and b"Infinity" not in raw and b"NaN" not in raw


def _fault_of_text(raw: bytes) -> Fault | None:
    """What the JSON text itself may not hold, such as a bare NaN that a model's configuration let through."""
    try:
        return find_fault(from_json(raw, allow_inf_nan=False))
    except ValueError as error:
        if "recursion limit" in str(error):
            return Fault("$", f"it is nested deeper than {MAX_DEPTH}")
        return Fault("$", f"its text is not JSON: {error}")


def _unserialisable(fault: Fault, where: str) -> Unserialisable:
    return Unserialisable(f"{where}: at {fault.path}: {fault.reason}")


def _summary(error: ValidationError) -> str:
    """The first complaints of pydantic on one line."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    told = "; ".join(f"{_location(item['loc'])}{item['msg']}" for item in found[:3])
    return told + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _location(location: tuple[int | str, ...]) -> str:
    return f"{'.'.join(map(str, location))}: " if location else ""


def _short(value: object) -> str:
    return f"a {type(value).__name__}"


def _type_name(annotation: object) -> str:
    return (
        annotation.__name__
        if isinstance(annotation, type) and not typing.get_args(annotation)
        else str(annotation)
    )


__all__ = [
    "PLAIN",
    "Codec",
    "StoredError",
    "canonical_json",
    "check_depth",
    "codec_for",
    "codec_for_return",
    "decode_error",
    "digest",
    "encode_error",
    "error_from",
    "faithful_codec",
    "loads",
    "return_annotation",
]
