"""What a step costs does not depend on how many are stored: in full 10,000,000 rows, as what has ended leaves them."""

from __future__ import annotations

import asyncio
import time
from statistics import quantiles

import pytest

from agentflow.app import App
from agentflow.context import Context
from agentflow.runs import RunStatus
from agentflow.settings import Settings
from agentflow.step import Step
from tests.faults.copies import copy_steps
from tests.faults.reporting import Report
from tests.faults.support import IS_FULL, SECONDS, read_rows

ROWS = 10_000_000 if IS_FULL else 30_000
STEPS = 500
ROUNDS = 4
MOST_GROWTH = 1.5
NOISE = 0.000_3
"""Seconds that a step may take more than before where others use the machine too."""


@pytest.mark.fault(12)
@pytest.mark.timeout(SECONDS)
async def test_ten_million_stored_steps_do_not_make_the_next_one_slower(
    database_url: str, report: Report
) -> None:
    app = App("t", database_url=database_url, settings=Settings(durability="process"))
    took: list[float] = []

    async def value(n: int) -> dict[str, object]:
        return {"n": n, "text": "some text that a step gave"}

    @app.function
    async def run(ctx: Context[int], step: Step) -> int:
        for n in range(ctx.data):
            began = time.perf_counter()
            await step.run("step", value, n)
            took.append(time.perf_counter() - began)
        await step.wait_for_signal("wait", signal=f"go {ctx.run_id}", timeout="1d")
        return ctx.data

    async def measure() -> tuple[float, float]:
        """What a step takes, and how long it is from a signal to the end of a run that has to be read and replayed."""
        steps, resumed = [], []
        for _ in range(ROUNDS):
            took.clear()
            handle = await app.start(run, STEPS)
            while await handle.status() is not RunStatus.WAITING:
                await asyncio.sleep(0.01)
            steps.append(quantiles(took[:STEPS], n=4)[0])
            began = time.perf_counter()
            await app.signal(f"go {handle.id}")
            await handle.result()
            resumed.append(time.perf_counter() - began)
        return min(steps), min(resumed)

    await app.migrate()
    async with app.running():
        pattern = await app.start(run, 1)
        while await pattern.status() is not RunStatus.WAITING:
            await asyncio.sleep(0.01)
        before, resumed_before = await measure()
        began = time.monotonic()
        await copy_steps(database_url, pattern.id, ROWS)
        filled = time.monotonic() - began
        after, resumed_after = await measure()
    [(rows,)] = await read_rows(database_url, "SELECT count(*) FROM agentflow_step")
    assert rows > ROWS
    assert after < MOST_GROWTH * before + NOISE
    assert resumed_after < MOST_GROWTH * resumed_before + 100 * NOISE
    report(
        f"with {rows:,} steps stored (written in {filled:.0f} s) a step takes {after * 1e6:.0f} microseconds, before "
        f"{before * 1e6:.0f}; from a signal to the end of a run of {STEPS} steps {resumed_after * 1e3:.0f} ms, before "
        f"{resumed_before * 1e3:.0f}"
    )
