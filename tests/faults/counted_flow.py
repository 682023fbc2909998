"""Short runs of which every claim is written down: `python -m tests.faults.counted_flow URL LOG`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

from agentflow import App, Settings
from agentflow.context import Context
from agentflow.step import Step
from agentflow.store.claim_types import ClaimedRun
from tests.crash.flow import write_line
from tests.faults.killed_flow import facts_of, work_until_killed


def make_app(database_url: str, *, settings: Settings | None = None) -> App:
    app = App("counted", database_url=database_url, settings=settings)

    async def double(n: int) -> int:
        return 2 * n

    @app.function
    async def short(ctx: Context[int], step: Step) -> int:
        """One step; every fourth run also sleeps, so that it is claimed once more, most likely by another process."""
        doubled = await step.run("double", double, ctx.data)
        if ctx.data % 4 == 0:
            await step.sleep("nap", 0.2)
        return doubled

    return app


def write_down_claims(app: App, log: str) -> None:
    """Have each claim's answer written to the log before anything comes of it."""
    store: Any = app.client.store
    claim = store.claim

    async def claim_and_tell(*args: Any, **kwargs: Any) -> Sequence[ClaimedRun]:
        claimed: Sequence[ClaimedRun] = await claim(*args, **kwargs)
        if claimed:
            told = [f"{run.key.run_id} {run.key.epoch} {os.getpid()}" for run in claimed]
            write_line(facts_of(log), "\n".join(told))
        return claimed

    store.claim = claim_and_tell


async def main(database_url: str, log: str, **settings: str) -> None:
    app = make_app(database_url, settings=Settings.model_validate(settings))
    async with app:
        write_down_claims(app, log)
        await work_until_killed(app, log)


if __name__ == "__main__":
    database_url, log, *rest = sys.argv[1:]
    asyncio.run(main(database_url, log, **dict(word.split("=", 1) for word in rest)))
