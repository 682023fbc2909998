"""A great many runs that wait: they cost a worker neither memory nor time, and when all are due at once it copes.

In full 1,000,000 on PostgreSQL and 200,000 on SQLite, 100,000 due at once, and 100,000 that one process starts
(40,000 on PostgreSQL).
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from agentflow.app import App
from agentflow.handles import RunHandle
from agentflow.runs import RunStatus
from tests.crash.processes import workers
from tests.faults.copies import copy_runs
from tests.faults.reporting import Report
from tests.faults.sleeping_flow import make_app
from tests.faults.support import IS_FULL, SECONDS, cpu_seconds, read_rows, resident_mb

MODULE = "tests.faults.sleeping_flow"
KINDS = ("sleep", "event", "signal")
SLEEPERS = {"sqlite": 200_000, "postgresql": 1_000_000} if IS_FULL else {"sqlite": 6_000, "postgresql": 6_000}
DUE_AT_ONCE = 100_000 if IS_FULL else 1_000
PARKED = {"sqlite": 100_000, "postgresql": 40_000} if IS_FULL else {"sqlite": 800, "postgresql": 800}
"""Each of them is really started; on PostgreSQL 100,000 would take two cores a quarter of an hour."""
MOST_MB = 50.0
MOST_CPU = 0.02 if IS_FULL else 0.05
"""In a short time the system's count of it is coarse."""
IDLE_SECONDS = 30.0 if IS_FULL else 1.5
SLOWER = 1.5
ROUNDS = 3
"""So often a claim is measured among the sleepers, and at most what an idle worker takes: something else may be busy in
one of them."""
NOISE = 0.002
"""Seconds that a claim may take more than before where others use the machine too."""
KB_A_PARKED = 1.0
SPARE_KB = 0 if IS_FULL else 10_000
"""In a short run what the process takes once is not yet little."""
GONE_AFTER = 2.0


async def park(app: App) -> list[RunHandle[Any]]:
    """One run of each kind, all waiting."""
    runs = [await app.start("parked", kind) for kind in KINDS]
    for run in runs:
        while await run.status() not in (RunStatus.SLEEPING, RunStatus.WAITING):
            await asyncio.sleep(0.02)
    return runs


async def claim_seconds(app: App) -> float:
    """What a claim takes, as a rule."""
    run = await app.start("naps")
    taken: list[float] = await run.result()
    return median(taken)


async def idle_cpu(pid: int) -> float:
    """The part of one core that a process takes while it has nothing to do. What it does once is not to count: it looks
    for abandoned jobs some seconds after its start, and then first loads what reads."""
    part = 1.0
    for _ in range(ROUNDS):
        began, used = time.monotonic(), cpu_seconds(pid)
        await asyncio.sleep(IDLE_SECONDS)
        part = min(part, (cpu_seconds(pid) - used) / (time.monotonic() - began))
        if part < MOST_CPU:
            break
    return part


@pytest.mark.fault(12)
@pytest.mark.timeout(SECONDS)
async def test_a_million_sleepers_cost_a_worker_nothing(
    database_url: str, tmp_path: Path, report: Report
) -> None:
    app = make_app(database_url)
    await app.migrate()
    with workers(database_url, tmp_path / "log", module=MODULE) as group:
        worker = await group.start()
        async with app:
            runs = await park(app)
            claim_before = await claim_seconds(app)
            cpu_before = await idle_cpu(worker.pid)
            mb_before = resident_mb(worker.pid)
            began = time.monotonic()
            times = SLEEPERS[database_url.partition(":")[0]] // len(runs)
            sleepers = await copy_runs(database_url, [run.id for run in runs], times)
            filled = time.monotonic() - began
            claim_after = min([await claim_seconds(app) for _ in range(ROUNDS)])
            cpu_after = await idle_cpu(worker.pid)
            mb_after = resident_mb(worker.pid)
            # They are what suspended runs are: one of the copies goes on when it is told to.
            copy = f"{runs[2].id}-{times:08d}"
            await app.signal(f"go {runs[2].id}-{times:08d}")
            assert await app.runs.handle(copy).result() == worker.pid
    [(waiting,)] = await read_rows(database_url, "SELECT count(*) FROM agentflow_run WHERE status IN (2, 3)")
    assert waiting == sleepers + len(runs) - 1, "nobody else was woken"
    assert mb_after - mb_before < MOST_MB
    assert claim_after < SLOWER * claim_before + NOISE
    assert max(cpu_before, cpu_after) < MOST_CPU
    report(
        f"{sleepers:,} sleepers (written in {filled:.0f} s): the worker grew by {mb_after - mb_before:.1f} MB, a claim "
        f"takes {claim_after * 1e3:.1f} ms (before {claim_before * 1e3:.1f}), an idle worker "
        f"{cpu_after * 100:.2f} % of a core (before {cpu_before * 100:.2f})"
    )


@pytest.mark.fault(12)
@pytest.mark.timeout(SECONDS)
async def test_a_hundred_thousand_sleepers_that_are_due_at_once_are_done_soon(
    database_url: str, tmp_path: Path, report: Report
) -> None:
    app = make_app(database_url)
    await app.migrate()
    with workers(database_url, tmp_path / "log", module=MODULE) as group:
        worker = await group.start()
        async with app:
            runs = await park(app)
            due_at = int(time.time() * 1e6) - 1_000_000
            await copy_runs(database_url, [runs[0].id], DUE_AT_ONCE, due_at=due_at)
            began = time.monotonic()
            quick = await app.start("quick")
            assert await quick.result() == worker.pid
            meanwhile = time.monotonic() - began
            while await read_rows(
                database_url, f"SELECT 1 FROM agentflow_run WHERE ready_at <= {due_at} OR status = 1 LIMIT 1"
            ):
                await asyncio.sleep(0.2)
            took = time.monotonic() - began
            assert worker.process.poll() is None
    found = await read_rows(
        database_url,
        "SELECT status, count(*), max(epoch), max(crash_count) FROM agentflow_run "
        f"WHERE function = 'parked' AND id LIKE '{runs[0].id}-%' GROUP BY status",
    )
    assert found == [(4, DUE_AT_ONCE, 2, 0)], "each was woken once"
    [(steps,)] = await read_rows(
        database_url, "SELECT count(*) FROM agentflow_step WHERE key = 'last' AND seq IS NOT NULL"
    )
    assert steps == DUE_AT_ONCE
    assert (tmp_path / "log.warnings").read_text() == "", "no lease was lost, no statement took too long"
    report(
        f"{DUE_AT_ONCE:,} sleepers that are due at once end in {took:.0f} s ({DUE_AT_ONCE / took:,.0f} a second) on "
        f"one worker, without a warning; a run that was started then ended after {meanwhile:.1f} s"
    )


@pytest.mark.fault(12)
@pytest.mark.timeout(SECONDS)
async def test_parked_runs_are_out_of_memory(database_url: str, report: Report) -> None:
    parked = PARKED[database_url.partition(":")[0]]
    waits: list[float] = []
    app = make_app(database_url, waits=waits)
    await app.migrate()
    worker = app.worker(concurrency=200)
    await worker.start()

    async def start(count: int) -> float:
        """Start so many; the seconds until none is in memory after the last has begun to wait."""
        have = len(waits) + count
        for first in range(0, count, 500):
            await asyncio.gather(
                *[app.start("parked", KINDS[n % 3]) for n in range(first, min(first + 500, count))]
            )
        while len(waits) < have or worker.running:
            await asyncio.sleep(0.02)
        return time.monotonic() - waits[-1]

    try:
        few = parked // 10
        await start(few)
        before, began = resident_mb(), time.monotonic()
        gone_after = await start(parked - few)
        took = time.monotonic() - began
        grown_kb = (resident_mb() - before) * 1000
    finally:
        await worker.stop()
        await app.close()
    [(waiting,)] = await read_rows(database_url, "SELECT count(*) FROM agentflow_run WHERE status IN (2, 3)")
    assert waiting == parked
    each = (grown_kb - SPARE_KB) / (parked - few)
    assert each < KB_A_PARKED
    assert gone_after < GONE_AFTER
    report(
        f"{parked:,} runs parked by one process ({(parked - few) / took:,.0f} a second): {max(0.0, each):.2f} KB each, "
        f"the last out of memory {gone_after:.2f} s after it began to wait"
    )
