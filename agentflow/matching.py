"""`match="data.user_id"`: dotted paths into events, and the short text by which the store finds who waits.

A wait keeps the correlation of its path and value; an arriving event brings those of all it holds, so one
indexed query finds the waits that match, however many there are.
"""

from __future__ import annotations

import re
from enum import Enum
from hashlib import sha256
from typing import Any, Final

from agentflow.codec import canonical_json
from agentflow.errors import ConfigurationError, Unserialisable
from agentflow.roundtrip import MAX_DEPTH

MOST_CORRELATIONS: Final = 2_000
LONGEST_PATH: Final = 256

_LONGEST_VALUE: Final = 128
_MOST_TEXT: Final = (
    4 * 1024 * 1024
)  # of canonical JSON built for one event: a deep one repeats itself at each level
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)


class Missing(Enum):
    """What `find` gives for a path that leads nowhere; it equals nothing in an event, not even null."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING


def check_path(path: str) -> str:
    """A path that can match at all. Raises `ConfigurationError`."""
    if not path or not all(path.split(".")):
        raise ConfigurationError(f"the path {path!r} has an empty part: write one such as 'data.user_id'")
    if len(path) > LONGEST_PATH:
        raise ConfigurationError(f"the path {path[:80]!r}... is longer than {LONGEST_PATH} characters")
    return path


def find(path: str, event: Any) -> Any | Missing:
    """The value at a dotted path, list items by number (`data.items.0.id`), or `MISSING`."""
    if len(path) > LONGEST_PATH:
        return MISSING
    value = event
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and _INDEX.fullmatch(part) and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def is_match(path: str, trigger: Any, arriving: Any) -> bool:
    """Whether both events have the same JSON value at `path`: 1 is 1.0, but neither `"1"` nor true."""
    first, second = find(path, trigger), find(path, arriving)
    if first is MISSING or second is MISSING:
        return False
    return correlation(path, first) == correlation(path, second)


def correlation(path: str, value: Any) -> str:
    """The text for a path and a value: the same for equal JSON values, short whatever the value."""
    return _correlation(path, canonical_json(value))


def correlations(event: Any) -> list[str] | None:
    """The correlations of everything an event holds; None when that is too much: compare one by one then."""
    walk = _Walk()
    try:
        walk.text_of(event, path="", depth=0)
    except (_TooMuch, Unserialisable):
        return None
    return walk.found


def has_correlation(event: Any, wanted: str) -> bool:
    """Whether `wanted` is among all the correlations of the event, however much it holds."""
    # A path may hold "=" itself, so each of them may be the one that ends it.
    for end in (found.start() for found in re.finditer("=", wanted)):
        value = find(wanted[:end], event)
        if value is not MISSING and correlation(wanted[:end], value) == wanted:
            return True
    return False


def _correlation(path: str, text: str) -> str:
    # "#" begins no JSON value, so a hash never looks like one.
    return f"{path}={text if len(text) <= _LONGEST_VALUE else '#' + sha256(text.encode()).hexdigest()}"


class _TooMuch(Exception):
    pass


class _Walk:
    """One walk over an event: collects the correlations of its nodes, and stops when it gets too much."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._text_left = _MOST_TEXT

    def text_of(self, value: Any, *, path: str | None, depth: int) -> str:
        """The canonical JSON of a node, put together from that of its parts.

        `path` is None when `find` does not reach the node, because a key on the way is empty or holds a dot.
        """
        if depth > MAX_DEPTH:
            raise _TooMuch
        if isinstance(value, dict):
            parts = (
                f"{canonical_json(key)}:{self.text_of(value[key], path=_inner(path, key), depth=depth + 1)}"
                for key in sorted(value)
            )
            text = "{" + ",".join(parts) + "}"
        elif isinstance(value, list):
            items = (
                self.text_of(item, path=_inner(path, str(index)), depth=depth + 1)
                for index, item in enumerate(value)
            )
            text = "[" + ",".join(items) + "]"
        else:
            text = canonical_json(value)
        self._text_left -= len(text)
        if self._text_left < 0:
            raise _TooMuch
        if path:
            self._collect(path, text)
        return text

    def _collect(self, path: str, text: str) -> None:
        if len(path) <= LONGEST_PATH:
            self.found.append(_correlation(path, text))
        if len(self.found) > MOST_CORRELATIONS:
            raise _TooMuch


def _inner(path: str | None, key: str) -> str | None:
    if path is None or not key or "." in key:
        return None
    return f"{path}.{key}" if path else key
