"""An app's throughput is that of an empty database, whatever another app in it leaves undone: 20,000 queued runs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from statistics import median

import pytest

from agentflow.app import App
from agentflow.context import Context
from agentflow.settings import Settings
from agentflow.step import Step
from tests.faults.reporting import Report
from tests.faults.support import IS_FULL, SECONDS, read_rows

QUEUED = 20_000 if IS_FULL else 2_000
RUNS = 100 if IS_FULL else 40
TURNS = 9 if IS_FULL else 5
MOST = 1.3 if IS_FULL else 1.8
"""How much longer it may take: what this machine does besides is part of it."""


def make_app(name: str, url: str) -> App:
    app = App(name, database_url=url, settings=Settings(durability="process"))

    @app.function(on="work")
    async def works(ctx: Context[int], step: Step) -> int:
        # By way of a queue, not of the worker's memory: this is what other runs in the queue could slow down.
        await step.sleep("nap", 0.001)
        return await step.run("work", one, ctx.data)

    return app


async def one(n: int) -> int:
    return n


async def leave_undone(url: str) -> None:
    async with make_app("silent", url) as silent:
        for first in range(0, QUEUED, 500):
            await asyncio.gather(*[silent.start("works", n) for n in range(first, min(first + 500, QUEUED))])


async def do_runs(app: App) -> float:
    began = time.perf_counter()
    runs = await asyncio.gather(*[app.start("works", n) for n in range(RUNS)])
    assert await asyncio.gather(*[run.result() for run in runs]) == list(range(RUNS))
    return time.perf_counter() - began


@pytest.fixture
def urls(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> tuple[str, str]:
    """Two databases of one kind: one for both apps, one that only the working app uses."""
    if database_url.startswith("sqlite"):
        return database_url, f"sqlite:///{tmp_path / 'empty.db'}"
    return database_url, request.getfixturevalue("second_postgres_url")


@pytest.mark.fault(12)
@pytest.mark.timeout(SECONDS)
async def test_an_app_is_as_fast_beside_another_s_queued_runs_as_in_an_empty_database(
    urls: tuple[str, str], report: Report
) -> None:
    full_url, empty_url = urls
    beside, alone = make_app("busy", full_url), make_app("busy", empty_url)
    await beside.migrate()
    await alone.migrate()
    await leave_undone(full_url)
    took: dict[App, list[float]] = {beside: [], alone: []}
    for app in (beside, alone):
        async with app.running():
            await do_runs(app)  # the first time is a warm-up
    for _ in range(TURNS):
        # In turns, so that both get their share of what else this machine does.
        for app in (beside, alone):
            async with app.running():
                took[app].append(await do_runs(app))
    waiting = "SELECT count(*) FROM agentflow_run WHERE app = 'silent' AND status = 0"
    assert await read_rows(full_url, waiting) == [(QUEUED,)]
    # Of the same turn, because the machine itself may be twice as fast a few seconds later.
    ratio = median(full / empty for full, empty in zip(took[beside], took[alone], strict=True))
    assert ratio < MOST, f"{ratio:.2f} times as long: {took}"
    report(
        f"beside {QUEUED:,} queued runs of an idle app {RUNS / median(took[beside]):.0f} runs/s, in an empty "
        f"database {RUNS / median(took[alone]):.0f} runs/s; {ratio:.2f} x the time, the median of {TURNS} turns"
    )
