"""Conditions in CEL: which events start a function, resolve a wait, cancel a run."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from agentflow import App, Context, Event, FunctionRef, Step, expressions, on_event
from agentflow.errors import ConfigurationError, RunFailed
from agentflow.flow import CancelOn
from agentflow.runs import RunStatus
from agentflow.testing import harness


@contextmanager
def no_cel() -> Iterator[None]:
    """As in a process that has not installed agentflow-steps[cel]."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cel_expr_python", None)
        expressions._compiled.cache_clear()
        yield


async def inputs_of(app: App, function: str) -> list[Any]:
    """The inputs of a function's runs, oldest first."""
    runs = [await app.runs.get(run.id) for run in (await app.runs.list(function=function)).data]
    return [run.input for run in reversed(runs)]


# ---------------------------------------------------------------------------------------------- triggers


async def test_an_event_starts_the_functions_whose_condition_is_true_of_it(database_url: str) -> None:
    app = App("t")

    @app.function(on=on_event("order", if_="event.data.total > 100 && event.name == 'order'"))
    async def big(ctx: Context[dict[str, Any]], step: Step) -> None: ...

    @app.function(on=on_event("order", if_="has(event.data.urgent) && event.data.urgent"))
    async def urgent(ctx: Context[dict[str, Any]], step: Step) -> None: ...

    async with harness(app, database_url=database_url) as h:
        for data in ({"total": 99}, {"total": 101}, {"total": 1, "urgent": True}, {"total": "a lot"}, {}):
            await h.send({"name": "order", "data": data})
        await h.idle()
        assert await inputs_of(app, "big") == [{"total": 101}]
        assert await inputs_of(app, "urgent") == [{"total": 1, "urgent": True}]
        assert len((await app.events.list()).data) == 5


async def test_each_trigger_has_a_condition_of_its_own(database_url: str) -> None:
    app = App("t")

    @app.function(
        on=[
            on_event("shop/*", if_="event.data.n == 1"),
            on_event("shop/order", if_="event.data.n == 2"),
            "plain",
        ]
    )
    async def f(ctx: Context[dict[str, Any]], step: Step) -> None: ...

    async with harness(app, database_url=database_url) as h:
        for name, n in (
            ("shop/order", 1),
            ("shop/order", 2),
            ("shop/cart", 2),
            ("plain", 3),
            ("shop/a/b", 1),
        ):
            await h.send({"name": name, "data": {"n": n, "name": name}})
        await h.idle()
        assert await inputs_of(app, "f") == [
            {"n": 1, "name": "shop/order"},
            {"n": 2, "name": "shop/order"},
            {"n": 3, "name": "plain"},
            {"n": 1, "name": "shop/a/b"},
        ]


async def test_a_condition_holds_for_senders_that_do_not_import_the_function(database_url: str) -> None:
    app, sender = App("t"), App("sender", database_url=database_url)

    @app.function(on=on_event("order", if_="event.id == 'o-1' && event.ts < '2100'"))
    async def f(ctx: Context[dict[str, Any]], step: Step) -> None: ...

    @app.function
    async def tells(ctx: Context[None], step: Step) -> None:
        await step.send_event("send", [Event(name="order", id="o-1"), Event(name="order", id="o-2")])

    async with harness(app, database_url=database_url) as h, sender:
        await sender.send([{"name": "order", "id": "o-1"}, {"name": "order"}])
        await h.idle()
        assert len(await inputs_of(app, "f")) == 1
        await h.advance("25h")
        await (await h.start(tells)).result(5)
        await h.idle()
        assert len(await inputs_of(app, "f")) == 2


async def test_a_sender_without_cel_that_meets_a_condition_stores_nothing(database_url: str) -> None:
    app, sender = App("t"), App("sender", database_url=database_url)

    @app.function(on=on_event("order", if_="event.data.n == 1"))
    async def f(ctx: Context[dict[str, Any]], step: Step) -> None: ...

    async with harness(app, database_url=database_url), sender:
        with no_cel():
            with pytest.raises(
                ConfigurationError, match=r"'order' .* function 'f' of app 't' .*agentflow-steps\[cel"
            ):
                await sender.send([{"name": "other"}, {"name": "order", "data": {"n": 1}}])
            assert (await app.events.list()).data == []
            await sender.send({"name": "other"})
        await sender.send({"name": "order", "data": {"n": 1}})
        assert [event.name for event in (await app.events.list()).data] == ["order", "other"]
        assert await inputs_of(app, "f") == [{"n": 1}]


# ------------------------------------------------------------------------------------------------- waits


def waiting_app(**wait: Any) -> App:
    app = App("t")

    @app.function(on="order")
    async def f(ctx: Context[dict[str, Any]], step: Step) -> Any:
        event = await step.wait_for_event("paid", event="paid", **({"timeout": "1d"} | wait))
        return event and event.data

    return app


async def test_a_wait_takes_only_an_event_of_which_its_condition_is_true(database_url: str) -> None:
    app = waiting_app(if_="async.data.amount >= event.data.total && async.name == 'paid'")
    async with harness(app, database_url=database_url) as h:
        [sent] = await h.send({"name": "order", "data": {"total": 10}})
        started = await h.start("f", {"total": 100})  # without an event its input is the data
        await h.idle()
        for data in ({"amount": 9}, {}, {"amount": "much"}):
            await h.send({"name": "paid", "data": data})
        await h.idle()
        assert {run.status for run in (await app.runs.list()).data} == {RunStatus.WAITING}
        await h.send({"name": "paid", "data": {"amount": 50}})
        await h.idle()
        [of_event] = (await app.events.runs(sent)).data
        assert (await app.runs.get(of_event.id)).output == {"amount": 50}
        assert await started.status() is RunStatus.WAITING
        await h.crash()
        await h.restart()
        await h.send({"name": "paid", "data": {"amount": 100}})
        assert await started.result(5) == {"amount": 100}


async def test_both_match_and_the_condition_have_to_hold(database_url: str) -> None:
    app = waiting_app(match="data.user", if_="async.data.amount > 5")
    async with harness(app, database_url=database_url) as h:
        run, lacking = await h.start("f", {"user": 1}), await h.start("f", {})
        await h.idle()
        much = list(range(3000))  # more than is indexed: each wait is compared
        for data in (
            {"user": 1, "amount": 5},
            {"user": 2, "amount": 6},
            {"user": 2, "amount": 6, "much": much},
        ):
            await h.send({"name": "paid", "data": data})
        assert await run.status() is RunStatus.WAITING
        await h.send({"name": "paid", "data": {"user": 1, "amount": 6, "much": much}})
        assert (await run.result(5))["amount"] == 6
        assert await lacking.status() is RunStatus.WAITING
        await h.advance("1d")
        assert await lacking.result(5) is None


async def test_lookback_takes_the_earliest_event_of_which_the_condition_is_true(database_url: str) -> None:
    app = waiting_app(lookback="1h", if_="async.data.n > event.data.n && async.id != 'p-2'")
    async with harness(app, database_url=database_url) as h:
        for n in range(5):
            await h.send({"name": "paid", "data": {"n": n}, "id": f"p-{n}"})
        assert await (await h.start("f", {"n": 1})).result(5) == {"n": 3}
        late = await h.start("f", {"n": 4})
        await h.idle()
        assert await late.status() is RunStatus.WAITING
        await h.send({"name": "paid", "data": {"n": 5}})
        assert await late.result(5) == {"n": 5}


async def test_an_event_never_wakes_the_run_that_it_starts_whatever_the_condition(database_url: str) -> None:
    app = App("t")

    @app.function(on="ping")
    async def f(ctx: Context[dict[str, Any]], step: Step) -> Any:
        event = await step.wait_for_event("w", event="ping", if_="true", lookback="1h", timeout="1h")
        return event and event.data["n"]

    async with harness(app, database_url=database_url) as h:
        [first] = await h.send({"name": "ping", "data": {"n": 1}})
        await h.idle()
        [run] = (await app.events.runs(first)).data
        assert run.status is RunStatus.WAITING
        await h.send({"name": "ping", "data": {"n": 2}})
        await h.idle()
        assert (await app.runs.get(run.id)).output == 2


async def test_a_wait_with_a_condition_registered_before_a_send_gets_it(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[int], step: Step) -> Any:
        event, _ = await asyncio.gather(
            step.wait_for_event("w", event="ping", if_="async.data.n == event.data", timeout="1h"),
            step.send_event("send", [{"name": "ping", "data": {"n": n}} for n in (0, ctx.data)]),
        )
        return event and event.data["n"]

    async with harness(app, database_url=database_url) as h:
        runs = [await h.start(f, n) for n in range(1, 21)]
        assert [await run.result(10) for run in runs] == list(range(1, 21))


async def test_no_wake_up_is_lost_between_looking_back_and_registering(database_url: str) -> None:
    app, rounds = waiting_app(lookback="1h", if_="async.data.n == event.data.n"), 60
    async with harness(app, database_url=database_url) as h:

        async def send(n: int) -> None:
            await h.send({"name": "paid", "data": {"n": n}})

        runs = await asyncio.gather(
            *(task for n in range(rounds) for task in (h.start("f", {"n": n}), send(n)))
        )
        results = [await run.result(10) for run in runs if run is not None]
        assert results == [{"n": n} for n in range(rounds)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("async.data.n ==", r"step 'paid#?0?': if_: the expression 'async\.data\.n ==' is wrong at line 1"),
        ("async.data.n == foo", r"undeclared reference to 'foo'; it may use event and async"),
        ("'yes'", r"is no condition"),
        ("", r"is not an expression"),
        (5, r"5 is not an expression"),
    ],
)
async def test_a_bad_condition_made_in_a_step_fails_the_run(
    database_url: str, text: Any, message: str
) -> None:
    app = waiting_app(if_=text)
    async with harness(app, database_url=database_url) as h:
        run = await h.start("f", {})
        with pytest.raises(RunFailed, match=message) as failed:
            await run.result(5)
        assert failed.value.error.name == "ConfigurationError"
        [step] = (await app.runs.steps(run.id)).data
        assert (step.id, step.status, step.attempts) == ("paid", "failed", 1)


async def test_a_worker_without_cel_fails_the_run_and_says_what_to_install(database_url: str) -> None:
    app = waiting_app(if_="async.data.n == 1")
    async with harness(app, database_url=database_url) as h:
        with no_cel():
            run = await h.start("f", {})
            with pytest.raises(RunFailed, match=r"pip install 'agentflow-steps\[cel\]'"):
                await run.result(5)


async def test_a_sender_without_cel_wakes_no_wait_with_a_condition_and_stores_nothing(
    database_url: str,
) -> None:
    app = waiting_app(if_="async.data.n == 1")
    async with harness(app, database_url=database_url) as h:
        run = await h.start("f", {})
        await h.idle()
        with no_cel():
            with pytest.raises(ConfigurationError, match=rf"'paid' .* run {run.id} .*agentflow-steps\[cel\]"):
                await h.send([{"name": "other"}, {"name": "paid", "data": {"n": 1}}])
            assert (await app.events.list()).data == []
            await h.send({"name": "other"})
        assert await run.status() is RunStatus.WAITING
        await h.send({"name": "paid", "data": {"n": 1}})
        assert await run.result(5) == {"n": 1}


# ------------------------------------------------------------------------------------------------ cancel


def cancelled_app(*rules: CancelOn) -> App:
    app = App("t")

    @app.function(on="order", cancel_on=rules)
    async def order(ctx: Context[dict[str, Any]], step: Step) -> None:
        await step.sleep("nap", "1h")

    return app


async def test_an_event_cancels_the_runs_for_which_the_condition_is_true(database_url: str) -> None:
    app = cancelled_app(
        CancelOn("gone", match="data.user", if_="async.data.at > event.data.at"),
        CancelOn("closed", if_="async.data.total < event.data.total", timeout="10m"),
    )
    sender = App("sender", database_url=database_url)
    async with harness(app, database_url=database_url) as h, sender:
        await h.send({"name": "order", "data": {"user": 1, "at": 5, "total": 1}})
        young = await sender.start(FunctionRef("order", app="t"), {"user": 1, "at": 8, "total": 9})
        other = await h.start("order", {"user": 2, "at": 5, "total": 9})
        await h.idle()
        for data in ({"user": 1, "at": 5}, {"user": 1}, {"user": 3, "at": 9}):
            await sender.send({"name": "gone", "data": data})
        assert (await app.runs.list(status="cancelled")).data == []
        [event] = await sender.send({"name": "gone", "data": {"user": 1, "at": 6}})
        [cancelled] = (await app.runs.list(status="cancelled")).data
        assert cancelled.reason == f"event 'gone' ({event})"
        assert cancelled.id not in (young.id, other.id)
        rerun = await sender.runs.rerun(cancelled.id)
        await h.advance(timedelta(minutes=9))
        await h.send({"name": "closed", "data": {"total": 5}})
        assert {await young.status(), await other.status()} == {RunStatus.CANCELLED}
        assert await rerun.status() is not RunStatus.CANCELLED
        await h.advance(timedelta(minutes=2))
        await h.send({"name": "closed", "data": {"total": 0}})
        assert await rerun.status() is not RunStatus.CANCELLED


async def test_a_sender_without_cel_cancels_nothing_by_a_condition_and_stores_nothing(
    database_url: str,
) -> None:
    app = cancelled_app(CancelOn("gone", if_="async.data.user == event.data.user"))
    async with harness(app, database_url=database_url) as h:
        run = await h.start("order", {"user": 1})
        await h.idle()
        with no_cel():
            with pytest.raises(ConfigurationError, match=rf"'gone' .* run {run.id} "):
                await h.send({"name": "gone", "data": {"user": 1}})
            assert (await app.events.list()).data == []
        await h.send({"name": "gone", "data": {"user": 1}})
        assert await run.status() is RunStatus.CANCELLED


async def test_a_condition_over_its_budget_is_false_and_delays_nobody(database_url: str) -> None:
    loops = "event.data.l.all(a, event.data.l.all(b, event.data.l.all(c, a + b + c >= 0)))"
    app = App("t")

    @app.function(on=[on_event("order", if_=loops)], cancel_on=CancelOn("gone", if_=loops))
    async def f(ctx: Context[dict[str, Any]], step: Step) -> bool:
        return await step.wait_for_event("w", event="paid", if_=loops, timeout="1h") is None

    async with harness(app, database_url=database_url) as h:
        data = {"l": list(range(100))}
        run = await h.start(f, data)
        await h.idle()
        began = asyncio.get_running_loop().time()
        for name in ("order", "paid", "gone"):
            await h.send({"name": name, "data": data})
        assert asyncio.get_running_loop().time() - began < 5
        assert len((await app.runs.list()).data) == 1
        await h.advance("1h")
        assert await run.result(5) is True
