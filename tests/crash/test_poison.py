"""A run that kills its worker is found out, and fails; what ran beside it does not. Real processes die."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from agentflow.errors import RunFailed
from agentflow.handles import RunHandle
from tests.crash.poison_flow import make_app
from tests.crash.processes import end_leases, lines
from tests.forked import Forked

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]


async def test_a_run_that_kills_its_worker_five_times_fails_as_poisoned_and_its_neighbours_do_not(
    database_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    app = make_app(database_url, str(log))
    await app.migrate()
    async with app:
        bad = await app.start("poison", "bad")
        good = [await app.start("innocent", f"good-{n}") for n in range(2)]
        deaths = await _work(database_url, log, [bad, *good])
        assert [await run.result(5) for run in good] == ["good-0", "good-1"]
        with pytest.raises(RunFailed) as failed:
            await bad.result(5)
        run = await app.runs.get(bad.id)
    assert failed.value.error.name == "Poisoned"
    assert run.reason is not None
    assert run.reason.startswith(f"Poisoned: run {bad.id} of 'poison': 5 processes died")
    assert "after step 'before'" in run.reason
    bodies = Counter(line.split()[1] for line in lines(log))
    assert bodies["before"] == 1
    assert bodies["bad"] == deaths == 5
    last = next(line.split()[0] for line in reversed(lines(log)) if line.endswith(" bad"))
    in_last = [line.split()[1] for line in lines(log) if line.startswith(f"{last} ")]
    assert in_last[-1] == "bad"
    assert {f"{name}-done" for name in in_last if name in ("good-0", "good-1")} <= set(in_last), (
        "something else was executed when the last process died"
    )


async def test_every_new_step_begins_the_count_again(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    app = make_app(database_url, str(log))
    await app.migrate()
    async with app:
        run = await app.start("healed", "x")
        assert await _work(database_url, log, [run]) == 8
        assert await run.result(5) == 2


async def _work(database_url: str, log: Path, runs: list[RunHandle[object]]) -> int:
    """Start a worker, again and again as it dies, until all runs have ended; how often it died."""
    deaths = 0
    while True:
        with Forked(["-m", "tests.crash.poison_flow", database_url, log]) as worker:
            while worker.poll() is None:
                if all([(await run.status()).is_final for run in runs]):
                    return deaths
                await asyncio.sleep(0.02)
        deaths += 1
        assert deaths < 20
        await end_leases(database_url)
