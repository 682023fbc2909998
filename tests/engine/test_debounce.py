"""`debounce=`: one run with the last event, once none has come for a period."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from agentflow.app import App
from agentflow.context import Context
from agentflow.events import Event
from agentflow.flow import Concurrency, Debounce, Idempotency, Timeouts
from agentflow.runs import RunStatus
from agentflow.step import Step
from agentflow.testing import harness


def debounced(debounce: Debounce) -> tuple[App, list[Any]]:
    app, seen = App("t"), []

    @app.function(on="typed", id="save", debounce=debounce)
    async def save(ctx: Context[dict[str, Any]], step: Step) -> Any:
        seen.append((ctx.data["doc"], ctx.data["n"], ctx.event is not None and ctx.event.data["n"]))
        return ctx.data["n"]

    return app, seen


def typed(doc: str, n: int) -> Event:
    return Event(name="typed", data={"doc": doc, "n": n})


async def test_the_last_event_wins_once_none_has_come_for_the_period(database_url: str) -> None:
    app, seen = debounced(Debounce("10s"))
    async with harness(app, database_url=database_url) as h:
        for n in range(4):
            await h.send(typed("a", n))
            await h.advance("9s")
        assert seen == []
        await h.advance("1s")
        assert seen == [("a", 3, 3)]
        await h.send(typed("a", 4))
        await h.advance("10s")
        assert seen == [("a", 3, 3), ("a", 4, 4)]
        assert len((await app.runs.list()).data) == 2


async def test_each_key_is_debounced_for_itself(database_url: str) -> None:
    app, seen = debounced(Debounce("10s", key="data.doc"))
    async with harness(app, database_url=database_url) as h:
        await h.send([typed("a", 1), typed("b", 1), typed("a", 2)])
        await h.advance("10s")
    assert sorted(seen) == [("a", 2, 2), ("b", 1, 1)]


async def test_the_timeout_ends_the_putting_off(database_url: str) -> None:
    app, seen = debounced(Debounce("10s", timeout="25s"))
    async with harness(app, database_url=database_url) as h:
        for n in range(4):
            await h.send(typed("a", n))
            await h.advance("8s")
        assert seen == [("a", 3, 3)]


async def test_starts_share_the_run_that_comes_of_them(database_url: str) -> None:
    app, seen = debounced(Debounce("10s"))
    async with harness(app, database_url=database_url) as h:
        first = await h.start("save", {"doc": "a", "n": 1})
        second = await h.start("save", {"doc": "a", "n": 2}, idempotency_key="k")
        again = await h.start("save", {"doc": "a", "n": 2}, idempotency_key="k")
        assert first.id == second.id == again.id
        run = await app.runs.get(first.id)
        assert run.status is RunStatus.QUEUED
        assert (run.reason or "").startswith("debounce: ")
        await h.advance("10s")
        assert await first.result() == await second.result() == 2
    assert seen == [("a", 2, False)]


async def test_an_event_leads_to_the_run_that_it_became_part_of(database_url: str) -> None:
    app, _ = debounced(Debounce("10s"))
    async with harness(app, database_url=database_url) as h:
        ids = await h.send([typed("a", 1), typed("a", 2)])
        [run] = (await app.runs.list()).data
        for event_id in ids:
            assert [found.id for found in (await app.events.runs(event_id)).data] == [run.id]


async def test_a_crash_between_loses_nothing(database_url: str) -> None:
    app, seen = debounced(Debounce("10s"))
    async with harness(app, database_url=database_url) as h:
        await h.send(typed("a", 1))
        await h.crash()
        await h.send(typed("a", 2))
        await h.advance("1h")
        await h.send(typed("a", 3))
        await h.restart()
        await h.advance("10s")
    assert seen == [("a", 3, 3)]


async def test_a_run_that_is_cancelled_collects_no_more(database_url: str) -> None:
    app, seen = debounced(Debounce("10s"))
    async with harness(app, database_url=database_url) as h:
        await h.send(typed("a", 1))
        [run] = (await app.runs.list()).data
        await app.runs.cancel(run.id)
        await h.send(typed("a", 2))
        await h.advance("10s")
    assert seen == [("a", 2, 2)]


async def test_the_last_event_decides_what_the_run_has_to_pass(database_url: str) -> None:
    app, most = App("t"), Counter[str]()
    at_work = Counter[str]()

    @app.function(
        on="typed",
        id="save",
        debounce=Debounce("10s", key="data.doc"),
        concurrency=Concurrency(1, key="data.n"),
    )
    async def save(ctx: Context[dict[str, Any]], step: Step) -> None:
        who = str(ctx.data["n"])
        at_work[who] += 1
        most[who] = max(most[who], at_work[who])
        for _ in range(5):
            await asyncio.sleep(0.001)
        at_work[who] -= 1

    async with harness(app, database_url=database_url) as h:
        await h.send([typed("a", 1), typed("b", 2), typed("a", 2)])
        await h.advance("10s")
        assert len((await app.runs.list(status="completed")).data) == 2
    assert most == {"2": 1}


async def test_the_time_to_begin_counts_from_when_it_may(database_url: str) -> None:
    app = App("t")

    @app.function(debounce=Debounce("10s"), timeouts=Timeouts(start="5s"))
    async def save(ctx: Context[int], step: Step) -> int:
        return ctx.data

    async with harness(app, database_url=database_url) as h:
        await h.start(save, 1)
        await h.advance("9s")
        run = await h.start(save, 2)
        await h.advance("10s")
        assert await run.result() == 2
        late = await h.start(save, 3)
        await h.crash()
        await h.advance("16s")
        await h.restart()
        await h.idle()
        assert await late.status() is RunStatus.CANCELLED


async def test_idempotency_leads_to_the_run_that_a_start_became_part_of(database_url: str) -> None:
    app = App("t")

    @app.function(debounce=Debounce("10s"), idempotency=Idempotency("data.id"))
    async def save(ctx: Context[dict[str, Any]], step: Step) -> int:
        return int(ctx.data["id"])

    async with harness(app, database_url=database_url) as h:
        first = await h.start(save, {"id": 1})
        joined = await h.start(save, {"id": 2})
        again = await h.start(save, {"id": 2})
        assert joined.id == first.id
        assert first.id in ((await app.runs.get(again.id)).reason or "")
        await h.advance("10s")
        assert await first.result() == 2


async def test_a_key_that_the_sender_lacks_collects_all_the_same(database_url: str) -> None:
    app, seen = App("t"), []

    @app.function(on="typed", debounce=Debounce("300ms", key=lambda event: event["data"]["doc"]))
    async def save(ctx: Context[dict[str, Any]], step: Step) -> None:
        seen.append((ctx.data["doc"], ctx.data["n"]))

    stranger = App("stranger", database_url=database_url)
    async with harness(app, database_url=database_url, clock="system"), stranger:
        await stranger.send([typed("a", 1), typed("b", 1)])
        await stranger.send(typed("a", 2))
        async with asyncio.timeout(20):
            while len((await app.runs.list(status="completed")).data) < 2:
                await asyncio.sleep(0.01)
        assert len((await app.runs.list(status="skipped")).data) == 1
    assert sorted(seen) == [("a", 2), ("b", 1)]
