"""Workers are killed again and again under runs of every kind: each ends, nothing changes, little is done twice."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from agentflow import App
from tests.crash.processes import workers
from tests.faults.facts import check_bodies, check_held_apart, check_results, read_facts
from tests.faults.killed_flow import make_app
from tests.faults.killing import Killer, Load, Stored, check_load, everything_ended
from tests.faults.reporting import Report
from tests.faults.support import FIRST_SEED, IS_FULL, read_rows

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


@pytest.mark.fault(20)
async def test_what_a_live_run_needs_is_kept_while_all_else_is_removed_every_second(
    database_url: str, tmp_path: Path, report: Report
) -> None:
    kills, plain, others = (100, 600, 20) if IS_FULL else (4, 6, 1)
    keep = 20.0 if IS_FULL else 4.0  # what has ended is read by who waits for it within this time
    log, rng = tmp_path / "log", random.Random(FIRST_SEED)
    app = make_app(database_url, str(log))
    began = time.monotonic()
    with workers(database_url, log, module=MODULE) as group:
        killer = Killer(group, rng, arguments=(f"retention={keep}s", "lease_seconds=3"))
        async with app:
            load = Load(app, rng)
            killing = asyncio.create_task(killer.kill(kills, workers=3 if IS_FULL else 2))
            loading = asyncio.create_task(load.bring(plain, others=others, seconds=kills * 0.6))
            await killing
            await others_ended(app, load)
            await everything_is_old(database_url, keep)
            left = await read_rows(database_url, "SELECT id, function, parent_id, status FROM agentflow_run")
            load.release_keepers.set()
            await loading
            await everything_ended(app)
        stored = await Stored.read(database_url)
    facts = read_facts(log)
    keepers = {run_id for (kind, _), run_id in load.ids.items() if kind == "keeper"}
    children = {(parent, function, status) for _, function, parent, status in left if parent is not None}
    assert children == {(run_id, "middle", COMPLETED) for run_id in keepers}, (
        "a child is missing, or one too many"
    )
    assert {run_id for run_id, _, parent, _ in left if parent is None} == keepers
    check_load(load, facts)
    check_results(facts, stored.steps)
    report(
        f"what ended {keep:.0f} s ago was removed every second under {kills} kills: of {load.expected.total()} runs "
        f"{len(keepers)} that waited all the time and their children were left after {time.monotonic() - began:.0f} s, "
        "each went on, none was without its child, and every result was right"
    )


async def others_ended(app: App, load: Load) -> None:
    """Wait until only the keepers are left."""
    keepers = sum(kind == "keeper" for kind, _ in load.ids)
    async with asyncio.timeout(120):
        while True:
            live = await app.runs.list(status=["queued", "running", "sleeping", "waiting"], limit=100)
            if len(live.data) <= keepers and {run.function for run in live.data} <= {"keeper"}:
                return
            await asyncio.sleep(0.2)


async def everything_is_old(url: str, keep: float) -> None:
    """Wait until whatever may be removed is."""
    await asyncio.sleep(keep)
    before = "SELECT count(*) FROM agentflow_run WHERE parent_id IS NULL AND status >= 4"
    async with asyncio.timeout(60):
        while (await read_rows(url, before))[0][0]:
            await asyncio.sleep(0.1)
