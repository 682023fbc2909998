"""More worker processes on one PostgreSQL do not get in each other's way: a step costs what it did before."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentflow.app import App
from tests.crash.processes import workers
from tests.faults.busy_flow import make_app
from tests.faults.reporting import Report
from tests.faults.support import IS_FULL, SECONDS, cpu_seconds, read_rows

PROCESSES = (1, 2, 4) if IS_FULL else (1, 2)
RUNS = 1_000 if IS_FULL else 100
STEPS = 10
ROUNDS = 3
DEARER = 2.0
"""What a step may cost with several processes: each of them claims fewer runs at once, and commits fewer steps."""


@dataclass(frozen=True)
class Figures:
    """What so many processes did."""

    rate: float
    """Steps a second: on a machine that others use too, this is theirs as well."""
    cost: float
    """Seconds of a core for each step, those of the workers and of the server together."""
    took_part: int


@pytest.mark.fault(10)
@pytest.mark.timeout(SECONDS * 2)
async def test_a_step_costs_no_more_where_several_processes_work(
    postgres_url: str, tmp_path: Path, report: Report
) -> None:
    found: dict[int, list[Figures]] = {count: [] for count in PROCESSES}
    for n in range(ROUNDS):
        for count in PROCESSES:
            found[count].append(await measure(postgres_url, tmp_path / f"{n}-{count}", count))
        if not IS_FULL and all(is_shown(found, count) for count in PROCESSES[1:]):
            break
    for count in PROCESSES[1:]:
        assert is_shown(found, count), found
    cost = {count: min(each.cost for each in figures) for count, figures in found.items()}
    rate = {count: max(each.rate for each in figures) for count, figures in found.items()}
    told = ", ".join(
        f"{cost[count] * 1e6:.0f} microseconds of a core for a step by {count} ({rate[count]:,.0f} steps a second)"
        for count in PROCESSES
    )
    report(f"{os.cpu_count()} cores, shared with the server and with others: {told}")


def is_shown(found: dict[int, list[Figures]], count: int) -> bool:
    """Whether so many processes, all at work, did it at a fair cost, beside one process in the same round.

    In one round, because the machine itself may be twice as slow a few seconds later.
    """
    return any(
        many.cost < DEARER * one.cost and many.took_part > 1
        for one, many in zip(found[1], found[count], strict=True)
    )


async def measure(url: str, log: Path, processes: int) -> Figures:
    """Let so many processes end what was queued before, for the second time: what is done first costs more."""
    app = make_app(url)
    await app.migrate()
    with workers(url, log, module="tests.faults.busy_flow") as group:
        await asyncio.gather(*[group.start() for _ in range(processes)])
        async with app:
            pids = [worker.pid for worker in group.all]
            await play(app, url, pids)
            return await play(app, url, pids)


async def play(app: App, url: str, workers: list[int]) -> Figures:
    """What it cost these processes, and the server, to end what was queued while the function was paused."""
    await app.functions.pause("busy")
    runs = await asyncio.gather(*[app.start("busy", STEPS) for _ in range(RUNS)])
    backends = await read_rows(
        url, "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    pids = workers + [pid for (pid,) in backends]
    before = {pid: cpu_seconds(pid) for pid in pids}
    await app.functions.resume("busy")
    began = time.perf_counter()
    await asyncio.gather(*[run.result() for run in runs])
    took = time.perf_counter() - began
    used = 0.0
    for pid, so_far in before.items():
        with suppress(FileNotFoundError):  # a connection that was closed meanwhile
            used += cpu_seconds(pid) - so_far
    of_these = f"run_id IN (SELECT id FROM agentflow_run ORDER BY created_at DESC LIMIT {RUNS})"
    [(ended, took_part)] = await read_rows(
        url, f"SELECT count(*), count(DISTINCT output) FROM agentflow_step WHERE {of_these}"
    )
    assert ended == RUNS * STEPS, "each step once"
    return Figures(ended / took, used / ended, took_part)
