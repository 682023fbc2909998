"""Schedules: a cron expression in a time zone, checked, and the instants it names.

`cronsim` reads the five fields and knows the calendar. What a change of the clocks does to its local times is decided
here, for every zone alike, as Debian's cron does it: a time of day comes once a day, also when the clock shows it twice
(the first counts) or not at all (then at the end of the gap); what repeats (`*` in front of minute or hour) goes by the
clock on the wall as it passes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final, Literal, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from agentflow.durations import to_micros
from agentflow.errors import ConfigurationError, InvalidInput
from agentflow.events import CronTrigger

CatchUp = Literal["skip", "one", "all"]

SECOND: Final = 1_000_000
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - what a clock on the wall shows has no zone
_PROBE = 6 * 3600
"""Seconds: no zone changes its offset twice in so short a time."""

_NAMED: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


@dataclass(frozen=True)
class Schedule:
    """A checked cron trigger. Times are microseconds since the epoch, jitter too."""

    expr: str
    """Five fields; names such as `@hourly` are written out."""
    tz: str | None
    jitter: int
    catch_up: CatchUp
    zone: ZoneInfo

    def id_in(self, app: str, function: str) -> str:
        """One schedule is one expression in one zone of one function."""
        return f"sch_{_digest(app, function, self.expr, self.tz).hex()[:32]}"

    def describe(self) -> dict[str, str | float | None]:
        """As a function's triggers show it."""
        return {
            "cron": self.expr,
            "tz": self.tz,
            "jitter_seconds": self.jitter / SECOND,
            "catch_up": self.catch_up,
        }

    def next_after(self, micros: int) -> int | None:
        """The first nominal time later than that; `None` when none comes in fifty years."""
        try:
            seconds = self._next(micros // SECOND)
        except (StopIteration, OverflowError):
            return None
        return seconds * SECOND

    def between(self, start: int, end: int) -> Iterator[int]:
        """The nominal times from `start` to `end`, both included."""
        nominal = self.next_after(start - 1)
        while nominal is not None and nominal <= end:
            yield nominal
            nominal = self.next_after(nominal)

    def latest(self, start: int, end: int, *, most: int) -> list[int]:
        """The last `most` nominal times from `start` to `end`, in order, without going through all before them."""
        span = most * 60 * SECOND
        while True:
            begin = max(start, end - span)
            found = list(self.between(begin, end))
            if len(found) >= most or begin <= start:
                return found[-most:]
            span *= 4

    def delayed(self, nominal: int, schedule_id: str) -> int:
        """When the run of that time may begin: the same in every process, less than `jitter` later."""
        if not self.jitter:
            return nominal
        return nominal + int.from_bytes(_digest(schedule_id, nominal), "big") % self.jitter

    def local(self, nominal: int) -> datetime:
        """A nominal time as its zone's clock shows it."""
        return datetime.fromtimestamp(nominal // SECOND, self.zone)

    # ------------------------------------------------------------------------------------- whole seconds

    def _next(self, after: int) -> int:
        minute, hour, *_ = self.expr.split()
        repeats = minute.startswith("*") or hour.startswith("*")
        return self._next_by_the_clock(after) if repeats else self._next_time_of_day(after)

    def _next_by_the_clock(self, after: int) -> int:
        begin = after + 1
        while True:
            offset = self._offset(begin)
            found = _seconds(next(CronSim(self.expr, _naive(begin - 1 + offset)))) - offset
            turn = self._first_turn(begin, found)
            if turn is None:
                return found
            begin = turn

    def _next_time_of_day(self, after: int) -> int:
        for local in CronSim(self.expr, _naive(after + self._offset(after))):
            instant = self._instant_of(local)
            if instant > after:
                return instant
        raise StopIteration

    def _instant_of(self, local: datetime) -> int:
        """The first instant at which the clock shows `local`; for a time that is left out, the end of the gap."""
        offset_before, offset_after = (
            cast("timedelta", local.replace(tzinfo=self.zone, fold=fold).utcoffset()) for fold in (0, 1)
        )
        instant = _seconds(local) - _whole(offset_before)
        if offset_before < offset_after:
            turn = self._first_turn(_seconds(local) - _whole(offset_after), instant)
            return instant if turn is None else turn
        return instant

    def _first_turn(self, start: int, end: int) -> int | None:
        """The first second in (start, end] with another offset than at `start`."""
        offset = self._offset(start)
        low = start
        while low < end:
            high = min(low + _PROBE, end)
            if self._offset(high) != offset:
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (middle, high) if self._offset(middle) == offset else (low, middle)
                return high
            low = high
        return None

    def _offset(self, seconds: int) -> int:
        return _whole(cast("timedelta", datetime.fromtimestamp(seconds, self.zone).utcoffset()))


def checked_schedule(trigger: CronTrigger) -> Schedule:
    """What `cron(...)` was given, checked. Raises `ConfigurationError` naming the field."""
    if not isinstance(trigger.expr, str):
        raise ConfigurationError(f"cron(expr={trigger.expr!r}): an expression is a text of five fields")
    expr, tz = _zone_in_front(trigger.expr, trigger.tz)
    zone = _zone(tz)
    schedule = Schedule(_fields(trigger.expr, expr), tz, _jitter(trigger.jitter), _catch_up(trigger), zone)
    if schedule.next_after(0) is None:
        raise ConfigurationError(f"cron(expr={trigger.expr!r}): no date fits it, it would never come")
    return schedule


def _zone_in_front(expr: str, tz: str | None) -> tuple[str, str | None]:
    prefix, *fields = expr.split(maxsplit=1) or [""]
    if not prefix.startswith("TZ="):
        return expr, tz
    named = prefix.removeprefix("TZ=")
    if tz is not None and tz != named:
        raise ConfigurationError(f"cron(expr={expr!r}, tz={tz!r}): two time zones; give one of them")
    return "".join(fields), named


def _zone(tz: str | None) -> ZoneInfo:
    try:
        return ZoneInfo("UTC" if tz is None else tz)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError, AttributeError):
        raise ConfigurationError(
            f"cron(tz={tz!r}): there is no such time zone here; write a name such as 'Europe/Paris' "
            "(where the system has no time zones, install the package tzdata)"
        ) from None


def _fields(given: str, expr: str) -> str:
    text = " ".join(expr.upper().split())
    if text.startswith("@"):
        named = _NAMED.get(text.lower())
        if named is None:
            raise ConfigurationError(f"cron(expr={given!r}): there is only {', '.join(_NAMED)}")
        return named
    if len(text.split()) != 5:
        raise ConfigurationError(
            f"cron(expr={given!r}): five fields are needed: minute, hour, day of the month, month, day of the week"
        )
    try:
        CronSim(text, _EPOCH)
    except (CronSimError, ValueError) as error:
        raise ConfigurationError(f"cron(expr={given!r}): {str(error).lower()}") from None
    return text


def _jitter(jitter: object) -> int:
    if jitter is None:
        return 0
    try:
        return to_micros(jitter)  # type: ignore[arg-type]
    except InvalidInput as error:
        raise ConfigurationError(f"cron(jitter={jitter!r}): {error}") from None


def _catch_up(trigger: CronTrigger) -> CatchUp:
    if trigger.catch_up not in ("skip", "one", "all"):
        raise ConfigurationError(f"cron(catch_up={trigger.catch_up!r}): write 'skip', 'one' or 'all'")
    return cast("CatchUp", trigger.catch_up)


def _digest(*parts: str | int | None) -> bytes:
    return sha256(json.dumps(parts).encode()).digest()


def _naive(seconds: int) -> datetime:
    return _EPOCH + timedelta(seconds=seconds)


def _seconds(naive: datetime) -> int:
    return _whole(naive - _EPOCH)


def _whole(length: timedelta) -> int:
    return length // timedelta(seconds=1)
