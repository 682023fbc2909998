"""How people may write a length of time, and what they may not."""

import contextlib
import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.durations import parse_duration, to_micros
from agentflow.errors import InvalidInput


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1w2d3h4m5s", timedelta(weeks=1, days=2, hours=3, minutes=4, seconds=5)),
        ("1w 2d 3h 4m 5s 6ms", timedelta(weeks=1, days=2, hours=3, minutes=4, seconds=5, milliseconds=6)),
        ("500ms", timedelta(milliseconds=500)),
        ("24h", timedelta(days=1)),
        ("90m", timedelta(minutes=90)),
        ("5m", timedelta(minutes=5)),
        ("5M", timedelta(minutes=5)),
        (" 1.5h ", timedelta(minutes=90)),
        ("0s", timedelta(0)),
        ("PT1H30M", timedelta(minutes=90)),
        ("P1D", timedelta(days=1)),
        ("P2W", timedelta(weeks=2)),
        ("P1DT0.5S", timedelta(days=1, milliseconds=500)),
        ("PT0S", timedelta(0)),
        (timedelta(days=3), timedelta(days=3)),
        (0, timedelta(0)),
        (30, timedelta(seconds=30)),
        (0.25, timedelta(milliseconds=250)),
    ],
)
def test_a_duration_means_what_is_written(written: Any, meant: timedelta) -> None:
    assert parse_duration(written) == meant


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("", "is not a duration"),
        ("soon", "is not a duration"),
        ("5", 'write 5 or "5s"'),
        ("1h 1h", "each once"),
        ("5s1h", "the larger unit first"),
        ("1x", "is not a duration"),
        ("P", "is not a duration"),
        ("PT", "is not a duration"),
        ("P1DT", "is not a duration"),
        ("P1M", "months and years"),
        ("P1Y2D", "months and years"),
        ("1y", "months and years"),
        ("2mo", "months and years"),
        ("1month", "months and years"),
        ("-5s", "is negative"),
        ("-PT5S", "is negative"),
        ("P-1D", "is not a duration"),
        (-1, "is negative"),
        (-0.001, "is negative"),
        (timedelta(seconds=-1), "is negative"),
        (math.nan, "is not a duration"),
        (math.inf, "is not a duration"),
        (True, "True is not a duration"),
        (None, "None is not a duration"),
        ([1], "is not a duration"),
        (1e300, "longer than any duration"),
        ("9" * 90 + "s", "longer than any duration"),
        ("٣s", "is not a duration"),
        ("1h" * 1_000_000, "is not a duration"),
    ],
)
def test_what_is_no_duration_is_refused_with_the_reason(written: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        parse_duration(written)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=366)))
def test_whole_microseconds_are_exact(length: timedelta) -> None:
    assert timedelta(microseconds=to_micros(length)) == length


@given(st.text(alphabet="0123456789.wdhmsPTMYD- ", max_size=12))
def test_any_text_is_a_duration_or_invalid_input(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        assert parse_duration(text) >= timedelta(0)
