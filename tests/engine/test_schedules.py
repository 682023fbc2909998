"""A schedule starts exactly one run for each of its times, whoever looks, dies or comes late."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from subprocess import DEVNULL
from typing import Any

import pytest

from agentflow.app import App
from agentflow.clock import VirtualClock, from_datetime
from agentflow.context import Context
from agentflow.engine import schedules as engine_schedules
from agentflow.engine.schedules import Schedules
from agentflow.events import CronTrigger
from agentflow.flow import CronTick
from agentflow.ids import derived_id, is_generated_id
from agentflow.runs import Run, RunStatus
from agentflow.step import Step
from agentflow.store.opening import open_store
from agentflow.store.operation_types import KeepSchedules, ListSchedules
from agentflow.store.stored_types import NewSchedule
from agentflow.testing import harness
from agentflow.testing.app_harness import Harness
from agentflow.triggers import cron, on_event
from tests.engine import ticking
from tests.forked import KILLED, Forked

HOUR = timedelta(hours=1)


def make(*triggers: CronTrigger, app: str = "t", function: str = "tick") -> tuple[App, list[datetime]]:
    """An app with one function, and the nominal times of its runs, in the order in which they ran."""
    made, seen = App(app), []

    @made.function(function, on=list(triggers))
    async def tick(ctx: Context[CronTick], step: Step) -> datetime:
        assert ctx.event is None
        seen.append(ctx.data.nominal_at)
        return ctx.data.nominal_at

    return made, seen


async def to_next_hour(h: Harness, *, past: timedelta = timedelta(minutes=30)) -> datetime:
    """Move on to some time after a full hour, which is returned."""
    now = h.now()
    full = now.replace(minute=0, second=0, microsecond=0) + HOUR
    await h.advance(full + past - now)
    return full


async def all_runs(app: App) -> list[Run]:
    return [run async for page in _pages(app) for run in page]


async def _pages(app: App) -> AsyncIterator[list[Run]]:
    cursor: str | None = None
    while True:
        page = await app.runs.list(limit=100, cursor=cursor)
        yield list(page.data)
        if not page.has_more:
            return
        cursor = page.cursor


# ------------------------------------------------------------------------------------------- on time


async def test_a_run_begins_at_each_nominal_time_in_order(database_url: str) -> None:
    app, seen = make(cron("@hourly"), cron("30 * * * *", tz="Asia/Kolkata"))
    async with harness(app, database_url=database_url) as h:
        full = await to_next_hour(h, past=timedelta(minutes=15))
        seen.clear()
        await h.advance("3h")
        # Kolkata is at half past when the others are at the full hour: two schedules, two runs.
        assert [at.astimezone(UTC) for at in seen] == [full + n * HOUR for n in (1, 1, 2, 2, 3, 3)]
        assert {at.utcoffset() for at in seen} == {timedelta(0), timedelta(hours=5, minutes=30)}
        for run in await all_runs(app):
            assert run.status is RunStatus.COMPLETED
            assert (run.created_at.minute, run.created_at.second) == (0, 0)


async def test_what_a_tick_starts_has_run_before_the_next_one_is_due(sqlite_url: str) -> None:
    app, order = App("t"), []

    def note(what: str, hour: int) -> None:
        order.append((what, hour))

    @app.function(on=cron("0 * * * *"))
    async def f(ctx: Context[CronTick], step: Step) -> None:
        await step.run("begin", note, "begin", ctx.data.nominal_at.hour)
        await step.sleep("a while", "30m")
        order.append(("end", ctx.data.nominal_at.hour))

    async with harness(app, database_url=sqlite_url) as h:
        await to_next_hour(h, past=timedelta(minutes=45))
        order.clear()
        full = h.now().hour
        await h.advance("2h")
        first, second = (full + 1) % 24, (full + 2) % 24
        assert order == [("begin", first), ("end", first), ("begin", second), ("end", second)]


async def test_a_new_schedule_does_not_fire_for_times_before_it_was_registered(database_url: str) -> None:
    app, seen = make(cron("* * * * *", catch_up="all"))
    async with harness(app, database_url=database_url) as h:
        began = h.now()
        await h.idle()
        assert seen == []
        await h.advance("2m")
        assert len(seen) == 2
        assert min(seen) > began


async def test_events_and_schedules_start_the_same_function(sqlite_url: str) -> None:
    app, seen = App("t"), []

    @app.function(on=[cron("@hourly"), on_event("now")])
    async def f(ctx: Context[CronTick | dict[str, str]], step: Step) -> None:
        seen.append(type(ctx.data))

    async with harness(app, database_url=sqlite_url) as h:
        await h.send({"name": "now", "data": {"who": "ana"}})
        await h.advance("1h")
        assert seen == [dict, CronTick]
        [info] = await app.functions.list()
        assert '"cron": "0 * * * *"' in info.triggers


async def test_two_apps_have_schedules_of_their_own(database_url: str) -> None:
    one, seen_one = make(cron("@hourly"), app="one")
    two, seen_two = make(cron("@hourly"), app="two")
    async with harness(one, database_url=database_url) as h, harness(two, database_url=database_url) as g:
        await h.advance("2h")
        assert (len(seen_one), len(seen_two)) == (2, 0)
        await g.advance("1h")
        assert (len(seen_one), len(seen_two)) == (2, 1)
        assert [len(await all_runs(app)) for app in (one, two)] == [2, 1]


async def test_jitter_delays_a_run_by_less_than_its_bound(database_url: str) -> None:
    app, seen = make(cron("@hourly", jitter="20m"))
    async with harness(app, database_url=database_url) as h:
        await to_next_hour(h)
        seen.clear()
        await h.advance("12h")
        assert len(seen) == 12
        delays = []
        for run in await all_runs(app):
            assert run.started_at is not None
            delays.append(run.started_at - run.created_at)
        assert all(timedelta(0) <= delay < timedelta(minutes=20) for delay in delays)
        assert max(delays) > timedelta(minutes=1)


# ----------------------------------------------------------------------------------------- catching up


@pytest.mark.parametrize(("catch_up", "expected"), [("skip", []), ("one", [3]), ("all", [1, 2, 3])])
async def test_times_at_which_no_worker_was_there_follow_catch_up(
    database_url: str, catch_up: Any, expected: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    app, seen = make(cron("@hourly", catch_up=catch_up))
    async with harness(app, database_url=database_url) as h:
        full = await to_next_hour(h)
        seen.clear()
        await h.crash()
        await h.advance("3h")
        with caplog.at_level(logging.WARNING, "agentflow.engine"):
            await h.restart()
            await h.idle()
        assert seen == [full + n * HOUR for n in expected]
        assert ("no worker was there for its times" in caplog.text) is (catch_up != "all")
        await h.advance("1h")
        assert seen == [full + n * HOUR for n in [*expected, 4]]


async def test_a_time_that_is_only_late_is_not_missed(sqlite_url: str) -> None:
    app, seen = make(cron("@hourly", catch_up="skip"))
    async with harness(app, database_url=sqlite_url) as h:
        full = await to_next_hour(h)
        seen.clear()
        h._virtual_clock("advance").advance(HOUR - timedelta(minutes=30) + timedelta(seconds=50))
        await h.idle()
        assert seen == [full + HOUR]
        h._virtual_clock("advance").advance(HOUR + timedelta(seconds=30))
        await h.idle()
        assert seen == [full + HOUR], "eighty seconds are more than late"


async def test_catching_up_is_bounded_and_says_so(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_schedules, "MOST_AT_ONCE", 5)
    app, seen = make(cron("* * * * *", catch_up="all"))
    async with harness(app, database_url=sqlite_url) as h:
        await h.crash()
        await h.advance("1d")
        with caplog.at_level(logging.WARNING, "agentflow.engine"):
            await h.restart()
            await h.idle()
        last = h.now().replace(second=0, microsecond=0)
        assert seen == [last - timedelta(minutes=n) for n in (4, 3, 2, 1, 0)]
        assert "more than 5 times" in caplog.text


# ------------------------------------------------------------------------------------ changed schedules


@asynccontextmanager
async def at_the_same_time(h: Harness, app: App, url: str) -> AsyncIterator[Harness]:
    """The next deploy of an app: a harness on the same database, whose clock goes on from this one's."""
    async with harness(app, database_url=url) as g:
        g._virtual_clock("advance").advance_to(max(from_datetime(h.now()), from_datetime(g.now())))
        await g.idle()
        yield g


async def test_a_schedule_that_was_changed_or_removed_is_gone(database_url: str) -> None:
    hourly, seen = make(cron("@hourly", catch_up="all"))
    changed, seen_changed = make(cron("30 * * * *", catch_up="all"))
    removed, seen_removed = make()
    async with harness(hourly, database_url=database_url) as h:
        full = await to_next_hour(h, past=timedelta(minutes=5))
        assert seen == [full]
        await h.crash()
        async with at_the_same_time(h, changed, database_url) as g:
            await g.advance("2h")
            # Registered by the real clock, which is behind: what was due before this deploy's time is left aside.
            later = [tick for tick in seen_changed if tick > full]
            assert later == [full + timedelta(minutes=30), full + timedelta(minutes=90)]
            await g.crash()
            async with at_the_same_time(g, removed, database_url) as e:
                await e.advance("2h")
                assert (await due(e)) == {}
        assert seen == [full]
        assert seen_removed == []


async def due(h: Harness) -> dict[str, int]:
    """The schedules of all functions that these tests make, as the database has them."""
    ids = []
    for triggers in ((cron("@hourly"),), (cron("30 * * * *"),)):
        app, _ = make(*triggers)
        [function] = app.registered
        ids += [schedule.id_in("t", function.id) for schedule in function.schedules]
    return dict((await h.app.client.store.submit(ListSchedules(tuple(ids)))).due)


async def test_while_two_versions_run_each_keeps_its_own_schedule(database_url: str) -> None:
    old, seen_old = make(cron("@hourly"))
    new, seen_new = make(cron("30 * * * *"))
    async with harness(old, database_url=database_url) as h:
        full = await to_next_hour(h, past=timedelta(minutes=5))
        async with at_the_same_time(h, new, database_url) as g:
            # The new version has removed the old one's schedule; the old worker, which lives on, takes it up again.
            await h.advance("1h")
            await g.advance("1h")
            assert len(await due(h)) == 2
        ran = sorted(seen_old + seen_new)
        assert ran == [full, full + timedelta(minutes=30), full + HOUR]


async def test_a_schedule_kept_again_in_the_same_minute_starts_no_second_run(database_url: str) -> None:
    app, _ = make(cron("* * * * *"))
    async with ticking_store(app, database_url) as (store, clock):
        first = Schedules(store, clock, app._registry, app="t")
        await first.begin()
        now = clock.now()
        [(schedule_id, due_at)] = (await store.submit(_list(app))).due
        clock.advance_to(due_at)
        assert await first.run_once() == 1
        await store.submit(KeepSchedules("t", ("tick",), ()))
        again = NewSchedule(schedule_id, "t", "tick", "* * * * *", None, due_at)
        await store.submit(KeepSchedules("t", ("tick",), (again,)))
        assert await first.run_once() == 0
        assert now < due_at
        [(_, next_at)] = (await store.submit(_list(app))).due
        assert next_at == due_at + 60_000_000


# ------------------------------------------------------------------------------------------- exactly once


@asynccontextmanager
async def ticking_store(app: App, url: str) -> AsyncIterator[tuple[Any, VirtualClock]]:
    store = open_store(url, settings=app.settings)
    await store.open(migrate=True)
    try:
        yield store, VirtualClock(ticking.BEGIN)
    finally:
        await store.close()


def _list(app: App) -> Any:
    return ListSchedules(
        tuple(
            schedule.id_in(app.id, function.id)
            for function in app.registered
            for schedule in function.schedules
        )
    )


async def test_three_schedulers_at_once_start_exactly_one_run_per_tick(database_url: str) -> None:
    app, minutes, rng = ticking.make_app(), 40, random.Random(7)
    await open_store(database_url, settings=app.settings).migrate()
    stores = [open_store(database_url, settings=app.settings) for _ in range(3)]
    for store in stores:
        await store.open()
    try:
        clocks = [VirtualClock(ticking.BEGIN) for _ in stores]
        three = [
            Schedules(store, clock, app._registry, app=app.id)
            for store, clock in zip(stores, clocks, strict=True)
        ]
        for one in three:
            await one.begin()
        started = 0
        for _ in range(minutes):
            for clock in clocks:
                clock.advance(60)
            together = [one.run_once() for one in three]
            rng.shuffle(together)
            started += sum(await asyncio.gather(*together))
        assert started == minutes + minutes // 2
    finally:
        for store in stores:
            await store.close()
    assert await nominal_times(database_url) == expected_times(minutes)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("point", ["before_commit", "after_commit", "before_acknowledge"])
async def test_a_killed_scheduler_neither_loses_nor_doubles_a_tick(database_url: str, point: str) -> None:
    minutes = 60
    await open_store(database_url, settings=ticking.make_app().settings).migrate()
    with (
        process(database_url, minutes, crash_at=f"{point}:17") as early,
        process(database_url, minutes, crash_at=f"{point}:40") as late,
    ):
        codes = [await early.ended(), await late.ended()]
        assert codes == [KILLED, KILLED], f"it passes {point} often enough to die there"
    with process(database_url, minutes) as one, process(database_url, minutes) as other:
        assert [await one.ended(), await other.ended()] == [0, 0]
    assert await nominal_times(database_url) == expected_times(minutes)


def process(url: str, minutes: int, *, crash_at: str | None = None) -> Forked:
    environment = os.environ | ({"AGENTFLOW_CRASH_AT": crash_at} if crash_at else {})
    return Forked(["-m", "tests.engine.ticking", url, str(minutes)], env=environment, stdout=DEVNULL)


async def nominal_times(url: str) -> Counter[datetime]:
    """How many runs each nominal time has."""
    found: Counter[datetime] = Counter()
    app = ticking.make_app(url)
    async with app:
        for run in await all_runs(app):
            stored = await app.runs.get(run.id)
            found[datetime.fromisoformat(stored.input["nominal_at"]).astimezone(UTC)] += 1
    return found


def expected_times(minutes: int) -> Counter[datetime]:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    return Counter({begin + timedelta(minutes=n): 2 - n % 2 for n in range(1, minutes + 1)})


def test_a_runs_id_follows_from_its_time_and_is_one_of_ours() -> None:
    ids = [derived_id("run", ticking.BEGIN + n, f"x {n}") for n in range(0, 10**10, 10**8)]
    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids)
    assert all(is_generated_id(id, "run") for id in ids)
    assert ids[0] == derived_id("run", ticking.BEGIN, "x 0")


class ClockFrom:
    """A clock that goes on by itself from a time of the test's choice."""

    def __init__(self, start: int) -> None:
        self._offset = start - time.monotonic_ns() // 1000

    def now(self) -> int:
        return time.monotonic_ns() // 1000 + self._offset


async def test_a_worker_starts_what_is_due_when_its_clock_says_so(database_url: str) -> None:
    app, seen = make(cron("@hourly"))
    store = open_store(database_url, settings=app.settings)
    await store.open(migrate=True)
    full = datetime(2026, 1, 1, 9, tzinfo=UTC)
    half_a_second_before = from_datetime(full) - 500_000
    await app.connect(store, clock=ClockFrom(half_a_second_before), settings=app.settings)
    worker = app.engine_worker()
    try:
        await worker.start()
        assert seen == []
        async with asyncio.timeout(20):
            while not (runs := await all_runs(app)) or runs[0].status is not RunStatus.COMPLETED:
                await asyncio.sleep(0.02)
        assert seen == [full]
        assert timedelta(0) <= runs[0].created_at - full < timedelta(seconds=10)
    finally:
        await worker.stop()
        await app.close()
