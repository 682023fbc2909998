"""Clocks that tell microseconds, and the way to datetimes and back."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.clock import (
    NEVER,
    OffsetClock,
    SystemClock,
    VirtualClock,
    from_datetime,
    to_datetime,
)
from agentflow.errors import InvalidInput

SECOND = 1_000_000


def test_the_system_clock_tells_the_time_of_day() -> None:
    before = datetime.now(UTC)
    now = to_datetime(SystemClock().now())
    assert before - timedelta(seconds=1) < now < before + timedelta(seconds=60)


def test_an_offset_clock_follows_the_monotonic_clock_from_the_databases_time() -> None:
    nanos = 5_000_000_000
    clock = OffsetClock(monotonic_ns=lambda: nanos, wall_ns=lambda: 100 * 10**9)
    assert clock.now() == 100 * SECOND
    clock.sync(900 * SECOND)
    nanos += 2_000_000_000
    assert clock.now() == 902 * SECOND


def test_half_of_the_round_trip_is_added_to_the_databases_time() -> None:
    clock = OffsetClock(monotonic_ns=lambda: 0, wall_ns=lambda: 0)
    clock.sync(10 * SECOND, round_trip_micros=500)
    assert clock.now() == 10 * SECOND + 250


def test_a_reading_that_took_long_is_passed_over_until_the_clocks_may_have_gone_apart_as_far() -> None:
    nanos = 0
    clock = OffsetClock(monotonic_ns=lambda: nanos, wall_ns=lambda: 0)
    clock.sync(10 * SECOND, round_trip_micros=1_000)
    assert clock.now() == 10 * SECOND + 500
    nanos = 1_000_000_000
    clock.sync(11 * SECOND - 100_000, round_trip_micros=400_000)
    assert clock.now() == 11 * SECOND + 500, "half of the long round trip would be too much"
    clock.sync(11 * SECOND, round_trip_micros=900)
    assert clock.now() == 11 * SECOND + 450
    nanos = 801 * 10**9
    clock.sync(811 * SECOND - 100_000, round_trip_micros=400_000)
    assert clock.now() == 811 * SECOND + 100_000, "after 800 s this is as good"


def test_a_databases_clock_that_was_set_is_followed_however_long_the_reading_took() -> None:
    clock = OffsetClock(monotonic_ns=lambda: 0, wall_ns=lambda: 0)
    clock.sync(3600 * SECOND, round_trip_micros=1_000)
    clock.sync(1800 * SECOND, round_trip_micros=400_000)
    assert clock.now() == 1800 * SECOND + 200_000


def test_a_virtual_clock_moves_only_by_hand_and_tells_its_listeners() -> None:
    clock = VirtualClock(1000)
    heard: list[int] = []
    forget = clock.on_advance(heard.append)
    assert clock.now() == clock.now() == 1000
    assert clock.advance("2s") == 1000 + 2 * SECOND
    clock.advance(0.5)
    clock.advance(timedelta(microseconds=1))
    forget()
    forget()
    clock.advance(1)
    assert heard == [1000 + 2 * SECOND, 1000 + 2_500_000, 1001 + 2_500_000]
    assert clock.now() == 1001 + 3_500_000


def test_a_virtual_clock_does_not_go_back() -> None:
    clock = VirtualClock(1000)
    with pytest.raises(InvalidInput, match="cannot go back to 999"):
        clock.advance_to(999)
    with pytest.raises(InvalidInput, match="negative"):
        clock.advance(-1)
    assert clock.now() == 1000


@given(st.datetimes(timezones=st.sampled_from([UTC, ZoneInfo("Asia/Kathmandu")]), allow_imaginary=False))
def test_a_datetime_survives_the_way_to_microseconds(value: datetime) -> None:
    assert to_datetime(from_datetime(value)) == value


def test_datetimes_come_back_in_utc() -> None:
    assert to_datetime(0) == datetime(1970, 1, 1, tzinfo=UTC)
    assert to_datetime(-1).tzinfo is UTC


def test_a_naive_datetime_is_invalid_input() -> None:
    with pytest.raises(InvalidInput, match=r"2025-01-01T00:00:00 has no time zone"):
        from_datetime(datetime(2025, 1, 1))  # noqa: DTZ001 - that is the point


def test_never_fits_the_column_and_is_no_date() -> None:
    assert from_datetime(datetime.max.replace(tzinfo=UTC)) < NEVER < 2**63
    with pytest.raises(InvalidInput, match="is no date"):
        to_datetime(NEVER)
