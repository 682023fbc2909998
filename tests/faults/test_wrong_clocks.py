"""Workers whose clocks are an hour wrong, and are set while they work: no lease or timeout ends early or late."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import defaultdict
from pathlib import Path

import pytest

from tests.crash.processes import lines, workers
from tests.faults.facts import check_bodies, check_results, read_facts
from tests.faults.killed_flow import facts_of, make_app
from tests.faults.killing import Load, Stored, check_load, everything_ended
from tests.faults.reporting import Report
from tests.faults.support import FIRST_SEED, IS_FULL, read_rows

MODULE = "tests.faults.wrong_clock"
LEASE_SECONDS = 2.0
LATEST = 5.0
"""Seconds after which something that is due has to happen, on a machine that does a lot else."""
REAPED = "SELECT pid FROM agentflow_worker WHERE reaped_at IS NOT NULL"

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900 if IS_FULL else 120)]


@pytest.mark.fault(11)
async def test_workers_whose_clocks_differ_by_two_hours_agree_about_what_is_due(
    postgres_url: str, tmp_path: Path, report: Report
) -> None:
    log, rng = tmp_path / "log", random.Random(FIRST_SEED)
    app = make_app(postgres_url, str(log))
    plain, others = (200, 20) if IS_FULL else (4, 1)
    sleepers, seconds, naps = (300, 60.0, 2.0) if IS_FULL else (10, 0.5, 1.0)
    with workers(postgres_url, log, module=MODULE, is_forked=False) as group:
        settings = f"lease_seconds={LEASE_SECONDS}"
        await asyncio.gather(*[group.start(f"hours={hours}", settings) for hours in (1, -1, 0)])
        async with app:
            load = Load(app, rng)
            load.release_keepers.set()
            loading = asyncio.create_task(load.bring(plain, others=others, seconds=seconds))
            runs = [await app.start("on-time", naps) for _ in range(sleepers)]
            group.all[1].process.send_signal(signal.SIGUSR1)  # an hour slow until now, then right
            group.all[2].process.send_signal(signal.SIGUSR2)
            for run in runs:
                await run.result()
            await loading
            await everything_ended(app)
            reaped = await read_rows(postgres_url, REAPED)
            # Who dies now is missed as soon as anybody else: by its lease.
            long = [await app.start("long-body", 3600.0) for _ in range(4)]
            by_pid = "SELECT w.pid FROM agentflow_run r JOIN agentflow_worker w ON w.id = r.owner WHERE r.status = 1"
            while len(owners := [pid for (pid,) in await read_rows(postgres_url, by_pid)]) < len(long):
                await asyncio.sleep(0.01)
            died = next(worker for worker in group.all if worker.pid in owners)
            died.kill()
            killed_at = time.monotonic_ns()
            while died.pid in [pid for (pid,) in await read_rows(postgres_url, by_pid)]:
                await asyncio.sleep(0.01)
            taken_over_in = (time.monotonic_ns() - killed_at) / 1e9
            for run in long:
                await app.runs.cancel(run.id)
        stored = await Stored.read(postgres_url)
    facts = read_facts(log)
    assert not reaped, "a worker that lived was taken for dead"
    assert not facts.lost_leases
    check_load(load, facts)
    check_results(facts, stored.steps)
    check_bodies(facts, {died.pid: killed_at}, stored.tokens)
    took = _times(log, "asleep", "awoke") + _times(log, "awoke", "timed-out")
    assert len(took) == 2 * sleepers
    assert naps - 0.05 <= min(took), f"something was early: {min(took):.2f} s"
    assert max(took) <= naps + LATEST, f"something was late: {max(took):.2f} s"
    assert taken_over_in < LEASE_SECONDS + 2
    report(
        f"three workers with clocks of +1 h, -1 h (then set right) and 0 (then -1 h): {len(took)} sleeps and timeouts "
        f"of {naps:.0f} s ended after {min(took):.2f} to {max(took):.2f} s, no living worker was reaped under "
        f"{len(stored.runs)} runs, a killed one after {taken_over_in:.1f} s of a lease of {LEASE_SECONDS:.0f} s"
    )


@pytest.mark.fault(11)
async def test_a_clock_that_is_set_ends_no_lease(database_url: str, tmp_path: Path, report: Report) -> None:
    times = 20 if IS_FULL else 2
    log = tmp_path / "log"
    app = make_app(database_url, str(log))
    with workers(database_url, log, module=MODULE, is_forked=False) as group:
        both = [await group.start("hours=0", f"lease_seconds={LEASE_SECONDS}") for _ in range(2)]
        async with app:
            runs = [await app.start("long-body", times * LEASE_SECONDS) for _ in range(6)]
            for _ in range(times):
                both[0].process.send_signal(signal.SIGUSR1)
                both[1].process.send_signal(signal.SIGUSR2)
                await asyncio.sleep(LEASE_SECONDS)
            tokens = [await run.result() for run in runs]
            reaped = await read_rows(database_url, REAPED)
            epochs = await read_rows(database_url, "SELECT epoch FROM agentflow_run")
    facts = read_facts(log)
    assert not reaped
    assert not facts.lost_leases
    assert facts.repeated == 0
    assert facts.tokens == set(tokens)
    assert epochs == [(1,)] * len(runs)
    report(
        f"two workers' clocks set on and back by an hour {times} times each during bodies of "
        f"{times * LEASE_SECONDS:.0f} s under leases of {LEASE_SECONDS:.0f} s: none was taken over"
    )


def _times(log: Path, begin: str, end: str) -> list[float]:
    """Seconds between the first time that each run said one word, and the first that it said the other."""
    said: dict[tuple[str, str], list[int]] = defaultdict(list)
    for line in lines(Path(facts_of(log))):
        word, run_id, *_, at = line.split()
        said[word, run_id].append(int(at))
    return [
        (min(said[end, run_id]) - min(at)) / 1e9 for (word, run_id), at in list(said.items()) if word == begin
    ]
