"""`cancel_on`: an arriving event cancels the matching runs, at once or, where one is running, at its next step."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from agentflow import App, Context, FunctionRef, Step
from agentflow.errors import ConfigurationError, RunCancelled
from agentflow.flow import CancelOn
from agentflow.runs import RunStatus
from agentflow.testing import harness

GONE = CancelOn("user.gone", match="data.user")


def gone(user: object) -> dict[str, Any]:
    return {"name": "user.gone", "data": {"user": user}}


def waiting_app(*rules: CancelOn) -> App:
    app = App("t")

    @app.function(on="order.placed", cancel_on=rules or GONE)
    async def order(ctx: Context[dict[str, Any]], step: Step) -> str:
        if ctx.data.get("sleeps"):
            await step.sleep("nap", "1h")
            return "slept"
        signal = await step.wait_for_signal("paid", signal=f"paid/{ctx.run_id}", timeout="1d")
        return "paid" if signal else "not paid"

    return app


async def test_an_event_cancels_the_waiting_and_sleeping_runs_it_matches(database_url: str) -> None:
    app = waiting_app()
    async with harness(app, database_url=database_url) as h:
        await h.send({"name": "order.placed", "data": {"user": 1}})
        sleeping = await h.start("order", {"user": 1, "sleeps": True})
        other = await h.start("order", {"user": "1"})
        without = await h.start("order", {})
        await h.idle()
        [event] = await h.send(gone(1))
        runs = {run.id: run for run in (await app.runs.list()).data}
        ended = [run for run in runs.values() if run.status is RunStatus.CANCELLED]
        assert len(ended) == 2
        assert {run.reason for run in ended} == {f"event 'user.gone' ({event})"}
        with pytest.raises(RunCancelled, match=r"user\.gone"):
            await sleeping.result(5)
        assert {runs[other.id].status, runs[without.id].status} == {RunStatus.WAITING}
        await h.signal(f"paid/{other.id}")
        assert await other.result(5) == "paid"


async def test_a_queued_run_is_cancelled_before_it_begins(database_url: str) -> None:
    app = waiting_app()
    async with harness(app, database_url=database_url) as h:
        await h.send({"name": "order.placed", "data": {"user": 1}, "ts": h.now() + timedelta(hours=1)})
        await h.idle()
        await h.send(gone(1))
        [run] = (await app.runs.list()).data
        assert (run.status, run.started_at) == (RunStatus.CANCELLED, None)


async def test_a_running_run_is_asked_to_stop(database_url: str) -> None:
    app, begun, ended = App("t"), asyncio.Event(), list[str]()

    async def endless() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    @app.function(cancel_on=GONE)
    async def f(ctx: Context[dict[str, int]], step: Step) -> None:
        await step.run("endless", endless)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f, {"user": 1})
        await begun.wait()
        [event] = await h.send(gone(1))
        with pytest.raises(RunCancelled, match=event):
            await run.result(5)
        assert ended == ["cancelled"]


async def test_what_cancels_a_run_neither_shows_nor_wakes_nor_delays_it(database_url: str) -> None:
    app = waiting_app(GONE, CancelOn("shop.closed", timeout="10m"))
    async with harness(app, database_url=database_url) as h:
        run = await h.start("order", {"user": 1, "sleeps": True})
        await h.advance("30m")
        record = await app.runs.get(run.id)
        assert record.status is RunStatus.SLEEPING
        assert [waiting.step_key for waiting in record.waiting] == ["nap"]
        assert [step.key for step in (await app.runs.steps(run.id)).data] == ["nap"]
        await h.crash()
        await h.restart()
        await h.send(gone(2))
        await h.advance("30m")
        assert await run.result(5) == "slept"
        assert [step.key for step in (await app.runs.steps(run.id)).data] == ["nap"]
        await h.send(gone(1))
        assert await run.status() is RunStatus.COMPLETED


async def test_a_rule_without_a_match_cancels_all_and_one_with_a_timeout_for_so_long(
    database_url: str,
) -> None:
    app = waiting_app(CancelOn("shop.closed", timeout="10m"))
    async with harness(app, database_url=database_url) as h:
        old = await h.start("order", {})
        await h.advance("10m")
        young = await h.start("order", {})
        await h.idle()
        await h.send({"name": "shop.closed"})
        assert await old.status() is RunStatus.WAITING
        assert await young.status() is RunStatus.CANCELLED


async def test_the_event_that_starts_a_run_cancels_the_older_ones_and_not_that(database_url: str) -> None:
    app = waiting_app(CancelOn("order.placed", match="data.user"))
    async with harness(app, database_url=database_url) as h:
        for _ in range(3):
            await h.send({"name": "order.placed", "data": {"user": 1}})
            await h.idle()
        statuses = [run.status for run in (await app.runs.list()).data]
        assert statuses == [RunStatus.WAITING, RunStatus.CANCELLED, RunStatus.CANCELLED]


async def test_children_of_a_cancelled_run_end_with_it_and_its_parent_hears_of_it(database_url: str) -> None:
    app = waiting_app()

    @app.function(cancel_on=GONE)
    async def middle(ctx: Context[dict[str, int]], step: Step) -> Any:
        return await step.invoke("order", "order", data={"user": 2})

    @app.function
    async def top(ctx: Context[None], step: Step) -> str:
        try:
            return str(await step.invoke("middle", middle, data={"user": 1}))
        except Exception as error:
            return type(error).__name__

    async with harness(app, database_url=database_url) as h:
        run = await h.start(top)
        await h.idle()
        await h.send(gone(1))
        assert await run.result(5) == "StepError"
        [child] = (await app.runs.list(function="order")).data
        assert child.status is RunStatus.CANCELLED


async def test_an_event_with_more_than_can_be_indexed_cancels_as_well(database_url: str) -> None:
    app = waiting_app()
    async with harness(app, database_url=database_url) as h:
        mine, other = await h.start("order", {"user": 1}), await h.start("order", {"user": 2})
        await h.idle()
        event = gone(1)
        event["data"]["much"] = list(range(3000))
        await h.send(event)
        assert await mine.status() is RunStatus.CANCELLED
        assert await other.status() is RunStatus.WAITING


async def test_a_process_that_does_not_import_the_function_starts_runs_that_are_cancelled(
    database_url: str,
) -> None:
    app = waiting_app(CancelOn("user.gone", match="data.user", timeout=timedelta(hours=1)))
    sender = App("sender", database_url=database_url)

    @sender.function
    async def asks(ctx: Context[None], step: Step) -> None: ...

    async with harness(app, database_url=database_url) as h, sender:
        started = await sender.start(FunctionRef("order", app="t"), {"user": 1})
        await sender.send({"name": "order.placed", "data": {"user": 1}})
        again = await sender.runs.rerun(started.id)
        await h.idle()
        await sender.send(gone(1))
        runs = (await app.runs.list()).data
        assert again.id in {run.id for run in runs}
        assert [run.status for run in runs] == [RunStatus.CANCELLED] * 3


async def test_an_event_sent_by_a_step_cancels_too(database_url: str) -> None:
    app = waiting_app()

    @app.function
    async def tells(ctx: Context[None], step: Step) -> None:
        await step.send_event("tell", gone(1))

    async with harness(app, database_url=database_url) as h:
        run = await h.start("order", {"user": 1})
        await h.idle()
        await (await h.start(tells)).result(5)
        assert await run.status() is RunStatus.CANCELLED


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            CancelOn("e", if_="async.data.x == foo"),
            r"function 'f': cancel_on=CancelOn\('e', if_=...\): the expression 'async.data.x == foo' is wrong at line",
        ),
        ([CancelOn("e")] * 6, r"function 'f': cancel_on= holds 6 values, at most 5"),
        ("e", r"function 'f': cancel_on='e' is no CancelOn"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(given: Any, message: str) -> None:
    async def f(ctx: Context[None], step: Step) -> None: ...

    with pytest.raises(ConfigurationError, match=message):
        App("t").function(cancel_on=given)(f)
