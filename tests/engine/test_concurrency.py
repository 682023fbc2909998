"""`concurrency=`: how many runs execute at once, per key; one that sleeps or waits does not count."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from agentflow.app import App
from agentflow.context import Context
from agentflow.errors import ConfigurationError
from agentflow.events import Event
from agentflow.flow import Concurrency
from agentflow.runs import RunStatus
from agentflow.step import Step
from agentflow.testing import Harness, harness


class Gauge:
    """How many bodies are at work, by key, now and at most."""

    def __init__(self) -> None:
        self.now: Counter[Any] = Counter()
        self.most: Counter[Any] = Counter()
        self.order: list[Any] = []

    async def work(self, key: Any) -> Any:
        self.now[key] += 1
        self.most[key] = max(self.most[key], self.now[key])
        self.order.append(key)
        for _ in range(5):
            await asyncio.sleep(0)
        self.now[key] -= 1
        return key


def keyed_app(gauge: Gauge, concurrency: Any) -> App:
    app = App("t")

    @app.function(on="work", concurrency=concurrency)
    async def work(ctx: Context[dict[str, Any]], step: Step) -> Any:
        return await step.run("work", gauge.work, ctx.data.get("user"), output=Any)

    return app


async def send(h: Harness, *users: str) -> None:
    await h.send([Event(name="work", data={"user": user}) for user in users])


async def statuses(app: App) -> Counter[RunStatus]:
    return Counter(run.status for run in (await app.runs.list(limit=100)).data)


async def test_at_most_limit_runs_of_a_key_execute_at_once(database_url: str) -> None:
    gauge = Gauge()
    app = keyed_app(gauge, Concurrency(2, key="data.user"))
    async with harness(app, database_url=database_url) as h:
        await send(h, *["ana"] * 9, *["ben"] * 9)
        await h.idle()
        assert await statuses(app) == {RunStatus.COMPLETED: 18}
    assert gauge.most == {"ana": 2, "ben": 2}


async def test_without_a_key_the_limit_is_the_function_s(database_url: str) -> None:
    gauge = Gauge()
    app = keyed_app(gauge, 1)
    async with harness(app, database_url=database_url) as h:
        await send(h, *["ana"] * 20)
        await h.idle()
        assert await statuses(app) == {RunStatus.COMPLETED: 20}
    assert gauge.most == {"ana": 1}


async def test_runs_of_a_key_begin_in_the_order_in_which_they_came(database_url: str) -> None:
    app, order = App("t"), []

    @app.function(on="work", concurrency=1)
    async def work(ctx: Context[dict[str, Any]], step: Step) -> None:
        order.append(ctx.data["n"])
        await asyncio.sleep(0)

    async with harness(app, database_url=database_url) as h:
        await h.crash()
        for n in range(30):
            await h.send(Event(name="work", data={"n": n}))
        await h.restart()
        await h.idle()
    assert order == list(range(30))


async def test_a_run_that_sleeps_or_waits_holds_no_slot(database_url: str) -> None:
    app = App("t")
    began: list[str] = []

    @app.function(concurrency=1)
    async def naps(ctx: Context[str], step: Step) -> str:
        began.append(ctx.data)
        if ctx.data == "sleeper":
            await step.sleep("nap", "1h")
        if ctx.data == "waiter":
            await step.wait_for_signal("word", signal="word", timeout="1d")
        return ctx.data

    async with harness(app, database_url=database_url) as h:
        sleeper = await h.start(naps, "sleeper")
        await h.idle()
        waiter = await h.start(naps, "waiter")
        await h.idle()
        other = await h.start(naps, "other")
        await h.idle()
        assert [await run.status() for run in (sleeper, waiter, other)] == [
            RunStatus.SLEEPING,
            RunStatus.WAITING,
            RunStatus.COMPLETED,
        ]
        await h.signal("word")
        await h.advance("2h")
        assert await sleeper.result() == "sleeper"
        assert await waiter.result() == "waiter"


async def test_a_run_that_wakes_waits_for_a_slot_again(database_url: str) -> None:
    app, gate = App("t"), asyncio.Event()
    log: list[str] = []

    @app.function(concurrency=1)
    async def works(ctx: Context[str], step: Step) -> str:
        if ctx.data == "sleeper":
            await step.sleep("nap", "1h")
            log.append("sleeper wakes")
        else:
            await step.run("hold", gate.wait, output=bool)
            log.append("holder ends")
        return ctx.data

    async with harness(app, database_url=database_url) as h:
        sleeper = await h.start(works, "sleeper")
        await h.idle()
        holder = await h.start(works, "holder")
        while await holder.status() is not RunStatus.RUNNING:
            await asyncio.sleep(0.005)
        clock = h._virtual_clock("advance")
        clock.advance_to(clock.now() + 2 * 3600 * 1_000_000)
        async with asyncio.timeout(10):
            while (run := await app.runs.get(sleeper.id)).status is not RunStatus.QUEUED or not run.reason:
                await asyncio.sleep(0.005)
        assert "concurrency" in run.reason
        gate.set()
        assert await sleeper.result(timeout=10) == "sleeper"
        await h.idle()
    assert log == ["holder ends", "sleeper wakes"]


async def test_functions_of_an_app_share_a_key_of_scope_app(database_url: str) -> None:
    gauge, app = Gauge(), App("t")
    shared = Concurrency(1, key="data.user", scope="app")

    @app.function(on="work", concurrency=shared)
    async def first(ctx: Context[dict[str, Any]], step: Step) -> Any:
        return await step.run("work", gauge.work, ctx.data["user"], output=Any)

    @app.function(on="work", concurrency=[shared, Concurrency(5)])
    async def second(ctx: Context[dict[str, Any]], step: Step) -> Any:
        return await step.run("work", gauge.work, ctx.data["user"], output=Any)

    async with harness(app, database_url=database_url) as h:
        await send(h, *["ana", "ben"] * 8)
        await h.idle()
        assert await statuses(app) == {RunStatus.COMPLETED: 32}
    assert gauge.most == {"ana": 1, "ben": 1}


async def test_a_run_has_to_find_a_slot_of_both_its_keys(database_url: str) -> None:
    gauge, total = Gauge(), Gauge()
    app = App("t")

    @app.function(on="work", concurrency=[Concurrency(1, key="data.user"), Concurrency(2)])
    async def work(ctx: Context[dict[str, Any]], step: Step) -> Any:
        async def both() -> Any:
            total.now["all"] += 1
            total.most["all"] = max(total.most["all"], total.now["all"])
            value = await gauge.work(ctx.data["user"])
            total.now["all"] -= 1
            return value

        return await step.run("work", both, output=Any)

    async with harness(app, database_url=database_url) as h:
        await send(h, *["ana", "ben", "cem", "dua"] * 6)
        await h.idle()
        assert await statuses(app) == {RunStatus.COMPLETED: 24}
    assert set(gauge.most.values()) == {1}
    assert total.most["all"] == 2


async def test_a_blocked_run_says_what_it_waits_for(database_url: str) -> None:
    app, gate = App("t"), asyncio.Event()

    @app.function(concurrency=1)
    async def work(ctx: Context[str], step: Step) -> str:
        await step.run("hold", gate.wait, output=bool)
        return ctx.data

    async with harness(app, database_url=database_url) as h:
        first = await h.start(work, "first")
        second = await h.start(work, "second")
        async with asyncio.timeout(10):
            while not (run := await app.runs.get(second.id)).reason:
                await asyncio.sleep(0.005)
        assert run.status is RunStatus.QUEUED
        assert run.started_at is None
        assert run.reason.startswith("concurrency: ")
        gate.set()
        assert await first.result(timeout=10) == "first"
        assert await second.result(timeout=10) == "second"
        assert (await app.runs.get(second.id)).reason is None


async def test_a_blocked_run_that_is_cancelled_lets_the_next_one_begin(database_url: str) -> None:
    app, gate = App("t"), asyncio.Event()

    @app.function(concurrency=1)
    async def work(ctx: Context[str], step: Step) -> str:
        await step.run("hold", gate.wait, output=bool)
        return ctx.data

    async with harness(app, database_url=database_url) as h:
        runs = [await h.start(work, str(n)) for n in range(4)]
        async with asyncio.timeout(10):
            while not (await app.runs.get(runs[3].id)).reason:
                await asyncio.sleep(0.005)
        await app.runs.cancel(runs[1].id)
        gate.set()
        await h.idle()
        assert [await run.status() for run in runs] == [
            RunStatus.COMPLETED,
            RunStatus.CANCELLED,
            RunStatus.COMPLETED,
            RunStatus.COMPLETED,
        ]


async def test_a_crashed_worker_s_slots_are_free_again(database_url: str) -> None:
    app, gate = App("t"), asyncio.Event()

    @app.function(concurrency=Concurrency(1, key="data.user"), on="work")
    async def work(ctx: Context[dict[str, Any]], step: Step) -> str:
        await step.run("hold", gate.wait, output=bool)
        return "done"

    async with harness(app, database_url=database_url) as h:
        await send(h, "ana", "ana", "ana", "ben")
        async with asyncio.timeout(10):
            while (await statuses(app))[RunStatus.RUNNING] < 2:
                await asyncio.sleep(0.005)
        await h.crash()
        gate.set()
        await h.restart()
        await h.idle()
        assert await statuses(app) == {RunStatus.COMPLETED: 4}


async def test_a_run_that_may_not_begin_in_time_is_cancelled_in_its_lane(database_url: str) -> None:
    from agentflow.flow import Timeouts

    app, gate = App("t"), asyncio.Event()

    @app.function(concurrency=1, timeouts=Timeouts(start="10m"))
    async def work(ctx: Context[str], step: Step) -> str:
        await step.run("hold", gate.wait, output=bool)
        return ctx.data

    async with harness(app, database_url=database_url) as h:
        first = await h.start(work, "first")
        second = await h.start(work, "second")
        async with asyncio.timeout(10):
            while not (await app.runs.get(second.id)).reason:
                await asyncio.sleep(0.005)
        clock = h._virtual_clock("advance")
        clock.advance_to(clock.now() + 601 * 1_000_000)
        async with asyncio.timeout(10):
            while await second.status() is not RunStatus.CANCELLED:
                await asyncio.sleep(0.005)
        gate.set()
        assert await first.result(timeout=10) == "first"
        await h.idle()


@pytest.mark.parametrize("key", [lambda event: event["data"]["user"], "event.data.user + '!'"])
async def test_a_key_may_be_a_function_or_an_expression(database_url: str, key: Any) -> None:
    gauge = Gauge()
    app = keyed_app(gauge, Concurrency(1, key=key))
    async with harness(app, database_url=database_url) as h:
        await send(h, *["ana", "ben"] * 4)
        await h.idle()
        assert await statuses(app) == {RunStatus.COMPLETED: 8}
    assert gauge.most == {"ana": 1, "ben": 1}


async def test_runs_sent_by_a_process_that_lacks_the_key_s_function_keep_the_limit(database_url: str) -> None:
    gauge = Gauge()
    app = keyed_app(gauge, Concurrency(1, key=lambda event: event["data"]["user"]))
    stranger = App("other", database_url=database_url)
    async with harness(app, database_url=database_url, clock="system"), stranger:
        await stranger.send([Event(name="work", data={"user": user}) for user in ["ana", "ben"] * 5])
        async with asyncio.timeout(30):
            while await statuses(app) != {RunStatus.COMPLETED: 10}:
                await asyncio.sleep(0.01)
    assert gauge.most == {"ana": 1, "ben": 1}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (0, "limit has to be at least 1"),
        ("3", "is no Concurrency"),
        ([Concurrency(1)] * 3, "at most 2"),
        (Concurrency(1, key="event.data.("), "concurrency"),
    ],
)
def test_a_bad_value_is_refused_when_the_function_is_registered(value: Any, says: str) -> None:
    app = App("t")
    with pytest.raises(ConfigurationError, match=says) as caught:

        @app.function(concurrency=value)
        async def work(ctx: Context[None], step: Step) -> None: ...

    assert "'work'" in str(caught.value)
