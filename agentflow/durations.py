"""Durations as people write them: `"1w2d3h4m5s"`, `"500ms"`, ISO 8601, seconds, `timedelta`."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from agentflow.errors import InvalidInput

Duration = timedelta | float | str
"""What every parameter that means a length of time takes; a number counts seconds."""

_MICROSECOND = timedelta(microseconds=1)
_LONGEST_TEXT = 100
_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds", "ms": "milliseconds"}
_NUMBER = r"\d+(?:\.\d+)?"
_SHORT = re.compile(
    "".join(rf"(?:(?P<{name}>{_NUMBER})\s*{unit}(?![a-z])\s*)?" for unit, name in _UNITS.items()),
    re.ASCII | re.IGNORECASE,
)
_ISO = re.compile(
    rf"P(?:(?P<weeks>{_NUMBER})W)?(?:(?P<days>{_NUMBER})D)?"
    rf"(?P<time>T(?:(?P<hours>{_NUMBER})H)?(?:(?P<minutes>{_NUMBER})M)?(?:(?P<seconds>{_NUMBER})S)?)?",
    re.ASCII,
)
_ISO_CALENDAR = re.compile(r"P[^T]*\d[YM]", re.ASCII)
_HELP = 'write "1w2d3h4m5s", "500ms", ISO 8601 as "PT1H30M", a timedelta or seconds'


def parse_duration(value: Duration) -> timedelta:
    """The length of time `value` means.

    Months and years are refused, as their length depends on the date; so is everything negative. Raises
    `InvalidInput`.
    """
    if isinstance(value, timedelta):
        return _not_negative(value, value)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InvalidInput(f"{value!r} is not a duration: {_HELP}")
    if isinstance(value, str):
        return _parse_text(value)
    if not math.isfinite(value):
        raise InvalidInput(f"{value!r} seconds is not a duration: {_HELP}")
    return _not_negative(_timedelta(value, seconds=value), value)


def to_micros(value: Duration) -> int:
    """The duration in whole microseconds, the unit of all stored times."""
    return parse_duration(value) // _MICROSECOND


def _parse_text(text: str) -> timedelta:
    trimmed = text.strip()
    if not trimmed or len(trimmed) > _LONGEST_TEXT:
        raise InvalidInput(f"{text[:_LONGEST_TEXT]!r} is not a duration: {_HELP}")
    if trimmed.startswith("-"):
        raise InvalidInput(f"{text!r} is negative: a duration is zero or more")
    found = _ISO.fullmatch(trimmed) if trimmed.startswith("P") else _SHORT.fullmatch(trimmed)
    parts = {name: float(number) for name, number in _numbers(found).items()} if found else {}
    if not parts or (found and found.groupdict().get("time") == "T"):
        raise InvalidInput(f"{text!r} is not a duration: {_why(trimmed)}")
    return _timedelta(text, **parts)


def _numbers(found: re.Match[str]) -> dict[str, str]:
    return {name: number for name, number in found.groupdict().items() if number and name != "time"}


def _why(text: str) -> str:
    if _ISO_CALENDAR.match(text) or re.search(r"\d\s*(mo|y)", text, re.IGNORECASE):
        return "months and years differ in length, count in days or weeks"
    if re.fullmatch(_NUMBER, text):
        return f'a number in a string has no unit, write {text} or "{text}s" for seconds'
    return f"{_HELP}, the larger unit first, each once"


def _timedelta(value: Duration, **parts: float) -> timedelta:
    try:
        return timedelta(**parts)
    except OverflowError:
        raise InvalidInput(f"{value!r} is longer than any duration can be") from None


def _not_negative(length: timedelta, value: Duration) -> timedelta:
    if length < timedelta(0):
        raise InvalidInput(f"{value!r} is negative: a duration is zero or more")
    return length
