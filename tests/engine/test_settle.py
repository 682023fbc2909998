"""Handing out outcomes costs each branch the same, however many others there are."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest

from agentflow.app import App
from agentflow.context import Context
from agentflow.settings import Settings
from agentflow.step import Step
from agentflow.testing import harness

Shape = Callable[[Step, int], Any]


async def _one(n: int) -> int:
    return n


def _flat(step: Step, n: int) -> Any:
    return step.run("one", _one, n)


async def _in_two_tasks(step: Step, n: int) -> int:
    """A branch that is blocked on other branches, not on the engine."""
    return sum(await asyncio.gather(step.run("one", _one, n), step.run("two", _one, n)))


async def _after_a_wait(step: Step, n: int) -> int:
    await step.sleep("nap", 1)
    return await step.run("one", _one, n)


class Calls:
    """Counts the calls of the loop's thread: of a machine's haste they say nothing."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Calls:
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: Any, event: str, argument: Any) -> None:
        self.count += event in ("call", "c_call")


async def calls_a_branch(database_url: str, shape: Shape, branches: int) -> float:
    """How many calls it takes to do a run of so many branches, and to replay it."""
    app = App("t", settings=Settings(max_steps=10 * branches, durability="process"))
    calls = Calls()

    @app.function
    async def wide(ctx: Context[None], step: Step) -> int:
        with calls:
            done = await asyncio.gather(*[shape(step, n) for n in range(branches)])
        await step.sleep("before the replay", 5)
        return len(done)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(wide)
        for _ in range(3):
            await h.idle()
            sys.setprofile(None)  # the function left memory in its block
            await h.advance("5s")
        assert await run.result(5) == branches
    return calls.count / branches


@pytest.mark.parametrize("shape", [_flat, _in_two_tasks, _after_a_wait])
async def test_ten_times_the_branches_are_ten_times_the_work(sqlite_url: str, shape: Shape) -> None:
    few = await calls_a_branch(f"{sqlite_url}.few", shape, 30)
    many = await calls_a_branch(f"{sqlite_url}.many", shape, 300)
    assert many < 1.5 * few
