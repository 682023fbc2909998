"""A very wide run: 1,000 steps beside each other, and in full 10,000 children of one parent, in bounded memory."""

from __future__ import annotations

import asyncio
import time

import pytest

from agentflow.app import App
from agentflow.context import Context
from agentflow.runs import RunStatus
from agentflow.settings import Settings
from agentflow.step import Step
from tests.faults.reporting import Report
from tests.faults.support import IS_FULL, SECONDS, read_rows, resident_mb

BRANCHES = 1_000
CHILDREN = 10_000 if IS_FULL else 200
KB_A_BRANCH = 10.0
KB_A_CHILD = 20.0
SPARE_MB = 15.0
"""What the process takes for itself meanwhile: SQLite's pages, asyncpg's statements."""
MOST_SECONDS = 20.0


def make_app(url: str) -> App:
    app = App("t", database_url=url, settings=Settings(max_steps=CHILDREN + BRANCHES, durability="process"))

    async def one(n: int) -> int:
        return n

    @app.function
    async def wide(ctx: Context[int], step: Step) -> int:
        done = await asyncio.gather(*[step.run("one", one, n) for n in range(ctx.data)])
        await step.wait_for_signal("wait", signal="go", timeout="1d")
        return sum(done)

    @app.function
    async def child(ctx: Context[int], step: Step) -> int:
        return await step.run("one", one, ctx.data)

    @app.function
    async def parent(ctx: Context[int], step: Step) -> list[int]:
        # Half of them are asked for by tasks of their own.
        async def ask(n: int) -> int:
            value: int = await step.invoke("child", child, data=n)
            return value

        asked = [ask(n) if n % 2 else step.invoke("child", child, data=n) for n in range(ctx.data)]
        return list(await asyncio.gather(*asked))

    return app


@pytest.mark.fault(14)
@pytest.mark.timeout(SECONDS)
async def test_a_thousand_steps_beside_each_other(database_url: str, report: Report) -> None:
    app = make_app(database_url)
    await app.migrate()
    async with app.running():
        before, began = resident_mb(), time.perf_counter()
        run = await app.start("wide", BRANCHES)
        while (status := await run.status()) is not RunStatus.WAITING:
            assert not status.is_final
            await asyncio.sleep(0.02)
        took = time.perf_counter() - began
        began = time.perf_counter()
        await app.signal("go")
        assert await run.result() == sum(range(BRANCHES))
        replayed = time.perf_counter() - began
        grown = resident_mb() - before
    assert await read_rows(
        database_url, "SELECT count(*), count(DISTINCT seq) FROM agentflow_step WHERE kind = 'run'"
    ) == [(BRANCHES, BRANCHES)]
    assert grown < SPARE_MB + BRANCHES * KB_A_BRANCH / 1000
    assert max(took, replayed) < MOST_SECONDS
    report(
        f"{BRANCHES:,} steps beside each other in {took:.2f} s; replayed from the signal to the result in "
        f"{replayed:.2f} s; the process grew by {grown:.0f} MB"
    )


@pytest.mark.fault(14)
@pytest.mark.timeout(SECONDS)
async def test_ten_thousand_children_of_one_parent(database_url: str, report: Report) -> None:
    app = make_app(database_url)
    await app.migrate()
    async with app.running():
        before, began = resident_mb(), time.perf_counter()
        run = await app.start("parent", CHILDREN)
        got = await run.result()
        took = time.perf_counter() - began
        grown = resident_mb() - before
    assert got == list(range(CHILDREN)), "each child once, each result in its place"
    statuses = await read_rows(
        database_url,
        "SELECT status, count(*) FROM agentflow_run WHERE parent_id IS NOT NULL GROUP BY status",
    )
    assert statuses == [(4, CHILDREN)]
    assert await read_rows(database_url, "SELECT count(*) FROM agentflow_wait") == [(0,)]
    assert grown < SPARE_MB + CHILDREN * KB_A_CHILD / 1000
    report(
        f"{CHILDREN:,} children of one parent in {took:.0f} s ({took / CHILDREN * 1e3:.1f} ms each); the process grew "
        f"by {grown:.0f} MB"
    )
