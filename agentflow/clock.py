"""Time as it comes in by the door: microseconds since the epoch, UTC, from a clock that can be swapped."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from agentflow.durations import Duration, to_micros
from agentflow.errors import InvalidInput

NEVER = 2**62
"""Later than every instant: the `ready_at` of what waits without a deadline."""

DRIFT = 2_000
"""Two clocks go apart by one microsecond in so many, at most: computers' do by a twentieth of that."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Clock(Protocol):
    """What tells domain time."""

    def now(self) -> int:
        """Microseconds since the epoch."""
        ...


class SystemClock:
    """This machine's wall clock."""

    def now(self) -> int:
        return time.time_ns() // 1000


class OffsetClock:
    """A database's clock, carried on between two readings by the monotonic clock of this process.

    So workers whose machines disagree about the time agree about what is due, and a step of the wall
    clock does not show. Until the first `sync` it tells the wall clock's time.
    """

    def __init__(
        self,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._monotonic_ns = monotonic_ns
        self._offset = (wall_ns() - monotonic_ns()) // 1000
        self._error: int | None = None
        self._synced_at = 0

    def now(self) -> int:
        return self._monotonic_ns() // 1000 + self._offset

    async def read(self, database_now: Callable[[], Awaitable[int]]) -> None:
        """Ask the database what time it is."""
        asked_at = self._monotonic_ns()
        now = await database_now()
        self.sync(now, round_trip_micros=(self._monotonic_ns() - asked_at) // 1000)

    def sync(self, db_micros: int, *, round_trip_micros: int = 0) -> None:
        """Take over the database's time, which was read at some instant of a round trip of that length.

        So it may be wrong by half of it. One that may be more wrong than what is known is passed over, as on a busy
        machine it would make things early; unless both cannot be right: then the database's clock was set.
        """
        at = self._monotonic_ns() // 1000
        error = round_trip_micros // 2
        offset = db_micros + error - at
        known = None if self._error is None else self._error + (at - self._synced_at) // DRIFT
        if known is None or error <= known or abs(offset - self._offset) > error + known:
            self._offset, self._error, self._synced_at = offset, error, at


class VirtualClock:
    """A clock that moves only by hand, for tests and simulation; it tells its listeners when it did."""

    def __init__(self, start: int) -> None:
        self._now = start
        self._listeners: list[Callable[[int], None]] = []

    def now(self) -> int:
        return self._now

    def advance(self, duration: Duration) -> int:
        """Move on by a `timedelta`, seconds or "2d"; returns the new time."""
        return self.advance_to(self._now + to_micros(duration))

    def advance_to(self, micros: int) -> int:
        """Move on to that instant; never back."""
        if micros < self._now:
            raise InvalidInput(f"the virtual clock stands at {self._now} and cannot go back to {micros}")
        self._now = micros
        for listener in tuple(self._listeners):
            listener(micros)
        return micros

    def on_advance(self, listener: Callable[[int], None]) -> Callable[[], None]:
        """Have `listener` called with every new time; returns what takes it away again."""
        self._listeners.append(listener)

        def forget() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return forget


def to_datetime(micros: int) -> datetime:
    """The instant as an aware datetime in UTC."""
    try:
        return _EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        raise InvalidInput(
            f"{micros} microseconds since 1970 is no date: the years 1 to 9999 have one"
        ) from None


def from_datetime(value: datetime) -> int:
    """Microseconds since the epoch.

    A naive datetime means another instant on each machine: `InvalidInput`, as for what is no datetime.
    """
    if not isinstance(value, datetime):
        raise InvalidInput(f"{value!r} is a {type(value).__name__}, it has to be a datetime with a time zone")
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidInput(
            f"{value.isoformat()} has no time zone: write datetime(..., tzinfo=UTC) or .astimezone()"
        )
    return (value - _EPOCH) // _MICROSECOND
