"""Two connections for all that is not a step, 500 runs in memory and 500 who wait for their results: no deadlock.

Nobody holds one connection while he asks for another; what cannot be had now is asked for again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest

from agentflow.app import App
from agentflow.context import Context
from agentflow.handles import RunHandle
from agentflow.settings import Settings
from agentflow.step import Step
from tests.faults.reporting import Report
from tests.faults.support import IS_FULL, SECONDS, read_rows
from tests.migrated import url_of

RUNS = 500
FEWER_RUNS = RUNS if IS_FULL else 50
CHAIN = 10
"""How many wait for each other in a row."""
ROUNDS = 5 if IS_FULL else 1
FEWEST = 6
"""Connections of a process that works: steps, heartbeat and notices have one each, claims have two, reads the rest."""


def make_app(url: str, runs: int = RUNS) -> App:
    app = App("t", settings=Settings(database_url=url, durability="process"))
    in_memory: set[str] = set()
    all_there = asyncio.Event()

    async def look_around(run_id: str) -> int:
        """What a body may ask for while 499 others do: reads, a write, and the result of another run."""
        in_memory.add(run_id)
        if len(in_memory) % runs == 0:
            all_there.set()
        await all_there.wait()
        assert (await app.runs.handle(run_id).status()) == "running"
        await app.send({"name": "nobody listens"})
        return len(in_memory)

    @app.function
    async def work(ctx: Context[str | None], step: Step) -> int:
        await step.run("look", look_around, ctx.run_id)
        if ctx.data is None:
            return 0
        before: int = await step.run("wait for another", app.runs.handle(ctx.data).result)
        return before + 1

    return app


async def start_and_wait(worker: App, sender: App, runs: int = RUNS) -> None:
    """Every run waits in a step for the one before it; everybody's result is asked for, half of them elsewhere."""
    handles: list[RunHandle[int]] = []
    before: list[str | None] = [None] * (runs // CHAIN)
    for _ in range(CHAIN):
        handles += await asyncio.gather(*[sender.start("work", run_id) for run_id in before])
        before = [handle.id for handle in handles[-len(before) :]]
    waiting = [
        (worker, sender)[n % 2].runs.handle(handle.id).result(timeout=120) for n, handle in enumerate(handles)
    ]
    assert await asyncio.gather(*waiting) == [n * CHAIN // runs for n in range(runs)]


@pytest.mark.fault(15)
@pytest.mark.timeout(SECONDS)
async def test_with_two_connections_500_runs_and_500_waiters_do_not_lock_each_other_out(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    monkeypatch.setattr("agentflow.store.postgres.store.POOL_SIZE", 2)
    monkeypatch.setattr("agentflow.store.postgres.reading.READERS", 2)
    monkeypatch.setattr("agentflow.store.postgres.reading.MORE_READERS", 0)
    app, sender = make_app(postgres_url), make_app(postgres_url)
    began = time.monotonic()
    async with app.running(concurrency=RUNS), sender:
        for _ in range(ROUNDS):
            await start_and_wait(app, sender)
    took = time.monotonic() - began
    ended = await read_rows(postgres_url, "SELECT status, count(*) FROM agentflow_run GROUP BY status")
    assert ended == [(4, RUNS * ROUNDS)]
    report(
        f"{RUNS} runs in memory at once and {RUNS} who wait for results, {ROUNDS} times: {took / ROUNDS:.1f} s each"
    )


@pytest.fixture
async def few_url(postgres_url: str) -> AsyncIterator[str]:
    """A user for whom the server allows the fewest connections."""
    database = postgres_url.rpartition("/")[2]
    admin = await asyncpg.connect(postgres_url)
    await admin.execute(
        f"CREATE ROLE few LOGIN PASSWORD 'few' CONNECTION LIMIT {FEWEST}; "
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO few"
    )
    there = url_of(postgres_url, database)
    yield "postgresql://few:few@" + there.rpartition("@")[2]
    await admin.execute("DROP OWNED BY few; DROP ROLE few")
    await admin.close()


@pytest.mark.fault(15)
@pytest.mark.timeout(SECONDS)
async def test_a_process_works_with_as_few_connections_as_the_documentation_says(
    few_url: str, report: Report
) -> None:
    app = make_app(few_url, FEWER_RUNS)
    began = time.monotonic()
    async with app.running(concurrency=FEWER_RUNS):
        await start_and_wait(app, app, FEWER_RUNS)
    took = time.monotonic() - began
    report(
        f"{FEWEST} connections are all that the server allows: {FEWER_RUNS} runs and waiters in {took:.1f} s"
    )
