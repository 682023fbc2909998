"""A process that looks after schedules: `python -m tests.engine.ticking URL MINUTES`.

It is there for each of the minutes after `BEGIN`, on a clock of its own, as fast as it can.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

from agentflow.app import App
from agentflow.clock import VirtualClock, from_datetime
from agentflow.context import Context
from agentflow.engine.schedules import Schedules
from agentflow.flow import CronTick
from agentflow.step import Step
from agentflow.store.opening import open_store
from agentflow.triggers import cron

BEGIN = from_datetime(datetime(2026, 1, 1, 0, 0, 30, tzinfo=UTC))
MINUTE = 60_000_000


def make_app(url: str | None = None) -> App:
    app = App("ticking", database_url=url)

    @app.function(
        on=[cron("* * * * *", catch_up="all"), cron("*/2 * * * *", tz="Asia/Kolkata", catch_up="all")]
    )
    async def every_minute(ctx: Context[CronTick], step: Step) -> None:
        """Both schedules have a time each second minute, and each gets its run."""

    return app


async def main(url: str, minutes: int) -> None:
    app = make_app(url)
    store = open_store(url, settings=app.settings)
    await store.open()
    clock = VirtualClock(BEGIN)
    schedules = Schedules(store, clock, app._registry, app=app.id)
    await schedules.begin()
    for _ in range(minutes):
        clock.advance(60)
        print(await schedules.run_once(), flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
