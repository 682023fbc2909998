"""Workers are killed again and again under runs of every kind: each ends, nothing changes, little is done twice."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.crash.processes import workers
from tests.faults.facts import check_bodies, check_held_apart, check_results, read_facts
from tests.faults.killed_flow import make_app
from tests.faults.killing import Killer, Load, Stored, check_load, everything_ended
from tests.faults.reporting import Report
from tests.faults.support import FIRST_SEED, IS_FULL

MODULE = "tests.faults.killed_flow"
COMPLETED, FAILED = 4, 5

pytestmark = [pytest.mark.crash, pytest.mark.timeout(1200 if IS_FULL else 120)]


@pytest.mark.fault(1)
@pytest.mark.parametrize("processes", [3, 1] if IS_FULL else [2])
async def test_killed_again_and_again_every_run_ends_as_if_nobody_had_been_killed(
    database_url: str, tmp_path: Path, processes: int, report: Report
) -> None:
    kills = (200 if processes == 3 else 100) if IS_FULL else 4
    plain, others = (2000, 40) if IS_FULL else (12, 1)
    log, rng = tmp_path / "log", random.Random(FIRST_SEED)
    app = make_app(database_url, str(log))
    began = time.monotonic()
    with workers(database_url, log, module=MODULE) as group:
        killer = Killer(group, rng)
        async with app:
            load = Load(app, rng)
            load.release_keepers.set()
            killing = asyncio.create_task(killer.kill(kills, workers=processes))
            await load.bring(plain, others=others, seconds=kills * 0.6)
            await killing
            await everything_ended(app)
        stored = await Stored.read(database_url)
        facts = read_facts(log)
    ends = Counter((row[1], row[2]) for row in stored.runs)
    reasons = [row for row in stored.runs if row[2] != COMPLETED and row[1] not in ("broken", "failing")]
    assert not reasons, reasons
    assert stored.functions() - Counter(batched=ends["batched", COMPLETED]) == load.expected
    assert sorted(stored.batched()) == list(range(load.rows)), "an event is in no batch, or in two"
    check_load(load, facts)
    check_results(facts, stored.steps)
    check_bodies(facts, killer.killed, stored.tokens)
    check_held_apart(facts)
    steps = sum(len(of_run) for of_run in stored.steps.values())
    report(
        f"{kills} kills of {processes} worker process{'es' if processes > 1 else ''} in "
        f"{time.monotonic() - began:.0f} s under {len(stored.runs)} runs with {steps} steps: 0 bad, none poisoned; "
        f"{facts.repeated} bodies ran twice, and {facts.in_flight(killer.killed, stored.tokens)} were in flight at "
        "the kills"
    )
