"""`timeouts` end a run as cancelled, with the reason: one that begins too late, or has not ended in time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from agentflow import App, Context, Step
from agentflow.errors import ConfigurationError, RunCancelled
from agentflow.flow import RunFailure, Timeouts
from agentflow.runs import RunStatus
from agentflow.testing import harness

TOO_LONG = r"it had not ended within 10m \(timeouts.finish\)"
TOO_LATE = r"it had not begun within 1h \(timeouts.start\)"


@pytest.mark.parametrize("how", ["sleeps", "waits", "retries"])
async def test_a_run_that_sleeps_or_waits_is_cancelled_when_its_time_is_over(
    database_url: str, how: str
) -> None:
    app, told = App("t"), list[str]()

    async def tell(ctx: Context[RunFailure], step: Step) -> None:
        told.append(ctx.data.run_id)

    @app.function(timeouts=Timeouts(finish="10m"), retries=20, on_failure=tell)
    async def f(ctx: Context[str], step: Step) -> None:
        await step.sleep("a while", "9m")
        if ctx.data == "sleeps":
            await step.sleep("nap", "1d")
        elif ctx.data == "waits":
            await step.wait_for_signal("go", signal="go", timeout="1d")
        else:
            raise ValueError("again")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f, how)
        await h.advance("9m59s")
        assert not (await run.status()).is_final
        await h.advance("1s")
        assert await run.status() is RunStatus.CANCELLED
        with pytest.raises(RunCancelled, match=TOO_LONG):
            await run.result(5)
        assert told == []
        record = await app.runs.get(run.id)
        assert record.waiting == []
        assert record.ended_at == h.now()


async def test_a_running_body_is_cancelled_when_its_time_is_over(database_url: str) -> None:
    app, begun, ended = App("t"), asyncio.Event(), list[str]()

    async def endless() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    @app.function(timeouts=Timeouts(finish="10m"))
    async def f(ctx: Context[None], step: Step) -> None:
        await step.run("endless", endless)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await begun.wait()
        h._virtual_clock("advance").advance_to(int(h.now().timestamp() * 1e6) + 600_000_001)
        with pytest.raises(RunCancelled, match=TOO_LONG):
            await run.result(5)
        assert ended == ["cancelled"]
        assert (await app.runs.steps(run.id)).data == []


async def test_a_run_in_time_completes_and_finish_counts_from_its_start(database_url: str) -> None:
    app = App("t")

    @app.function(on="e", timeouts=Timeouts(start="1h", finish="10m"))
    async def f(ctx: Context[Any], step: Step) -> str:
        await step.sleep("nap", "9m")
        return "done"

    async with harness(app, database_url=database_url) as h:
        await h.crash()
        run = await h.start(f)
        await h.advance("1h")
        await h.restart()
        await h.send({"name": "e", "ts": h.now() + timedelta(hours=5)})
        await h.advance("9m")
        assert await run.result(5) == "done"
        await h.advance("6h")
        assert [run.status for run in (await app.runs.list()).data] == [RunStatus.COMPLETED] * 2


async def test_a_run_that_has_not_begun_in_time_never_begins(database_url: str) -> None:
    app, begun = App("t"), list[str]()

    @app.function(timeouts=Timeouts(start="1h"))
    async def f(ctx: Context[None], step: Step) -> None:
        begun.append(ctx.run_id)

    async with harness(app, database_url=database_url) as h:
        await h.crash()
        run = await h.start(f)
        await h.advance("61m")
        assert await run.status() is RunStatus.QUEUED
        await h.restart()
        await h.idle()
        with pytest.raises(RunCancelled, match=TOO_LATE):
            await run.result(5)
        assert begun == []


async def test_the_time_runs_on_while_no_worker_does(database_url: str) -> None:
    app = App("t")

    @app.function(timeouts=Timeouts(finish="10m"))
    async def f(ctx: Context[None], step: Step) -> None:
        await step.wait_for_signal("go", signal="go", timeout="1d")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        await h.crash()
        await h.advance("11m")
        await h.signal("go")
        await h.restart()
        await h.idle()
        with pytest.raises(RunCancelled, match=TOO_LONG):
            await run.result(5)


async def test_a_parent_hears_of_its_childs_time_and_a_child_ends_with_its_parents(database_url: str) -> None:
    app = App("t")

    @app.function(timeouts=Timeouts(finish="10m"))
    async def child(ctx: Context[None], step: Step) -> None:
        await step.sleep("nap", "1d")

    @app.function
    async def patient(ctx: Context[None], step: Step) -> str:
        try:
            await step.invoke("child", child)
        except Exception as error:
            return str(error)
        return "it ended"

    @app.function
    async def sleeper(ctx: Context[None], step: Step) -> None:
        await step.sleep("nap", "1d")

    @app.function(timeouts=Timeouts(finish="10m"))
    async def hasty(ctx: Context[None], step: Step) -> None:
        await step.invoke("sleeper", sleeper)

    async with harness(app, database_url=database_url) as h:
        parent, hurried = await h.start(patient), await h.start(hasty)
        await h.advance("10m")
        assert "it had not ended within 10m" in await parent.result(5)
        assert await hurried.status() is RunStatus.CANCELLED
        [nap] = (await app.runs.list(function="sleeper")).data
        assert nap.status is RunStatus.CANCELLED


def test_timeouts_are_refused_where_they_are_none() -> None:
    async def f(ctx: Context[None], step: Step) -> None: ...

    with pytest.raises(ConfigurationError, match=r"function 'f': timeouts='1h': give Timeouts"):
        App("t").function(timeouts="1h")(f)  # type: ignore[call-overload]
