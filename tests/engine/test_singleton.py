"""`singleton=`: one run at a time per key; `priority=`: who goes first."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from agentflow.app import App
from agentflow.context import Context
from agentflow.errors import RunCancelled, RunSkipped
from agentflow.events import Event
from agentflow.flow import Singleton
from agentflow.runs import RunStatus
from agentflow.step import Step
from agentflow.testing import harness


def single(singleton: Singleton) -> tuple[App, Counter[str]]:
    app, at_work = App("t"), Counter[str]()

    @app.function(on="sync", id="sync", singleton=singleton)
    async def sync(ctx: Context[dict[str, Any]], step: Step) -> str:
        async def work() -> None:
            at_work[ctx.data["who"]] += 1
            try:
                assert at_work[ctx.data["who"]] == 1
                await asyncio.sleep(0.01)
            finally:
                at_work[ctx.data["who"]] -= 1

        await step.run("work", work)
        await step.wait_for_signal("go", signal=f"go {ctx.data['n']}", timeout="1d")
        return f"{ctx.data['who']} {ctx.data['n']}"

    return app, at_work


async def test_a_second_run_is_skipped_while_the_first_has_not_ended(database_url: str) -> None:
    app, _ = single(Singleton("data.who"))
    async with harness(app, database_url=database_url) as h:
        first = await h.start("sync", {"who": "ana", "n": 1})
        await h.idle()
        second = await h.start("sync", {"who": "ana", "n": 2})
        other = await h.start("sync", {"who": "ben", "n": 3})
        await h.idle()
        assert await other.status() is RunStatus.WAITING
        with pytest.raises(RunSkipped, match=first.id):
            await second.result()
        await h.signal("go 1")
        assert await first.result() == "ana 1"
        third = await h.start("sync", {"who": "ana", "n": 4})
        await h.idle()
        assert await third.status() is RunStatus.WAITING


async def test_of_fifty_at_once_one_is_admitted(database_url: str) -> None:
    app, _ = single(Singleton())
    async with harness(app, database_url=database_url) as h:
        runs = await asyncio.gather(*[h.start("sync", {"who": "x", "n": n}) for n in range(50)])
        await h.idle()
        assert Counter([await run.status() for run in runs]) == {RunStatus.WAITING: 1, RunStatus.SKIPPED: 49}


async def test_a_second_run_cancels_the_first_and_never_works_beside_it(database_url: str) -> None:
    app, _ = single(Singleton("data.who", mode="cancel"))
    async with harness(app, database_url=database_url) as h:
        runs = [await h.start("sync", {"who": "ana", "n": n}) for n in range(3)]
        await h.idle()
        later = await h.start("sync", {"who": "ana", "n": 3})
        await h.idle()
        statuses = [await run.status() for run in runs]
        assert statuses == [RunStatus.CANCELLED] * 3
        with pytest.raises(RunCancelled, match=later.id):
            await runs[2].result()
        await h.signal("go 3")
        assert await later.result() == "ana 3"


async def test_runs_of_higher_priority_go_first(database_url: str) -> None:
    app, order = App("t"), []

    @app.function(on="work", priority="data.ahead")
    async def work(ctx: Context[dict[str, Any]], step: Step) -> None:
        order.append(ctx.data["ahead"])

    async with harness(app, database_url=database_url) as h:
        await h.crash()
        await h.send([Event(name="work", data={"ahead": ahead}) for ahead in (0, 10, -10, 300, None, 10_000)])
        await h.restart()
        await h.idle()
    assert order == [10_000, 300, 10, 0, None, -10]


async def test_priority_is_counted_in_seconds_ahead(database_url: str) -> None:
    app, order = App("t"), []

    @app.function(on="work", priority=lambda event: event["data"]["ahead"])
    async def work(ctx: Context[dict[str, Any]], step: Step) -> None:
        order.append(ctx.data["name"])

    async with harness(app, database_url=database_url) as h:
        await h.crash()
        await h.send(Event(name="work", data={"ahead": 0, "name": "early"}))
        await h.advance("2m")
        await h.send(Event(name="work", data={"ahead": 60, "name": "late, 60 s ahead"}))
        await h.send(Event(name="work", data={"ahead": 180, "name": "late, 180 s ahead"}))
        await h.restart()
        await h.idle()
    assert order == ["late, 180 s ahead", "early", "late, 60 s ahead"]


async def test_a_run_of_negative_priority_begins_at_once_where_nobody_else_wants_to(
    database_url: str,
) -> None:
    app = App("t")

    @app.function(priority="event.data < 0 ? -600 : 0")
    async def work(ctx: Context[int], step: Step) -> int:
        return ctx.data

    async with harness(app, database_url=database_url) as h:
        run = await h.start(work, -1)
        await h.idle()
        assert await run.result() == -1


async def test_nor_does_a_slot_that_was_taken_hold_it_up_for_longer(database_url: str) -> None:
    app = App("t")

    @app.function(concurrency=1, priority=lambda event: -600 * event["data"])
    async def work(ctx: Context[int], step: Step) -> int:
        return ctx.data

    async with harness(app, database_url=database_url) as h:
        await h.crash()
        runs = [await h.start(work, n) for n in (0, 1, 0, 1)]
        await h.restart()
        await h.idle()
        assert [await run.status() for run in runs] == [RunStatus.COMPLETED] * 4
