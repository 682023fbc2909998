"""The nominal times of a schedule, against a walk through every minute around each change of the clocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow import cron
from agentflow.errors import ConfigurationError
from agentflow.timetable import SECOND, Schedule, checked_schedule
from tests.faults.support import IS_FULL

SAMPLE = (
    "Africa/Cairo",  # at midnight
    "Africa/Casablanca",  # backwards for Ramadan
    "America/Caracas",  # half an hour, once each way
    "America/Havana",
    "America/New_York",
    "America/Santiago",
    "Antarctica/Troll",  # two hours
    "Asia/Beirut",
    "Asia/Pyongyang",
    "Asia/Tehran",
    "Australia/Lord_Howe",  # half an hour
    "Europe/Dublin",
    "Europe/Paris",
    "Pacific/Apia",  # a whole day is left out
    "Pacific/Chatham",  # a quarter past
)
YEARS = range(2006, 2031) if IS_FULL else range(2011, 2019)
HOUR = 3600

BY_THE_CLOCK = {
    "*/15 * * * *": (range(0, 60, 15), range(24)),
    "*/15 0-2 * * *": (range(0, 60, 15), range(3)),
    "5 * * * *": ((5,), range(24)),
    "45 */2 * * *": ((45,), range(0, 24, 2)),
}
TIMES_OF_DAY = {
    "30 2 * * *": ((30,), (2,)),
    "0,10,50 0-3 * * *": ((0, 10, 50), range(4)),
    "0 0 * * *": ((0,), (0,)),
    "59 23 * * *": ((59,), (23,)),
}


@cache
def schedule(expr: str, **options: Any) -> Schedule:
    return checked_schedule(cron(expr, **options))


def offset(zone: ZoneInfo, seconds: int) -> int:
    found = datetime.fromtimestamp(seconds, zone).utcoffset()
    assert found is not None
    return int(found.total_seconds())


def changes(zone: ZoneInfo) -> Iterator[int]:
    """The seconds at which the clocks of a zone change."""
    step = 6 * HOUR
    first = int(datetime(YEARS[0], 1, 1, tzinfo=UTC).timestamp())
    for start in range(first, int(datetime(YEARS[-1], 1, 1, tzinfo=UTC).timestamp()), step):
        low, high = start, start + step
        if offset(zone, low) == offset(zone, high):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(zone, middle) == offset(zone, low) else (low, middle)
        yield high


def every_zone() -> list[str]:
    """All zones whose clocks change; of those that change them alike, one."""
    found: dict[tuple[tuple[int, int], ...], str] = {}
    for name in sorted(available_timezones() - {"localtime", "posixrules"}):
        zone = ZoneInfo(name)
        found.setdefault(tuple((change, offset(zone, change)) for change in changes(zone)), name)
    return sorted(found.values())


@pytest.mark.fault(22)
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", every_zone() if IS_FULL else SAMPLE)
def test_every_nominal_time_comes_exactly_once_at_every_change_of_the_clocks(name: str) -> None:
    zone = ZoneInfo(name)
    for change in changes(zone):
        begin, end = (change // 60 * 60 - 30 * HOUR), (change // 60 * 60 + 30 * HOUR)
        shown = {t: datetime.fromtimestamp(t, zone).replace(tzinfo=None) for t in range(begin, end, 60)}
        for expr, (minutes, hours) in BY_THE_CLOCK.items():
            expected = [t for t, local in shown.items() if local.minute in minutes and local.hour in hours]
            assert _times(expr, name, begin, end) == expected, (expr, datetime.fromtimestamp(change, UTC))
        for expr, (minutes, hours) in TIMES_OF_DAY.items():
            inner_begin, inner_end = begin + 2 * HOUR, end - 26 * HOUR  # where all that is needed is in sight
            due = {
                first_shown(shown, local)
                for local in local_times(shown[begin].date(), shown[end - 60].date(), minutes, hours)
            }
            expected = sorted(t for t in due if t is not None and inner_begin <= t < inner_end)
            assert _times(expr, name, inner_begin, inner_end) == expected, (
                expr,
                datetime.fromtimestamp(change, UTC),
            )


def local_times(first: date, last: date, minutes: Any, hours: Any) -> Iterator[datetime]:
    for day in range((last - first).days + 1):
        midnight = datetime.combine(first + timedelta(days=day), datetime.min.time())
        yield from (midnight + timedelta(hours=h, minutes=m) for h in hours for m in minutes)


def first_shown(shown: dict[int, datetime], local: datetime) -> int | None:
    """The first minute at which the clock shows it; else the first after it was left out."""
    if local <= shown[min(shown)]:
        return None
    return next((t for t, at in shown.items() if at >= local), None)


def _times(expr: str, tz: str, begin: int, end: int) -> list[int]:
    times = [t // SECOND for t in schedule(expr, tz=tz).between(begin * SECOND, end * SECOND - 1)]
    assert times == sorted(set(times))
    return times


@pytest.mark.parametrize(
    ("expr", "after", "expected"),
    [
        # Spring in Paris, 2026-03-29: 02:00 becomes 03:00, which is 01:00 in UTC.
        ("30 2 * * *", "2026-03-28T02:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
        ("0 * * * *", "2026-03-29T00:30", ["2026-03-29T01:00", "2026-03-29T02:00"]),
        # Autumn, 2026-10-25: 03:00 becomes 02:00 again, which is 01:00 in UTC.
        ("30 2 * * *", "2026-10-25T00:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),
        ("30 2 * * *", "2026-10-25T01:10", ["2026-10-26T01:30"]),
        ("*/30 * * * *", "2026-10-25T00:00", ["2026-10-25T00:30", "2026-10-25T01:00", "2026-10-25T01:30"]),
    ],
)
def test_a_time_of_day_comes_once_and_what_repeats_goes_by_the_clock(
    expr: str, after: str, expected: list[str]
) -> None:
    found, at = [], _utc(after)
    for _ in expected:
        following = schedule(expr, tz="Europe/Paris").next_after(at)
        assert following is not None
        at = following
        found.append(at)
    assert found == [_utc(text) for text in expected]


def _utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@Daily", "0 0 * * *"),
        ("TZ=UTC  0  9 * *  mon-fri", "0 9 * * MON-FRI"),
    ],
)
def test_names_and_prefixes_are_written_out(name: str, fields: str) -> None:
    assert schedule(name).expr == fields


def test_the_zone_may_stand_in_front() -> None:
    in_front, beside = schedule("TZ=Europe/Paris 0 9 * * *"), schedule("0 9 * * *", tz="Europe/Paris")
    assert in_front == beside
    assert schedule("TZ=Europe/Paris @daily").tz == "Europe/Paris"
    assert schedule("TZ=Europe/Paris @daily", tz="Europe/Paris").tz == "Europe/Paris"


@pytest.mark.parametrize(
    ("expr", "options", "message"),
    [
        ("", {}, "cron(expr=''): five fields"),
        ("* * * *", {}, "cron(expr='* * * *'): five fields"),
        ("0 0 9 * * *", {}, "cron(expr='0 0 9 * * *'): five fields"),
        ("61 * * * *", {}, "cron(expr='61 * * * *'): bad minute"),
        ("0 24 * * *", {}, "cron(expr='0 24 * * *'): bad hour"),
        ("0 0 0 * *", {}, "cron(expr='0 0 0 * *'): bad day-of-month"),
        ("0 0 31 2 *", {}, "cron(expr='0 0 31 2 *'): bad day-of-month"),
        ("0 0 * 13 *", {}, "cron(expr='0 0 * 13 *'): bad month"),
        ("0 0 * * funday", {}, "cron(expr='0 0 * * funday'): bad day-of-week"),
        ("*/0 * * * *", {}, "cron(expr='*/0 * * * *'): bad minute"),
        ("0 0 * 4 1#5", {"tz": "Mars/Olympus"}, "cron(tz='Mars/Olympus'): there is no such time zone"),
        ("TZ=Mars/Olympus @daily", {}, "cron(tz='Mars/Olympus'): there is no such time zone"),
        ("TZ= @daily", {}, "cron(tz=''): there is no such time zone"),
        ("@daily", {"tz": "Europe"}, "cron(tz='Europe'): there is no such time zone"),
        ("@daily", {"tz": 3}, "cron(tz=3): there is no such time zone"),
        ("@daily", {"tz": "../etc/passwd"}, "cron(tz='../etc/passwd'): there is no such time zone"),
        (
            "TZ=Asia/Tokyo @daily",
            {"tz": "UTC"},
            "cron(expr='TZ=Asia/Tokyo @daily', tz='UTC'): two time zones",
        ),
        ("@reboot", {}, "cron(expr='@reboot'): there is only @hourly"),
        (5, {}, "cron(expr=5): an expression is a text"),
        ("@daily", {"jitter": "soon"}, "cron(jitter='soon'): 'soon'"),
        ("@daily", {"jitter": -1}, "cron(jitter=-1): "),
        ("@daily", {"catch_up": "some"}, "cron(catch_up='some'): write 'skip', 'one' or 'all'"),
    ],
)
def test_what_is_no_schedule_is_refused_with_its_field(
    expr: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        schedule(expr, **options)
    assert str(refused.value).startswith(message)


@given(st.text(alphabet="0123456789*/-,#L WMONxTZ=@²", max_size=30))
def test_any_text_is_a_schedule_or_a_named_error(text: str) -> None:
    with suppress(ConfigurationError):
        assert schedule(text).next_after(0) is not None


def test_the_latest_times_are_found_without_going_through_all_before_them() -> None:
    minutely = schedule("* * * * *")
    begin, end = _utc("2000-01-01T00:00"), _utc("2026-01-01T00:00")
    assert minutely.latest(begin, end, most=3) == [end - 120 * SECOND, end - 60 * SECOND, end]
    yearly = schedule("@yearly")
    assert len(yearly.latest(begin, end, most=3)) == 3
    assert len(yearly.latest(begin, end, most=100)) == 27
    assert yearly.latest(begin + 1, end - 1, most=100)[0] == _utc("2001-01-01T00:00")


@given(st.integers(0, 2**40), st.integers(1, 10**12))
def test_jitter_is_the_same_everywhere_and_stays_below_its_bound(nominal: int, jitter: int) -> None:
    jittered = schedule("@hourly", jitter=timedelta(microseconds=jitter))
    at = jittered.delayed(nominal, "sch_1")
    assert 0 <= at - nominal < jitter
    assert at == jittered.delayed(nominal, "sch_1")


def test_jitter_spreads_functions_and_times() -> None:
    jittered = schedule("@hourly", jitter="1h")
    delays = {
        jittered.delayed(hour * 3600 * SECOND, id) - hour * 3600 * SECOND
        for hour in range(50)
        for id in ("a", "b")
    }
    assert len(delays) == 100
    assert max(delays) - min(delays) > 1800 * SECOND
