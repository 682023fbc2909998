"""A worker that stops hands over a run whose code is at something of its own: now, not when that has ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentflow.app import App
from agentflow.context import Context
from agentflow.engine.worker import Worker
from agentflow.errors import RunCancelled
from agentflow.runs import RunStatus
from agentflow.step import Step
from agentflow.testing import Harness, harness


def worker_of(h: Harness) -> Worker:
    assert h._worker is not None
    return h._worker


async def test_a_run_at_something_of_its_own_is_handed_over_at_once(database_url: str) -> None:
    app, cleaned = App("t"), []
    reached = asyncio.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        async def listen() -> None:
            await step.wait_for_signal("never", signal="never", timeout="1h")

        listening = asyncio.create_task(listen())
        await step.run("one", lambda: "one", output=str)
        try:
            reached.set()
            await asyncio.get_running_loop().create_future()
        finally:
            cleaned.append(listening.done())
        return "not reached"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await reached.wait()
        async with asyncio.timeout(2):  # ten seconds are what code has that knows that it is to end
            await worker_of(h).stop()
        assert cleaned == [True]
        assert await run.status() is RunStatus.QUEUED


async def test_clean_up_is_left_to_end_after_the_run_is_handed_over(sqlite_url: str) -> None:
    app, may_end, reached = App("t"), asyncio.Event(), asyncio.Event()
    cleaned: list[str] = []

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        loop = asyncio.get_running_loop()

        async def say_goodbye(answer: asyncio.Future[str]) -> None:
            cleaned.append(await answer)

        reached.set()
        try:
            await loop.create_future()
        finally:
            answer: asyncio.Future[str] = loop.create_future()
            waiting = asyncio.ensure_future(may_end.wait())
            waiting.add_done_callback(lambda _: answer.set_result("goodbye"))
            await say_goodbye(answer)
        return "not reached"

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await reached.wait()
        stopping = asyncio.create_task(worker_of(h).stop())
        async with asyncio.timeout(2):
            while await run.status() is not RunStatus.QUEUED:
                await asyncio.sleep(0.01)
        assert not cleaned
        assert not stopping.done()
        may_end.set()
        await stopping
        assert cleaned == ["goodbye"]


@pytest.mark.parametrize("shape", ["in the function", "in a task"])
async def test_cancelling_ends_code_that_is_at_something_of_its_own(sqlite_url: str, shape: str) -> None:
    app, reached = App("t"), asyncio.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        async def stay() -> None:
            reached.set()
            await asyncio.get_running_loop().create_future()

        if shape == "in the function":
            await stay()
        else:
            await asyncio.gather(stay(), step.sleep("nap", "1h"))

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await reached.wait()
        await app.runs.cancel(run.id)
        async with asyncio.timeout(2):
            with pytest.raises(RunCancelled):
                await run.result()
