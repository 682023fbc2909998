"""A very long run: in full 10,000 steps in a row. The last cost what the first did; it is soon back where it was."""

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
from tests.faults.reporting import Report
from tests.faults.support import IS_FULL, SECONDS, read_rows

STEPS = 10_000 if IS_FULL else 2_000
THOUSAND = STEPS // 10
WAKE_UPS = 8
MOST_GROWTH = 1.3
MOST_SECONDS = 1.0
"""From the signal to the first new step, everything between: its delivery, the claim, the journal, the replay."""
AS_SOON_AS = 0.020
"""What is promised of 1,000 steps."""
BUSY = 4
"""How much longer it may take where others use the machine too."""


def low(times: list[float]) -> float:
    """What a step takes when nothing comes between: the lower quartile."""
    return quantiles(times, n=4)[0]


@pytest.mark.fault(13)
@pytest.mark.timeout(SECONDS)
async def test_the_last_thousand_of_ten_thousand_steps_cost_what_the_first_did(
    database_url: str, report: Report
) -> None:
    app = App("t", database_url=database_url, settings=Settings(max_steps=2 * STEPS, durability="process"))
    took: list[float] = []
    went_on: list[float] = []

    async def value(n: int) -> dict[str, object]:
        return {"n": n, "text": "some text that a step gave"}

    async def new() -> None:
        went_on.append(time.perf_counter())

    @app.function
    async def long(ctx: Context[int], step: Step) -> int:
        for n in range(ctx.data):
            began = time.perf_counter()
            await step.run("step", value, n)
            took.append(time.perf_counter() - began)
        for _ in range(WAKE_UPS):
            await step.wait_for_signal("wait", signal=f"go {ctx.data}", timeout="1d")
            await step.run("new", new)
        return ctx.data

    async def resume(steps: int) -> list[float]:
        """How long it takes from each signal to the first new step."""
        resumed = []
        run = await app.start(long, steps)
        for n in range(WAKE_UPS):
            while (status := await run.status()) is not RunStatus.WAITING:
                assert not status.is_final
                await asyncio.sleep(0.01)
            began = time.perf_counter()
            await app.signal(f"go {steps}")
            while len(went_on) == n:
                await asyncio.sleep(0.001)
            resumed.append(went_on[n] - began)
        assert await run.result() == steps
        went_on.clear()
        return resumed

    await app.migrate()
    async with app.running():
        resumed = await resume(STEPS)
        first, last = low(took[:THOUSAND]), low(took[STEPS - THOUSAND : STEPS])
        soon = await resume(1_000)
    counted = await read_rows(
        database_url, "SELECT count(*), count(DISTINCT run_id) FROM agentflow_step WHERE kind = 'run'"
    )
    assert counted == [(STEPS + 1_000 + 2 * WAKE_UPS, 2)], "each step was stored once"
    assert last < MOST_GROWTH * first
    assert min(resumed) < MOST_SECONDS
    assert min(soon) < BUSY * AS_SOON_AS
    report(
        f"{STEPS:,} steps in a row: the last {THOUSAND:,} took {last / first:.2f} times as long as the first; from a "
        f"signal to the first new step {min(resumed) * 1e3:.0f} ms at best, {max(resumed) * 1e3:.0f} at worst; with "
        f"1,000 steps {min(soon) * 1e3:.0f} and {max(soon) * 1e3:.0f} ms"
    )
