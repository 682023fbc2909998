"""Runs of a paused function stay `queued`, for every worker, until it is resumed."""

from __future__ import annotations

import pytest

from agentflow import App, Context, FunctionRef, Step
from agentflow.errors import NotFound
from agentflow.runs import RunStatus
from agentflow.testing import harness


def two_functions() -> tuple[App, list[str]]:
    app, begun = App("t"), list[str]()

    @app.function(on="e")
    async def f(ctx: Context[object], step: Step) -> str:
        begun.append(ctx.run_id)
        await step.sleep("nap", "1h")
        return "done"

    @app.function
    async def other(ctx: Context[object], step: Step) -> str:
        return "other"

    return app, begun


async def test_runs_of_a_paused_function_stay_queued_until_it_is_resumed(database_url: str) -> None:
    app, begun = two_functions()
    async with harness(app, database_url=database_url) as h:
        assert (await app.functions.pause("f")).paused_at is not None
        started = await h.start("f")
        await h.send({"name": "e"})
        again = await app.runs.rerun(started.id)
        assert await (await h.start("other")).result(5) == "other"
        await h.advance("2h")
        assert begun == []
        runs = [await app.runs.get(started.id), *(await app.runs.list(function="f")).data]
        assert {(run.status, run.reason) for run in runs} == {
            (RunStatus.QUEUED, "the function 'f' is paused")
        }
        assert (await app.functions.resume("f")).paused_at is None
        assert (await app.runs.get(started.id)).reason is None
        await h.advance("1h")
        assert await again.result(5) == "done"
        assert len(begun) == 6  # three runs, each once more after its nap


async def test_a_run_that_sleeps_goes_on_only_when_its_function_is_resumed(database_url: str) -> None:
    app, _ = two_functions()
    async with harness(app, database_url=database_url) as h:
        run = await h.start("f")
        await h.idle()
        await app.functions.pause("f")
        await h.advance("2h")
        assert await run.status() is RunStatus.SLEEPING
        await app.runs.cancel(run.id)
        assert await run.status() is RunStatus.CANCELLED
        second = await h.start("f")
        await app.functions.resume("f")
        await h.advance("1h")
        assert await second.result(5) == "done"


async def test_a_pause_holds_over_restarts_and_registrations_and_its_first_time_stands(
    database_url: str,
) -> None:
    app, begun = two_functions()
    async with harness(app, database_url=database_url) as h:
        first = await app.functions.pause("f")
        await h.advance("1h")
        assert (await app.functions.pause("f")).paused_at == first.paused_at
        await h.crash()
    app, begun = two_functions()
    async with harness(app, database_url=database_url) as h:
        assert (await app.functions.get("f")).paused_at == first.paused_at
        await h.start("f")
        await h.idle()
        assert begun == []


async def test_a_pause_is_of_one_apps_function_whoever_starts_its_runs(database_url: str) -> None:
    app, begun = two_functions()
    sender = App("sender", database_url=database_url)

    @sender.function
    async def asks(ctx: Context[None], step: Step) -> None: ...

    async with harness(app, database_url=database_url) as h, sender:
        await app.functions.pause("f")
        await sender.start(FunctionRef("f", app="t"))
        await h.idle()
        assert begun == []
        with pytest.raises(NotFound, match="app 'sender' has no function 'f'"):
            await sender.functions.resume("f")
        with pytest.raises(NotFound, match="no function 'nowhere'"):
            await app.functions.pause("nowhere")
