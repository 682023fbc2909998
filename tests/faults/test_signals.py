"""No wake-up is lost between "is it there?" and "register": in full 128 tasks x 1,000 rounds, and none is lost."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from pydantic import BaseModel

from agentflow.app import App
from agentflow.context import Context
from agentflow.errors import NoWaiter
from agentflow.settings import Settings
from agentflow.step import Step
from tests.faults.reporting import Report
from tests.faults.support import FIRST_SEED, IS_FULL, SECONDS, read_rows

TASKS = 128
ROUNDS = 1_000 if IS_FULL else 2
ROUNDS_OF_A_RUN = 20


class Turn(BaseModel):
    """One run's share of a task's rounds."""

    name: str
    rounds: int


def make_app(url: str) -> App:
    app = App("t", database_url=url, settings=Settings(durability="process"))

    @app.function
    async def receives(ctx: Context[Turn], step: Step) -> list[int | None]:
        got = []
        for _ in range(ctx.data.rounds):
            signal = await step.wait_for_signal("next", signal=ctx.data.name, timeout="1h")
            got.append(signal and signal.data)
        return got

    return app


@pytest.mark.fault(8)
@pytest.mark.timeout(SECONDS)
async def test_of_128_tasks_that_wait_again_and_again_none_misses_a_signal(
    database_url: str, report: Report
) -> None:
    await make_app(database_url).migrate()
    app, other = make_app(database_url), make_app(database_url)
    rng = random.Random(FIRST_SEED)
    retries = 0

    async def send(sender: App, name: str, n: int) -> str | None:
        nonlocal retries
        while True:
            try:
                return await sender.signal(name, n)
            except NoWaiter:
                retries += 1
                await asyncio.sleep(rng.choice([0, 0.001, 0.01, 0.05]))

    async def one_task(task: int) -> int:
        name, delivered = f"task {task}", 0
        # Half of the senders have the worker in their process; the others have nothing but the database.
        sender = (app, other)[task % 2]
        for first in range(0, ROUNDS, ROUNDS_OF_A_RUN):
            numbers = list(range(first, min(first + ROUNDS_OF_A_RUN, ROUNDS)))
            run = await app.start("receives", Turn(name=name, rounds=len(numbers)))
            for n in numbers:
                assert await send(sender, name, n) == run.id
            assert await run.result() == numbers, "each once, and in the order in which they were sent"
            with pytest.raises(NoWaiter):
                await sender.signal(name, -1)
            delivered += len(numbers)
        return delivered

    began = time.perf_counter()
    async with other, app.running(concurrency=TASKS):
        delivered = sum(await asyncio.gather(*map(one_task, range(TASKS))))
    took = time.perf_counter() - began
    assert delivered == TASKS * ROUNDS
    assert await read_rows(database_url, "SELECT count(*) FROM agentflow_wait") == [(0,)]
    assert await read_rows(database_url, "SELECT count(*) FROM agentflow_step") == [(delivered,)]
    [(sent, runs)] = await read_rows(
        database_url, "SELECT count(*), count(DISTINCT run_id) FROM agentflow_signal WHERE state = 1"
    )
    assert (sent, runs) == (delivered, TASKS * -(-ROUNDS // ROUNDS_OF_A_RUN))
    report(
        f"{TASKS} tasks x {ROUNDS:,} rounds in {took:.0f} s, none lost; {retries:,} times nobody waited yet"
    )
