"""Workers in processes of their own are killed, stopped and replaced; what was committed is never done twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from agentflow.runs import RunStatus, StepStatus
from tests.crash.flow import LEASE_SECONDS, make_app
from tests.crash.processes import end_leases, lines, pause_outside_of_a_write, workers

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]


async def test_a_killed_workers_run_is_finished_by_another_one(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    app = make_app(database_url, str(log))
    await app.migrate()
    with workers(database_url, log) as processes:
        both = [await processes.start(), await processes.start()]
        async with app:
            run = await app.start("count", {"steps": 20, "seconds": 0.05})
            while not any(_done_by(log, worker.pid) >= 3 for worker in both):
                await asyncio.sleep(0.01)
            first, second = sorted(both, key=lambda worker: -_done_by(log, worker.pid))
            first.kill()
            killed_at = time.monotonic()
            committed = {
                step.key
                for step in (await app.runs.steps(run.id)).data
                if step.status is StepStatus.COMPLETED
            }
            while _done_by(log, second.pid) == 0:
                await asyncio.sleep(0.01)
            took_over_in = time.monotonic() - killed_at
            result = await run.result(60)
    assert len(result) == 24
    assert set(result) == {first.pid, second.pid}
    assert took_over_in < LEASE_SECONDS + 2
    bodies = Counter(
        line.split()[0].partition(":")[2] for line in lines(log) if not line.startswith("started")
    )
    assert all(bodies[key] == 1 for key in committed), "a committed step ran again"
    # Only what was in flight at the kill may have been done twice: one step in sequence, or three in parallel.
    assert sum(count - 1 for count in bodies.values()) <= 3


async def test_a_parked_run_is_woken_in_another_process(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    app = make_app(database_url, str(log))
    await app.migrate()
    with workers(database_url, log) as processes:
        first = await processes.start()
        async with app:
            run = await app.start("wait", "go")
            while await run.status() is not RunStatus.WAITING:
                await asyncio.sleep(0.01)
            first.kill()
            second = await processes.start()
            assert await app.signal("go") == run.id
            assert await run.result(30) == second.pid


async def test_a_stopped_worker_that_wakes_up_again_writes_nothing(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    app = make_app(database_url, str(log))
    await app.migrate()
    with workers(database_url, log) as processes:
        both = [await processes.start(), await processes.start()]
        async with app:
            run = await app.start("count", {"steps": 20, "seconds": 0.1})
            while not any(_done_by(log, worker.pid) >= 2 for worker in both):
                await asyncio.sleep(0.01)
            zombie, second = sorted(both, key=lambda worker: -_done_by(log, worker.pid))
            await pause_outside_of_a_write(zombie, database_url)
            result = await run.result(60)
            assert second.pid in result
            steps = (await app.runs.steps(run.id)).data
            zombie.resume()
            # It is told that it is nobody, drops what it was in, and goes on as somebody else: with the other one
            # stopped, only it can do this.
            await pause_outside_of_a_write(second, database_url)
            other = await app.start("count", {"steps": 1, "seconds": 0.1})
            assert set(await other.result(60)) == {zombie.pid}
            assert (await app.runs.steps(run.id)).data == steps
            assert await run.result(5) == result


@pytest.mark.parametrize("kills", [6])
async def test_a_worker_killed_again_and_again_ends_every_run(
    database_url: str, tmp_path: Path, kills: int
) -> None:
    log = tmp_path / "log"
    app = make_app(database_url, str(log))
    await app.migrate()
    with workers(database_url, log) as processes:
        worker = await processes.start()
        async with app:
            runs = [await app.start("count", {"steps": 12, "seconds": 0.03}) for _ in range(10)]
            for _ in range(kills):
                before = len(lines(log))
                while len(lines(log)) < before + 15:
                    await asyncio.sleep(0.005)
                    if all([(await run.status()).is_final for run in runs[-1:]]):
                        break
                worker.kill()
                await end_leases(database_url)
                worker = await processes.start()
            results = [await run.result(60) for run in runs]
            for run in runs:
                steps = (await app.runs.steps(run.id)).data
                assert [step.status for step in steps] == [StepStatus.COMPLETED] * 17
    assert [len(result) for result in results] == [16] * 10


def _done_by(log: Path, pid: int) -> int:
    return sum(line.endswith(f" {pid}") and not line.startswith("started") for line in lines(log))
