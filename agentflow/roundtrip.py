"""The close look at a value that JSON would change: where it is, and what is wrong with it.

Only the slow way of the codec comes here: it walks a value and names a place such as `$.items[3].when`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

MAX_DEPTH = 100
_LONGEST_INTEGER = 4300  # digits that Python and pydantic read back from text
_LARGEST_SAFE = 10**_LONGEST_INTEGER
_SHOWN = 80


@dataclass(frozen=True)
class Fault:
    """A place in a value, and why it cannot be stored."""

    path: str
    reason: str


@dataclass(frozen=True)
class Plain:
    """A value of dicts, lists, str, int, float, bool and None alone."""

    value: Any


class _Refused(Exception):
    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.fault = Fault(path, reason)


def to_plain(value: object, *, numbers_by_value: bool = False) -> Plain | Fault:
    """The value as plain JSON, its tuples as lists; or the first thing in it that is not plain JSON.

    With `numbers_by_value` a float without a fraction becomes the int it equals.
    """
    try:
        return Plain(_plain(value, "$", 0, numbers_by_value))
    except _Refused as refused:
        return refused.fault


def find_fault(value: object) -> Fault | None:
    """What no type can bring through JSON text and both databases: NaN, surrogates, NUL, deep nesting."""
    todo: list[tuple[str, object, int]] = [("$", value, 0)]
    while todo:
        path, item, depth = todo.pop()
        if isinstance(item, str):
            if reason := _fault_of_str(item):
                return Fault(path, reason)
        elif isinstance(item, float | Decimal | int):
            if reason := _fault_of_number(item):
                return Fault(path, reason)
        elif (inner := _children(item, path)) is not None:
            if depth == MAX_DEPTH:
                return Fault(_shorten(path), f"it is nested deeper than {MAX_DEPTH}")
            for child_path, child in inner:
                if child_path is None:
                    return Fault(path, f"the key {_shown(child)}: {_fault_of_str(str(child))}")
                todo.append((child_path, child, depth + 1))
    return None


def find_difference(sent: object, back: object, path: str = "$") -> Fault | None:
    """Where a value came back as another one. A tuple may come back as a list, a whole number as a float.

    Both are values `find_fault` has passed, so they are not deep.
    """
    if isinstance(sent, Mapping) and isinstance(back, Mapping):
        return _difference_of_mappings(sent, back, path)
    if isinstance(sent, list | tuple) and isinstance(back, list | tuple):
        if isinstance(back, tuple) and not isinstance(sent, tuple):
            return Fault(path, "the annotation says tuple, this is a list")
        if len(sent) != len(back):
            return Fault(path, f"{len(sent)} items came back as {len(back)}")
        pairs = (
            find_difference(a, b, f"{path}[{n}]") for n, (a, b) in enumerate(zip(sent, back, strict=True))
        )
        return next(filter(None, pairs), None)
    if isinstance(sent, BaseModel) and type(sent) is type(back):
        assert isinstance(back, BaseModel)
        return _difference_of_models(sent, back, path)
    if dataclasses.is_dataclass(sent) and type(sent) is type(back):
        names = [field.name for field in dataclasses.fields(sent)]
        return _difference_of_mappings(_fields(sent, names), _fields(back, names), path)
    if _is_same(sent, back):
        return None
    return Fault(path, f"{_described(sent)} came back as {_described(back)}")


def storable_text(text: str) -> str:
    """The text with U+FFFD for what neither database can keep: NUL, and half a surrogate pair, which has no UTF-8."""
    return whole_characters(text).replace("\x00", "\N{REPLACEMENT CHARACTER}")


def whole_characters(text: str) -> str:
    """The text with U+FFFD for half a surrogate pair; halves that were told apart become the character they are."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Plain JSON, all its texts changed."""
    match value:
        case str():
            return change(value)
        case dict():
            return {change(key): with_texts(item, change) for key, item in value.items()}
        case list():
            return [with_texts(item, change) for item in value]
        case _:
            return value


def is_too_deep(value: object) -> bool:
    """Whether a plain JSON value is nested deeper than `MAX_DEPTH`."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return False
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return any(isinstance(item, dict | list) for item in level)


def child_path(path: str, key: object) -> str:
    """The place one key or index further in."""
    if isinstance(key, int) and not isinstance(key, bool):
        return f"{path}[{key}]"
    return f"{path}.{key}" if isinstance(key, str) and key.isidentifier() else f"{path}[{_shown(key)}]"


def _plain(value: object, path: str, depth: int, by_value: bool) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if reason := _fault_of_str(value):
            raise _Refused(path, reason)
        return str.__str__(value)
    if isinstance(value, int):
        if reason := _fault_of_number(value):
            raise _Refused(path, reason)
        return int(value)
    if isinstance(value, float):
        if reason := _fault_of_number(value):
            raise _Refused(path, reason)
        return int(value) if by_value and value.is_integer() else float(value)
    if not isinstance(value, dict | list | tuple):
        raise _Refused(path, f"{_a(value)} is not plain JSON: {_remedy(value)}")
    if depth == MAX_DEPTH:
        raise _Refused(_shorten(path), f"it is nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        return {
            _plain_key(key, path): _plain(item, child_path(path, key), depth + 1, by_value)
            for key, item in value.items()
        }
    return [_plain(item, f"{path}[{n}]", depth + 1, by_value) for n, item in enumerate(value)]


def _plain_key(key: object, path: str) -> str:
    if not isinstance(key, str):
        raise _Refused(
            path, f"the key {_shown(key)} is {_a(key)}: JSON keys are str, annotate the return type"
        )
    if reason := _fault_of_str(key):
        raise _Refused(path, f"the key {_shown(key)}: {reason}")
    return str.__str__(key)


def _children(item: object, path: str) -> Iterator[tuple[str | None, object]] | None:
    """The parts of a container with their places; alone and without a place: a key that cannot be stored."""
    if isinstance(item, BaseModel):
        parts: Iterator[tuple[object, object]] = iter(
            (item.__dict__ | (item.__pydantic_extra__ or {})).items()
        )
    elif dataclasses.is_dataclass(item) and not isinstance(item, type):
        parts = iter(_fields(item, [field.name for field in dataclasses.fields(item)]).items())
    elif isinstance(item, Mapping):
        bad = next((key for key in item if isinstance(key, str) and _fault_of_str(key)), None)
        if bad is not None:
            return iter([(None, bad)])
        parts = iter(item.items())
    elif isinstance(item, list | tuple):
        parts = iter(enumerate(item))
    elif isinstance(item, Set):
        return ((f"{path}[*]", child) for child in item)
    else:
        return None
    return ((child_path(path, key), child) for key, child in parts)


def _difference_of_mappings(sent: Mapping[Any, Any], back: Mapping[Any, Any], path: str) -> Fault | None:
    for key, value in sent.items():
        if key not in back:
            return Fault(child_path(path, key), "it did not come back at all")
        # 1, 1.0 and True find each other in a dict; only the key of the same type is the same key.
        if not isinstance(key, str) and not any(type(other) is type(key) and other == key for other in back):
            return Fault(path, f"the key {_shown(key)} came back as another type")
        if fault := find_difference(value, back[key], child_path(path, key)):
            return fault
    added = next((key for key in back if key not in sent), None)
    return None if added is None else Fault(child_path(path, added), "it came back although it was not there")


def _difference_of_models(sent: BaseModel, back: BaseModel, path: str) -> Fault | None:
    names = list(type(sent).model_fields)
    fault = _difference_of_mappings(_fields(sent, names), _fields(back, names), path)
    fault = fault or _difference_of_mappings(
        sent.__pydantic_extra__ or {}, back.__pydantic_extra__ or {}, path
    )
    if fault is None and not _equal(sent.__pydantic_private__, back.__pydantic_private__):
        return Fault(path, f"private attributes of {type(sent).__name__} do not come back")
    return fault


def _fields(item: object, names: list[str]) -> dict[str, object]:
    return {name: getattr(item, name) for name in names if hasattr(item, name)}


def _is_same(sent: object, back: object) -> bool:
    if isinstance(sent, datetime) and isinstance(back, datetime) and sent.tzinfo and back.tzinfo:
        # Python never calls two datetimes of different zones equal in the hour that a clock change repeats.
        return sent.astimezone(UTC) == back.astimezone(UTC)
    if not _equal(sent, back):
        return False
    if isinstance(sent, int) and not isinstance(sent, bool) and type(back) is float:
        return True  # `-> float` takes an int, as type checkers do
    return isinstance(sent, type(back)) or (isinstance(sent, Set) and isinstance(back, Set))


def _equal(sent: object, back: object) -> bool:
    try:
        return bool(sent == back)
    except Exception:  # arrays answer with an array
        return False


def _fault_of_str(text: str) -> str | None:
    if "\x00" in text:
        return "it holds a NUL character, which PostgreSQL cannot store"
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it holds a lone surrogate, which has no UTF-8"
    return None


def _fault_of_number(number: float | Decimal) -> str | None:
    if isinstance(number, int):
        too_long = not -_LARGEST_SAFE < number < _LARGEST_SAFE
        return f"an integer of more than {_LONGEST_INTEGER} digits" if too_long else None
    finite = number.is_finite() if isinstance(number, Decimal) else math.isfinite(number)
    return None if finite else f"{number} is not a JSON number"


def _remedy(value: object) -> str:
    if isinstance(value, Set):
        return "make it a list, or annotate the return type"
    if isinstance(value, bytes | bytearray | memoryview):
        return "encode it as text (base64), or annotate the return type"
    return "annotate the return type (or pass output=), or return dicts, lists, str, numbers, bool and None"


def _described(value: object) -> str:
    return f"{_shown(value)} ({type(value).__name__})"


def _a(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _shown(value: object) -> str:
    try:
        text = ascii(value)
    except Exception:  # somebody's __repr__
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _shorten(path: str) -> str:
    return path if len(path) <= _SHOWN else f"{path[: _SHOWN - 3]}..."
