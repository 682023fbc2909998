"""Ids: names that sort by time (UUIDv7 behind a prefix), never secrets; and which ids are legal."""

from __future__ import annotations

import os
import re
import threading
import uuid
from collections.abc import Callable
from hashlib import sha256
from typing import Final, NewType

from agentflow.errors import InvalidInput

RunId = NewType("RunId", str)

MOST_ID_BYTES: Final = 512
_PREFIXED = re.compile(r"[a-z]{2,8}_[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_COUNTER_BITS = 42
_TAIL_BITS = 32


class IdSource:
    """Makes ids that grow within this process, also within one millisecond and when the clock steps back.

    RFC 9562, method 1: 42 bits after the milliseconds count up from a random start, 32 stay random.
    """

    def __init__(self, *, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._random_bytes = random_bytes
        self._lock = threading.Lock()
        self._millis = -1
        self._counter = 0

    def new_id(self, prefix: str, now_micros: int) -> str:
        """A new id such as `run_0192...`, for the time `now_micros`."""
        millis, counter, tail = self._next(max(0, now_micros // 1000))
        high, low = divmod(counter, 2**30)
        value = millis << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low << 32 | tail
        return f"{prefix}_{uuid.UUID(int=value)}"

    def _next(self, millis: int) -> tuple[int, int, int]:
        with self._lock:
            if millis > self._millis:
                # One bit is left free, so that a millisecond holds two trillion ids.
                self._millis, self._counter = millis, self._random(_COUNTER_BITS - 1)
            else:
                self._counter += 1
                if self._counter >> _COUNTER_BITS:
                    self._millis, self._counter = self._millis + 1, self._random(_COUNTER_BITS - 1)
            return self._millis & (2**48 - 1), self._counter, self._random(_TAIL_BITS)

    def _random(self, bits: int) -> int:
        return int.from_bytes(self._random_bytes((bits + 7) // 8), "big") >> (-bits % 8)


_source = IdSource()


def new_id(prefix: str, now_micros: int) -> str:
    """A new id of this process's one source."""
    return _source.new_id(prefix, now_micros)


def derived_id(prefix: str, now_micros: int, text: str) -> str:
    """The id that follows from a text, for what must not be made twice; it sorts by time as `new_id` does."""
    hashed = int.from_bytes(sha256(text.encode()).digest()[:16], "big")
    value = max(0, now_micros // 1000) << 80 | 0x7 << 76 | (hashed & (2**12 - 1)) << 64
    return f"{prefix}_{uuid.UUID(int=value | 0b10 << 62 | hashed >> 66)}"


def validate_id(value: object, what: str = "id") -> str:
    """An id that a user chose: any non-empty text of up to 512 bytes that a database can store.

    Raises `InvalidInput`; `what` names the place in its message.
    """
    if not isinstance(value, str):
        raise InvalidInput(f"the {what} {value!r} is a {type(value).__name__}, it has to be a str")
    if not value:
        raise InvalidInput(f"the {what} is empty")
    if len(value) > MOST_ID_BYTES or len(value.encode("utf-8", "surrogatepass")) > MOST_ID_BYTES:
        raise InvalidInput(f"the {what} {value[:80]!r}... is longer than {MOST_ID_BYTES} bytes")
    return validate_text(value, what)


def validate_text(value: str, what: str) -> str:
    """A text that a database can store. Raises `InvalidInput`; `what` names the place in its message."""
    if "\x00" in value:
        raise InvalidInput(f"the {what} {value[:80]!r} holds a NUL character")
    if not is_storable(value):
        raise InvalidInput(f"the {what} {value[:80]!r} holds a lone surrogate")
    return value


def is_storable(value: str) -> bool:
    """Whether both databases can hold the text; what they cannot, they hold nowhere."""
    if "\x00" in value:
        return False
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def is_generated_id(value: str, prefix: str) -> bool:
    """Whether `new_id(prefix, ...)` may have made `value`: spares the query for what cannot exist."""
    return value.startswith(f"{prefix}_") and _PREFIXED.fullmatch(value) is not None
