"""A process that looks after the schedules of a time zone, on a clock of its own, until it is killed or the time is up.

`main` is run by tests/forked.py; the test looks after the same schedules itself.
"""

from __future__ import annotations

import random
import re

from agentflow import App, Context, Step, crashpoints
from agentflow.clock import VirtualClock
from agentflow.engine.schedules import Schedules
from agentflow.flow import CronTick
from agentflow.store.opening import open_store
from agentflow.timetable import SECOND
from agentflow.triggers import cron


def make_app(zone: str, exprs: list[str], *, change: int) -> App:
    """The app of one change of a zone's clocks."""
    app = App(re.sub(r"[^a-z0-9]+", "-", f"{zone.lower()}-{change}"))
    for n, expr in enumerate(exprs):

        async def tick(ctx: Context[CronTick], step: Step) -> None: ...

        app.function(id=f"f{n}", on=cron(expr, tz=zone, catch_up="all"))(tick)
    return app


async def look(schedules: Schedules, clock: VirtualClock, end: int, rng: random.Random) -> int:
    """Look every now and then, until the end; how many runs that started."""
    started = 0
    while clock.now() < end * SECOND:
        clock.advance_to(min(clock.now() + rng.randint(1, 40 * 60) * SECOND, end * SECOND))
        started += await schedules.run_once()
    return started


async def main(url: str, zone: str, exprs: str, change: str, begin: str, end: str, crash_at: str) -> None:
    app = make_app(zone, exprs.split("|"), change=int(change))
    store = open_store(url, settings=app.settings)
    await store.open()
    try:
        clock = VirtualClock(int(begin) * SECOND)
        schedules = Schedules(store, clock, app._registry, app=app.id)
        if crash_at:
            crashpoints.arm_from(crash_at)
        await schedules.begin()
        await look(schedules, clock, int(end), random.Random(crash_at))
    finally:
        await store.close()
