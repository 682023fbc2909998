"""Rules 17 and 18: durations, moments, schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from agentflow import App, Context, Run, Step, cron
from agentflow.errors import ConfigurationError, InvalidInput
from agentflow.flow import CronTick
from agentflow.testing import harness

PARIS = ZoneInfo("Europe/Paris")

# 17


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1w2d3h4m5s", 788645),
        ("500ms", 0.5),
        ("90m", 5400),
        ("1.5h", 5400),
        ("PT1H30M", 5400),
        ("P1DT12H", 129600),
        ("P2W", 1209600),
        ("PT0.5S", 0.5),
        (90, 90),
        (1.5, 1.5),
        (timedelta(hours=2, milliseconds=1), 7200.001),
    ],
    ids=str,
)
async def test_a_duration_is_text_seconds_iso_8601_or_a_timedelta(
    sqlite_url: str, written: Any, seconds: float
) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        await step.sleep("s", written)

    async with harness(app, database_url=sqlite_url) as h:
        begun = h.now()
        run = await h.start(f)
        await h.idle()
        [waiting] = (await app.runs.get(run.id)).waiting
        assert waiting.until == begun + timedelta(seconds=seconds)
        await h.advance(seconds)
        assert await run.status() == "completed"


@pytest.mark.parametrize(
    "written",
    [
        "-1h", -1, -0.5, timedelta(seconds=-1), "-PT1H", "P1M", "P1Y", "P1Y2D", "1mo", "1y", "", " ", "5", "1h-5m",
        "h", "1m1h", math.nan, math.inf, True, None,
    ],
    ids=repr,
)  # fmt: skip
async def test_negatives_months_years_and_nonsense_are_refused(sqlite_url: str, written: Any) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        try:
            await step.sleep("s", written)
        except InvalidInput:
            return "refused"
        return "taken"

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.advance("2d")
        assert await run.result(10) == "refused"


@pytest.mark.parametrize("ago", [timedelta(0), timedelta(days=400)])
async def test_a_past_sleep_until_continues_at_once(database_url: str, ago: timedelta) -> None:
    app, now = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        await step.sleep_until("s", now[0])
        return "awake"

    async with harness(app, database_url=database_url) as h:
        now.append(h.now() - ago)
        run = await h.start(f)
        await h.idle()
        assert await run.status() == "completed"


async def test_sleep_until_takes_any_zone_and_wakes_not_a_microsecond_early(database_url: str) -> None:
    app, at = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        await step.sleep_until("s", at[0])
        return "awake"

    async with harness(app, database_url=database_url) as h:
        at.append((h.now() + timedelta(hours=1)).astimezone(timezone(timedelta(hours=-11, minutes=-30))))
        run = await h.start(f)
        await h.advance(timedelta(hours=1) - timedelta(microseconds=1))
        assert await run.status() == "sleeping"
        await h.advance(timedelta(microseconds=1))
        assert await run.status() == "completed"


async def test_a_naive_datetime_is_invalid_input(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        try:
            await step.sleep_until("s", datetime(2030, 1, 1))  # noqa: DTZ001
        except InvalidInput:
            return "refused"
        return "taken"

    async with harness(app, database_url=database_url) as h:
        assert await (await h.start(f)).result(10) == "refused"


async def test_what_comes_due_runs_in_its_order(database_url: str) -> None:
    app, awake = App("t"), []

    @app.function
    async def f(ctx: Context[int], step: Step) -> None:
        await step.sleep("s", ctx.data)
        awake.append(ctx.data)

    async with harness(app, database_url=database_url) as h:
        for seconds in (300, 100, 200):
            await h.start(f, seconds)
        await h.advance("1h")
    assert awake == [100, 200, 300]


async def test_a_clock_that_passes_many_deadlines_at_once_loses_none(database_url: str) -> None:
    app, ticks = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        for n in range(10):
            await step.sleep("s", "1h")
            ticks.append(n)

    async with harness(app, database_url=database_url) as h:
        begun = h.now()
        run = await h.start(f)
        await h.advance("10h")
        record = await app.runs.get(run.id)
        assert record.ended_at == begun + timedelta(hours=10)


# 18


def transition_day(after: datetime, *, forward: bool) -> datetime:
    """Midnight in Paris of the next day on which the clocks go forward, or back."""
    day = after.astimezone(PARIS).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=3)
    while True:
        shift = ((day + timedelta(days=1)).utcoffset() or timedelta()) - (day.utcoffset() or timedelta())
        if shift and (shift > timedelta(0)) == forward:
            return day
        day += timedelta(days=1)


async def ticks_of(app: App, function: str) -> list[datetime]:
    """The nominal times of a schedule's runs, in their order."""
    found: list[datetime] = []
    cursor = None
    while True:
        page = await app.runs.list(function=function, limit=100, cursor=cursor)
        for record in page.data:
            run: Run = await app.runs.get(record.id)
            found.append(datetime.fromisoformat(run.input["nominal_at"]))
        if not page.has_more:
            return sorted(found)
        cursor = page.cursor


def schedule(app: App, expr: str, **options: Any) -> None:
    @app.function("tick", on=cron(expr, **options))
    async def tick(ctx: Context[CronTick], step: Step) -> str:
        return ctx.data.nominal_at.isoformat()


async def ticks_of_transition(
    database_url: str, fields: Callable[[datetime], str], *, forward: bool
) -> list[str]:
    day = transition_day(datetime.now(UTC), forward=forward)
    app = App("t")
    schedule(app, f"TZ=Europe/Paris {fields(day)}")
    async with harness(app, database_url=database_url) as h:
        await h.advance(day.astimezone(UTC) + timedelta(days=2) - h.now())
        return [at.astimezone(PARIS).strftime("%H:%M %z") for at in await ticks_of(app, "tick")]


async def test_a_time_that_the_day_leaves_out_comes_at_the_end_of_the_gap(database_url: str) -> None:
    fields = "30 2 {0.day} {0.month} *".format
    assert await ticks_of_transition(database_url, fields, forward=True) == ["03:00 +0200"]


async def test_a_time_that_the_day_has_twice_comes_once(database_url: str) -> None:
    fields = "30 2 {0.day} {0.month} *".format
    assert await ticks_of_transition(database_url, fields, forward=False) == ["02:30 +0200"]


async def test_an_hourly_schedule_comes_25_times_on_the_long_day(database_url: str) -> None:
    fields = "0 * {0.day} {0.month} *".format
    ticks = await ticks_of_transition(database_url, fields, forward=False)
    assert len(ticks) == 25
    assert ticks[2:4] == ["02:00 +0200", "02:00 +0100"]


async def test_an_hourly_schedule_comes_23_times_on_the_short_day(database_url: str) -> None:
    fields = "0 * {0.day} {0.month} *".format
    ticks = await ticks_of_transition(database_url, fields, forward=True)
    assert len(ticks) == 23
    assert ticks[1:3] == ["01:00 +0100", "03:00 +0200"]


async def test_cron_has_exactly_one_run_for_each_time_whatever_number_of_workers(database_url: str) -> None:
    app = App("t")
    schedule(app, "*/20 * * * *")
    async with harness(app, database_url=database_url) as h:
        async with app.running(), app.running():
            await h.advance("6h")
        await h.idle()
        ticks = await ticks_of(app, "tick")
    assert len(ticks) >= 18
    assert {after - before for before, after in pairwise(ticks)} == {timedelta(minutes=20)}


async def test_hourly_means_each_full_hour_and_its_data_is_a_cron_tick(database_url: str) -> None:
    app, seen = App("t"), []

    @app.function(on=cron("@hourly"))
    async def tick(ctx: Context[CronTick], step: Step) -> None:
        seen.append(ctx.data.nominal_at)

    async with harness(app, database_url=database_url) as h:
        last = h.now().replace(minute=0, second=0, microsecond=0) + timedelta(hours=4)
        await h.advance(last + timedelta(minutes=1) - h.now())
    assert seen[-3:] == [last - timedelta(hours=n) for n in (2, 1, 0)]


async def test_jitter_delays_the_run_and_leaves_its_nominal_time(database_url: str) -> None:
    app = App("t")
    schedule(app, "@hourly", jitter="10m")
    async with harness(app, database_url=database_url) as h:
        await h.advance("12h")
        runs = [await app.runs.get(record.id) for record in (await app.runs.list()).data]
    delays = [
        run.started_at - datetime.fromisoformat(run.input["nominal_at"])
        for run in runs
        if run.started_at is not None
    ]
    assert len(delays) >= 11
    assert all(timedelta(0) <= delay <= timedelta(minutes=10) for delay in delays)
    assert len(set(delays)) > 1


@pytest.mark.parametrize(("catch_up", "expected"), [("skip", 1), ("one", 2), ("all", 5)])
async def test_missed_ticks_after_downtime_follow_catch_up(
    database_url: str, catch_up: str, expected: int
) -> None:
    app = App("t")
    first = (datetime.now(UTC) + timedelta(minutes=20)).replace(second=0, microsecond=0)
    schedule(app, f"{first.minute} * * * *", catch_up=catch_up)
    async with harness(app, database_url=database_url) as h:
        await h.advance(first - h.now() + timedelta(minutes=15))
        await h.crash()
        await h.advance("4h")
        await h.restart()
        await h.idle()
        ticks = await ticks_of(app, "tick")
    missed = [first + timedelta(hours=n) for n in range(1, 5)]
    assert ticks == [first, *{"skip": [], "one": missed[-1:], "all": missed}[catch_up]]
    assert len(ticks) == expected


@pytest.mark.parametrize(
    "expr",
    [
        "", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "@sometimes",
        "TZ=Mars/Olympus 0 9 * * *", "TZ=Europe/Paris", "0 0 30 2 *", "a b c d e",
    ],
)  # fmt: skip
def test_a_bad_schedule_is_refused_at_registration(expr: str) -> None:
    with pytest.raises(ConfigurationError):
        schedule(App("t"), expr)


@pytest.mark.parametrize(
    "options", [{"tz": "Mars/Olympus"}, {"jitter": "-1m"}, {"catch_up": "some"}, {"jitter": "P1M"}], ids=repr
)
def test_a_bad_option_of_a_schedule_is_refused_at_registration(options: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        schedule(App("t"), "@daily", **options)
