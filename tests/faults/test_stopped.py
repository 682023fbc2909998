"""A worker that is stopped for three leases and woken up again: what it was in the middle of is nobody's any more."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agentflow.store.rows import Base
from tests.crash.processes import WorkerProcess, lines, pause_outside_of_a_write, workers
from tests.faults.facts import check_results, read_facts
from tests.faults.killed_flow import SLOWEST, complaints_of, make_app
from tests.faults.killing import Load, Stored, check_load, everything_ended
from tests.faults.reporting import Report
from tests.faults.support import FIRST_SEED, IS_FULL, read_rows

MODULE = "tests.faults.killed_flow"
TRIALS = 100 if IS_FULL else 2
ZOMBIES = 5 if IS_FULL else 3
LEASE_SECONDS = 1.0
ARGUMENTS = (f"lease_seconds={LEASE_SECONDS}", "concurrency=4")

pytestmark = [pytest.mark.crash, pytest.mark.timeout(1200 if IS_FULL else 120)]


@pytest.mark.fault(3)
async def test_a_stopped_worker_that_wakes_up_writes_nothing_of_what_others_have_taken_over(
    database_url: str, tmp_path: Path, report: Report
) -> None:
    log, rng = tmp_path / "log", random.Random(FIRST_SEED)
    app = make_app(database_url, str(log))
    trials = taken_over = rounds = 0
    began = time.monotonic()
    with workers(database_url, log, module=MODULE) as group:
        _, *zombies = await asyncio.gather(*[group.start(*ARGUMENTS) for _ in range(1 + ZOMBIES)])
        async with app:
            while trials < TRIALS:
                load = Load(app, rng, first=rounds * 100)
                load.release_keepers.set()
                loading = asyncio.create_task(load.bring(6, others=2 if IS_FULL else 1, seconds=0.5))
                await asyncio.sleep(rng.uniform(0.4, 1.5))
                lost_before = _lost_leases(log)
                for zombie in zombies:
                    await pause_outside_of_a_write(zombie, database_url)
                stopped_at = time.monotonic()
                owned = await _owned_by(database_url, zombies)
                await asyncio.wait([loading], timeout=60)
                assert loading.done(), (
                    f"the peer does not end all runs: {await read_rows(database_url, LEFT)}"
                )
                await loading
                await everything_ended(app)
                await asyncio.sleep(max(0.0, stopped_at + 3 * LEASE_SECONDS - time.monotonic()))
                stored = await _read_everything(database_url)
                for zombie in zombies:
                    zombie.resume()
                # It is told that it is nobody, and the bodies that it was in come to their end.
                async with asyncio.timeout(30):
                    while any(_lost_leases(log)[pid] == lost_before[pid] for pid in pids_of(zombies)):
                        await asyncio.sleep(0.05)
                await asyncio.sleep(SLOWEST + 0.2)
                assert await _read_everything(database_url) == stored
                check_load(load, read_facts(log))
                rounds += 1
                trials += len(owned)
                taken_over += sum(owned.values())
        check_results(read_facts(log), (await Stored.read(database_url)).steps)
    report(
        f"{trials} workers stopped for three leases of {LEASE_SECONDS:.0f} s while they executed {taken_over} runs, "
        f"which a peer ended, then woken up ({time.monotonic() - began:.0f} s): 0 writes of the old epoch were accepted"
    )


LEFT = "SELECT id, function, status, owner, ready_at, crash_count FROM agentflow_run WHERE status < 4"


async def _owned_by(url: str, zombies: list[WorkerProcess]) -> Counter[int]:
    """How many runs each process executes."""
    rows = await read_rows(
        url,
        "SELECT w.pid FROM agentflow_run r JOIN agentflow_worker w ON w.id = r.owner "
        "WHERE r.status = 1 AND w.reaped_at IS NULL",
    )
    return Counter(pid for (pid,) in rows if pid in pids_of(zombies))


def pids_of(zombies: list[WorkerProcess]) -> list[int]:
    return [zombie.pid for zombie in zombies]


async def _read_everything(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table but those that say which workers there are."""
    names = [name for name in Base.metadata.tables if name != "agentflow_worker"]
    return {name: sorted(await read_rows(url, f"SELECT * FROM {name}"), key=repr) for name in names}


def _lost_leases(log: Path) -> Counter[int]:
    """How often each process said that it has lost its lease."""
    told = lines(Path(complaints_of(log)))
    return Counter(int(line.split()[2]) for line in told if "has lost its lease" in line)
