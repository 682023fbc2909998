"""Schedules across a change of the clocks, with three schedulers at once and others that are killed: each time once.

What has to come is found by a walk through every minute (tests/values/test_timetable.py), not by the engine's own
arithmetic. In full every zone of the IANA database whose clocks change, at its last change forward and its last back;
on PostgreSQL a third of these.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, available_timezones

import pytest

from agentflow.clock import VirtualClock
from agentflow.engine.schedules import Schedules
from agentflow.store.opening import open_store
from agentflow.timetable import SECOND
from tests.crash.zone_ticking import look, make_app
from tests.faults.reporting import Report
from tests.faults.support import FIRST_SEED, IS_FULL, SECONDS, read_rows
from tests.forked import KILLED, Starter
from tests.values.test_timetable import first_shown, local_times, offset

HOUR = 3600
DAY = 24 * HOUR
STEP = 5 * DAY
"""No zone changes its clocks twice in so short a time, in those years."""
SOME = (
    "Africa/Cairo",
    "America/New_York",
    "Asia/Tehran",
    "Australia/Lord_Howe",
    "Europe/Paris",
    "Pacific/Apia",
)
POINTS = ("before_commit", "after_commit", "before_acknowledge")


def changes(zone: ZoneInfo) -> Iterator[int]:
    """The last change forward and the last one back since 1990, as seconds."""
    wanted = {True, False}
    for end in range(int(datetime(2037, 12, 1, tzinfo=UTC).timestamp()), 20 * 365 * DAY, -STEP):
        low, high = end - STEP, end
        before, after = offset(zone, low), offset(zone, high)
        if before == after or (after > before) not in wanted:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(zone, middle) == before else (low, middle)
        wanted.remove(after > before)
        yield high
        if not wanted:
            return


def all_changes() -> list[tuple[str, int]]:
    """By zone; of zones that change their clocks alike, one."""
    names = sorted(available_timezones() - {"localtime", "posixrules"}) if IS_FULL else SOME
    found: dict[tuple[tuple[int, int], ...], list[tuple[str, int]]] = {}
    for name in names:
        zone = ZoneInfo(name)
        of_zone = list(changes(zone))
        alike = tuple((change, offset(zone, change)) for change in of_zone)
        found.setdefault(alike, [(name, change) for change in of_zone])
    every = sorted(change for of_zone in found.values() for change in of_zone)
    return every if IS_FULL else every[::2]


def expected(zone: ZoneInfo, change: int, begin: int, end: int) -> tuple[list[str], Counter[tuple[str, int]]]:
    """Expressions whose times lie around the change; and how often each has each time, in (begin, end]."""
    far = range(begin // 60 * 60 - DAY, end // 60 * 60 + 2 * DAY, 60)
    shown = {t: datetime.fromtimestamp(t, zone).replace(tzinfo=None) for t in far}
    hours = sorted({(shown[change // 60 * 60].hour + n) % 24 for n in (-2, -1, 0, 1)})
    words = ",".join(map(str, hours))
    by_the_clock, times_of_day = "*/20 * * * *", f"0,30 {words} * * *"
    due = Counter((by_the_clock, t) for t in far if begin < t <= end and shown[t].minute % 20 == 0)
    locals_ = local_times(shown[far[0]].date(), shown[far[-1]].date(), (0, 30), hours)
    times = {first_shown(shown, local) for local in locals_}
    due.update((times_of_day, t) for t in times if t is not None and begin < t <= end)
    return [by_the_clock, times_of_day], due


@pytest.mark.fault(22)
@pytest.mark.timeout(SECONDS)
async def test_around_a_change_of_the_clocks_each_time_has_one_run_whoever_looks_or_dies(
    database_url: str, report: Report
) -> None:
    rng, began = random.Random(FIRST_SEED), time.perf_counter()
    every = all_changes()
    if not database_url.startswith("sqlite"):
        every = every[::3]  # the arithmetic is the same there; what differs is who wins
    kills = runs = 0
    with Starter("tests.crash.zone_ticking") as children:
        for name, change in every:
            zone, begin, end = ZoneInfo(name), change - 4 * HOUR, change + 4 * HOUR
            exprs, due = expected(zone, change, begin, end)
            kills += await _kill_one(children, database_url, name, exprs, change, begin, end, rng)
            await _look_together(database_url, name, exprs, change, begin, end, rng)
            found = await _nominal_times(database_url, name, exprs, change)
            assert found == due, (
                f"{name} at {datetime.fromtimestamp(change, UTC)}: too many are {found - due}, missing {due - found}"
            )
            runs += found.total()
    zones = len({name for name, _ in every})
    report(
        f"{len(every)} changes of the clocks in {zones} zones (of those that change alike, one), 3 schedulers each, "
        f"{kills} more killed: {runs:,} nominal times in {time.perf_counter() - began:.0f} s, each exactly once"
    )


async def _kill_one(
    children: Starter,
    url: str,
    zone: str,
    exprs: list[str],
    change: int,
    begin: int,
    end: int,
    rng: random.Random,
) -> int:
    """1 if it was killed, in a commit somewhere on its way; 0 if it had ended before."""
    crash_at = f"{rng.choice(POINTS)}:{rng.randint(2, 40)}"
    words = (zone, "|".join(exprs), str(change), str(begin), str(end), crash_at)
    code = await children.run(url, *words)
    assert code in (0, KILLED), f"a scheduler of {zone} ended with {code}"
    return int(code == KILLED)


async def _look_together(
    url: str, zone: str, exprs: list[str], change: int, begin: int, end: int, rng: random.Random
) -> None:
    """Three schedulers, each with a store and a clock of its own."""
    app = make_app(zone, exprs, change=change)
    stores = [open_store(url, settings=app.settings) for _ in range(3)]
    try:
        looking = []
        for store in stores:
            await store.open()
            clock = VirtualClock(begin * SECOND)
            schedules = Schedules(store, clock, app._registry, app=app.id)
            await schedules.begin()
            looking.append(look(schedules, clock, end, random.Random(rng.random())))
        await asyncio.gather(*looking)
    finally:
        for store in stores:
            await store.close()


async def _nominal_times(url: str, zone: str, exprs: list[str], change: int) -> Counter[tuple[str, int]]:
    app = make_app(zone, exprs, change=change)
    rows = await read_rows(
        url,
        "SELECT r.function, i.input FROM agentflow_run r JOIN agentflow_run_io i ON i.run_id = r.id "
        f"WHERE r.app = '{app.id}'",
    )
    return Counter(
        (exprs[int(function[1:])], int(datetime.fromisoformat(json.loads(text)["nominal_at"]).timestamp()))
        for function, text in rows
    )
