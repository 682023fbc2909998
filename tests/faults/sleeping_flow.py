"""An app whose runs mostly wait: `python -m tests.faults.sleeping_flow URL LOG` is a worker process of it.

What it is warned of goes to `LOG.warnings`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import Any

from agentflow.app import App
from agentflow.context import Context
from agentflow.settings import Settings
from agentflow.step import Step
from tests.crash.flow import write_line

NAPS = 30


def make_app(
    database_url: str, *, claims: list[float] | None = None, waits: list[float] | None = None
) -> App:
    """`claims` is read, and what the runs see when they begin to wait goes into `waits`: the clock."""
    app = App("sleepers", database_url=database_url, settings=Settings(durability="process"))

    async def who() -> int:
        return os.getpid()

    @app.function
    async def parked(ctx: Context[str], step: Step) -> int:
        """Waits for a month, in the way that it is asked to."""
        pid = await step.run("first", who)
        if waits is not None:
            waits.append(time.monotonic())
        if ctx.data == "sleep":
            await step.sleep("wait", "30d")
        elif ctx.data == "event":
            await step.wait_for_event("wait", event="told", match="data", timeout="30d")
        else:
            await step.wait_for_signal("wait", signal=f"go {ctx.run_id}", timeout="30d")
        return await step.run("last", who) and pid

    @app.function
    async def naps(ctx: Context[None], step: Step) -> list[float]:
        """The seconds that the claims took by which this run went on after each of many naps."""
        for _ in range(NAPS):
            await step.sleep("nap", 0.01)
        return [] if claims is None else claims[-NAPS:]

    @app.function
    async def quick(ctx: Context[None], step: Step) -> int:
        return await step.run("who", who)

    return app


async def main(database_url: str, log: str) -> None:
    logging.basicConfig(filename=f"{log}.warnings", level=logging.WARNING)
    claims: list[float] = []
    app = make_app(database_url, claims=claims)
    async with app.running():
        store = app.client.store
        claim = store.claim

        async def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            claimed = await claim(*args, **kwargs)
            if claimed:
                claims.append(time.perf_counter() - began)
            return claimed

        store.claim = timed  # type: ignore[method-assign]
        write_line(log, f"started {os.getpid()}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
