"""Rules 24 and 27, starts, records and lists: cancelling, timeouts, statuses, rerun, pages."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest

from agentflow import App, Approve, Context, Event, Step
from agentflow.errors import (
    ApprovalExpired,
    ConfigurationError,
    IdempotencyConflict,
    InvalidInput,
    NotFound,
    NoWaiter,
    RunCancelled,
    StepError,
)
from agentflow.flow import CancelOn, Timeouts
from agentflow.testing import Harness, harness
from tests.behaviours.looking import failure_of, restarted, steps_of

# 24: cancel


async def assert_cancelled(h: Harness, run: Any, reason: str | None = None) -> None:
    record = await h.app.runs.get(run.id)
    assert (record.status, record.reason) == ("cancelled", reason)
    assert (record.waiting, record.output, record.error) == ([], None, None)
    assert record.ended_at is not None
    with pytest.raises(RunCancelled) as raised:
        await run.result(5)
    assert raised.value.reason == reason


async def test_a_queued_run_that_is_cancelled_ends_at_once_and_never_begins(database_url: str) -> None:
    app, entered = App("t"), []

    @app.function(on="later")
    async def f(ctx: Context[Any], step: Step) -> None:
        entered.append(1)

    async with harness(app, database_url=database_url) as h:
        await h.send(Event(name="later", ts=h.now() + timedelta(hours=1)))
        [record] = (await app.runs.list()).data
        assert record.status == "queued"
        await app.runs.cancel(record.id, "no need")
        await assert_cancelled(h, app.runs.handle(record.id), "no need")
        await h.advance("2h")
    assert entered == []


@pytest.mark.parametrize("kind", ["sleep", "signal", "event", "approval", "retry"])
async def test_a_sleeping_or_waiting_run_that_is_cancelled_ends_at_once(database_url: str, kind: str) -> None:
    app, cleaned = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        def fail() -> None:
            raise ValueError

        try:
            match kind:
                case "sleep":
                    await step.sleep("x", "1h")
                case "signal":
                    await step.wait_for_signal("x", signal="go", timeout="1h")
                case "event":
                    await step.wait_for_event("x", event="go", timeout="1h")
                case "approval":
                    await step.approval("x", title="May I?")
                case _:
                    await step.run("x", fail)
        finally:
            await step.run("clean", cleaned.append, 1)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        await app.runs.cancel(run.id, "enough")
        await assert_cancelled(h, run, "enough")
        with pytest.raises(NoWaiter):
            await h.signal("go")
        await h.send(Event(name="go"))
        await h.advance("4d")
        await assert_cancelled(h, run, "enough")
    assert cleaned == []


async def test_a_running_async_body_is_cancelled_and_no_further_step_runs(database_url: str) -> None:
    app, said, running = App("t"), [], asyncio.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        async def body() -> None:
            running.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                said.append("cancelled")
                raise

        try:
            await step.run("x", body)
        finally:
            await step.run("after", said.append, "after")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await running.wait()
        await app.runs.cancel(run.id)
        await h.idle()
        await assert_cancelled(h, run)
    assert said == ["cancelled"]


async def test_a_running_sync_body_is_left_to_end_and_the_next_step_does_not_run(database_url: str) -> None:
    app, said = App("t"), []
    running, go_on = asyncio.Event(), threading.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        loop = asyncio.get_running_loop()

        def body() -> None:
            loop.call_soon_threadsafe(running.set)
            go_on.wait(10)

        await step.run("x", body)
        await step.run("after", said.append, "after")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await running.wait()
        await app.runs.cancel(run.id)
        go_on.set()
        await h.idle()
        await assert_cancelled(h, run)
    assert said == []


async def test_code_between_steps_is_cancelled_at_the_next_step(database_url: str) -> None:
    app, said = App("t"), []
    running, go_on = asyncio.Event(), asyncio.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        running.set()
        await go_on.wait()
        await step.run("next", said.append, "next")
        return "done"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await running.wait()
        await app.runs.cancel(run.id)
        go_on.set()
        await h.idle()
        await assert_cancelled(h, run)
    assert said == []


async def test_cancelling_an_ended_run_does_nothing_and_an_unknown_one_is_not_found(
    database_url: str,
) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> int:
        return 1

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await run.result(10)
        before = await app.runs.get(run.id)
        assert await app.runs.cancel(run.id, "too late") == before
        with pytest.raises(NotFound):
            await app.runs.cancel("run_none")


async def test_a_second_cancel_does_not_change_the_reason(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        await step.sleep("s", "1h")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        await app.runs.cancel(run.id, "first")
        await app.runs.cancel(run.id, "second")
        await assert_cancelled(h, run, "first")


async def test_deciding_for_a_cancelled_run_is_approval_expired(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> bool:
        return (await step.approval("x", title="May I?")).approved

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        [request] = (await app.approvals.list(status="pending")).data
        await app.runs.cancel(run.id)
        assert (await app.approvals.get(request.id)).status == "cancelled"
        with pytest.raises(ApprovalExpired):
            await app.approvals.decide(request.id, Approve(), by="ana")


async def test_a_cancel_while_no_worker_lives_holds(database_url: str) -> None:
    app, done = App("t"), []
    entered = asyncio.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        entered.set()
        await asyncio.Event().wait()
        done.append(1)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await entered.wait()
        await h.crash()
        await app.runs.cancel(run.id, "enough")
        entered.clear()
        await h.restart()
        await h.idle()
        await assert_cancelled(h, run, "enough")
    assert not entered.is_set()


# 24: cancel_on


async def test_cancel_on_cancels_the_runs_whose_event_matches(database_url: str) -> None:
    app = App("t")

    @app.function(on="order", cancel_on=CancelOn("order/withdrawn", match="data.id"))
    async def f(ctx: Context[dict[str, int]], step: Step) -> int:
        await step.sleep("s", "1h")
        return ctx.data["id"]

    async with harness(app, database_url=database_url) as h:
        await h.send([Event(name="order", data={"id": n}) for n in range(3)])
        started = await h.start(f, {"id": 1})
        missing = await h.start(f, {})
        await h.idle()
        await h.send([Event(name="order/withdrawn", data={"id": 1}), Event(name="order/withdrawn", data={})])
        await h.idle()
        runs = [await app.runs.get(run.id) for run in (await app.runs.list()).data]
    cancelled = {run.id for run in runs if run.status == "cancelled"}
    assert {run.input.get("id") for run in runs if run.id in cancelled} == {1}
    assert started.id in cancelled
    assert missing.id not in cancelled


async def test_cancel_on_holds_only_within_its_timeout(database_url: str) -> None:
    app = App("t")

    @app.function(cancel_on=[CancelOn("stop", timeout="1h")])
    async def f(ctx: Context[None], step: Step) -> None:
        await step.sleep("s", "1d")

    async with harness(app, database_url=database_url) as h:
        early = await h.start(f)
        await h.advance("59m")
        late = await h.start(f)
        await h.advance("1m")
        await h.send(Event(name="stop"))
        await h.idle()
        assert [await run.status() for run in (early, late)] == ["sleeping", "cancelled"]


def test_more_than_five_cancel_on_are_refused() -> None:
    app = App("t")

    async def f(ctx: Context[None], step: Step) -> None: ...

    app.function("five", cancel_on=[CancelOn(f"e{n}") for n in range(5)])(f)
    with pytest.raises(ConfigurationError):
        app.function("six", cancel_on=[CancelOn(f"e{n}") for n in range(6)])(f)


async def test_an_event_that_starts_and_cancels_leaves_only_the_latest_run(database_url: str) -> None:
    app = App("t")

    @app.function(on="e", cancel_on=CancelOn("e"))
    async def f(ctx: Context[dict[str, int]], step: Step) -> int:
        await step.sleep("s", "1h")
        return ctx.data["n"]

    async with harness(app, database_url=database_url) as h:
        for n in range(3):
            await h.send(Event(name="e", data={"n": n}))
            await h.idle()
        await h.advance("1h")
        outputs = [
            (await app.runs.get(run.id)).output for run in (await app.runs.list(status="completed")).data
        ]
    assert outputs == [2]


# 24: timeouts


async def test_a_run_that_does_not_begin_in_time_is_cancelled(database_url: str) -> None:
    app, entered = App("t"), []

    @app.function(timeouts=Timeouts(start="10m"))
    async def f(ctx: Context[None], step: Step) -> None:
        entered.append(1)

    async with harness(app, database_url=database_url) as h:
        await app.functions.pause("f")
        run = await h.start(f)
        await h.advance("11m")
        await app.functions.resume("f")
        await h.advance("1m")
        record = await app.runs.get(run.id)
    assert record.status == "cancelled"
    assert record.reason
    assert entered == []


@pytest.mark.parametrize("kind", ["sleep", "signal", "retry"])
async def test_a_run_that_does_not_end_in_time_is_cancelled(database_url: str, kind: str) -> None:
    app = App("t")

    @app.function(timeouts=Timeouts(finish="1h"), retries=20)
    async def f(ctx: Context[None], step: Step) -> None:
        match kind:
            case "sleep":
                await step.sleep("s", "1d")
            case "signal":
                await step.wait_for_signal("w", signal="w", timeout="1d")
            case _:
                raise ValueError("again and again")

    async with harness(app, database_url=database_url) as h:
        begun = h.now()
        run = await h.start(f)
        await h.advance("59m")
        assert not (await run.status()).is_final
        await h.advance("1m")
        record = await app.runs.get(run.id)
    assert record.status == "cancelled"
    assert record.reason
    assert record.ended_at == begun + timedelta(hours=1)


async def test_a_run_that_ends_in_time_is_not_cancelled(database_url: str) -> None:
    app = App("t")

    @app.function(timeouts=Timeouts(start="1m", finish="1h"))
    async def f(ctx: Context[None], step: Step) -> str:
        await step.sleep("s", "59m")
        return "done"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("2h")
        assert await run.result(10) == "done"


# statuses and records


async def test_a_run_shows_its_status_and_times_at_every_stage(database_url: str) -> None:
    app, stages = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        async def look() -> str:
            return (await app.runs.get(ctx.run_id)).status.value

        stages.append(await step.run("look", look))
        await step.sleep("s", "1m")
        await asyncio.gather(
            step.sleep("t", "1m"),
            step.wait_for_signal("w", signal="w", timeout="1h"),
            return_exceptions=False,
        )
        return "done"

    async with harness(app, database_url=database_url) as h:
        await app.functions.pause("f")
        run = await h.start(f, tags=["a", "b"])
        await h.idle()
        queued = await app.runs.get(run.id)
        await h.advance("1m")
        await app.functions.resume("f")
        await h.idle()
        sleeping = await app.runs.get(run.id)
        await h.advance("1m")
        waiting = await app.runs.get(run.id)
        await h.advance("1m")
        await h.signal("w")
        await run.result(10)
        completed = await app.runs.get(run.id)
    seen = [record.status for record in (queued, sleeping, waiting, completed)]
    assert seen == ["queued", "sleeping", "waiting", "completed"]
    assert set(stages) == {"running"}
    assert (queued.started_at, queued.ended_at, waiting.ended_at) == (None, None, None)
    assert completed.started_at == queued.created_at + timedelta(minutes=1)
    assert completed.ended_at == queued.created_at + timedelta(minutes=3)
    assert (completed.output, completed.tags, completed.root_id) == ("done", ("a", "b"), run.id)


async def test_a_run_no_longer_waits_for_a_retry_of_its_code_that_was_made(database_url: str) -> None:
    app, failures = App("t"), iter([1])

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        for n in failures:
            raise ValueError(n)
        await step.wait_for_signal("w", signal="w", timeout="1d")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        assert [one.kind for one in (await app.runs.get(run.id)).waiting] == ["retry"]
        await h.advance("1h")
        record = await app.runs.get(run.id)
    assert (record.status, [one.step_key for one in record.waiting]) == ("waiting", ["w"])


async def test_a_failed_run_has_its_error_with_name_message_traceback_attributes_and_step(
    database_url: str,
) -> None:
    app = App("t")

    class Declined(Exception):
        code = 0

        def __init__(self, message: str, code: int) -> None:
            super().__init__(message)
            self.code = code

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> None:
        def charge_the_card() -> None:
            raise Declined("no money", 51)

        await step.run("charge", charge_the_card)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        error = await failure_of(run)
        assert (await app.runs.get(run.id)).error == error
    assert (error.name, error.message, error.step_id) == ("Declined", "no money", "charge")
    assert error.attributes == {"code": 51}
    assert "charge_the_card" in error.traceback


async def test_result_with_a_timeout_raises_timeout_error_and_the_run_goes_on(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        await step.sleep("s", "1h")
        return "done"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        with pytest.raises(TimeoutError):
            await run.result(0.05)
        await h.advance("1h")
        assert await app.runs.handle(run.id).result(10) == "done"


async def test_data_that_does_not_validate_starts_no_run(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[int], step: Step) -> None: ...

    async with harness(app, database_url=database_url) as h:
        with pytest.raises(InvalidInput):
            await h.start(f, "many")
        with pytest.raises(NotFound):
            await h.start("nobody")
        assert (await app.runs.list()).data == []


async def test_an_idempotency_key_gives_the_first_handle_for_24_hours(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[dict[str, int]], step: Step) -> None: ...

    @app.function
    async def g(ctx: Context[dict[str, int]], step: Step) -> None: ...

    async with harness(app, database_url=database_url) as h:
        first = await h.start(f, {"a": 1, "b": 2}, idempotency_key="k")
        await h.advance(timedelta(hours=24) - timedelta(microseconds=1))
        assert (await h.start(f, {"b": 2, "a": 1}, idempotency_key="k")).id == first.id
        with pytest.raises(IdempotencyConflict):
            await h.start(f, {"a": 2}, idempotency_key="k")
        assert (await h.start(g, {"a": 2}, idempotency_key="k")).id != first.id
        await h.advance(timedelta(microseconds=1))
        assert (await h.start(f, {"a": 2}, idempotency_key="k")).id != first.id


# pages


async def test_runs_are_listed_newest_first_page_by_page_without_holes_or_repeats(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[int], step: Step) -> int:
        if ctx.data % 2:
            await step.sleep("s", "1d")
        return ctx.data

    async with harness(app, database_url=database_url) as h:
        started = [(await h.start(f, n)).id for n in range(7)]
        await h.idle()
        seen, cursor, sizes = [], None, []
        while True:
            page = await app.runs.list(limit=3, cursor=cursor)
            seen += [run.id for run in page.data]
            sizes.append((len(page.data), page.has_more))
            cursor = page.cursor
            if not page.has_more:
                break
            await h.start(f, 100)
            await h.idle()
        assert seen == started[::-1]
        assert sizes == [(3, True), (3, True), (1, False)]
        sleeping = (await app.runs.list(status="sleeping", function="f")).data
        assert {run.id for run in sleeping} == set(started[1::2])
        assert [run.id for run in (await app.runs.list(q=started[4])).data] == [started[4]]
        assert (await app.runs.list(since=h.now() + timedelta(seconds=1))).data == []


@pytest.mark.parametrize(
    "wrong", [{"limit": 0}, {"limit": 101}, {"cursor": "nonsense"}, {"status": "odd"}], ids=repr
)
async def test_a_wrong_page_is_invalid_input(sqlite_url: str, wrong: dict[str, Any]) -> None:
    async with harness(App("t"), database_url=sqlite_url) as h:
        with pytest.raises(InvalidInput):
            await h.app.runs.list(**wrong)


async def test_steps_are_listed_page_by_page_in_their_order(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        for _ in range(5):
            await step.run("x", int)
        await asyncio.gather(*(step.sleep("z", "1h") for _ in range(3)))

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        keys, cursor = [], None
        for _ in range(4):
            page = await app.runs.steps(run.id, limit=2, cursor=cursor)
            keys += [record.key for record in page.data]
            cursor = page.cursor
        assert not page.has_more
        assert keys == ["x", "x:1", "x:2", "x:3", "x:4", "z", "z:1", "z:2"]


# 27


def three_steps(app: App) -> list[str]:
    """Registers `f` with the steps a, b and c; gives what was called."""
    called: list[str] = []

    @app.function
    async def f(ctx: Context[str], step: Step) -> list[str]:
        def work(name: str) -> str:
            called.append(name)
            return f"{name} of {ctx.data}"

        return [await step.run(name, work, name) for name in "abc"]

    return called


async def test_a_rerun_is_a_new_run_of_everything(database_url: str) -> None:
    app = App("t")
    called = three_steps(app)
    async with harness(app, database_url=database_url) as h:
        run = await h.start("f", "x", tags=["t"])
        await run.result(10)
        again = await app.runs.rerun(run.id)
        assert await again.result(10) == ["a of x", "b of x", "c of x"]
        record = await app.runs.get(again.id)
    assert (record.rerun_of, record.tags, record.input) == (run.id, ("t",), "x")
    assert called == ["a", "b", "c"] * 2


async def test_a_rerun_from_a_step_copies_the_earlier_steps_and_takes_new_data(database_url: str) -> None:
    app = App("t")
    called = three_steps(app)
    async with harness(app, database_url=database_url) as h:
        run = await h.start("f", "x")
        await run.result(10)
        again = await app.runs.rerun(run.id, from_step="b", data="y")
        assert await again.result(10) == ["a of x", "b of y", "c of y"]
        assert list(await steps_of(app, again)) == ["a", "b", "c"]
        assert (await app.runs.get(again.id)).input == "y"
        assert (await app.runs.get(run.id)).output == ["a of x", "b of x", "c of x"]
    assert called == ["a", "b", "c", "b", "c"]


async def test_a_rerun_from_an_unknown_step_or_run_is_not_found_bad_data_invalid_input(
    database_url: str,
) -> None:
    app = App("t")
    three_steps(app)
    async with harness(app, database_url=database_url) as h:
        run = await h.start("f", "x")
        await run.result(10)
        with pytest.raises(NotFound):
            await app.runs.rerun(run.id, from_step="d")
        with pytest.raises(NotFound):
            await app.runs.rerun("run_none")
        with pytest.raises(InvalidInput):
            await app.runs.rerun(run.id, data=[1])
        assert len((await app.runs.list()).data) == 1


async def test_a_rerun_from_the_step_that_failed_calls_it_again(database_url: str) -> None:
    app, called = App("t"), []

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> list[str]:
        def work(name: str) -> str:
            called.append(name)
            if called.count("b") == 1 and name == "b":
                raise ValueError
            return name

        return [await step.run("x", work, "a"), await step.run("x", work, "b")]

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        assert (await failure_of(run)).step_id == "x:1"
        again = await app.runs.rerun(run.id, from_step="x:1")
        assert await again.result(10) == ["a", "b"]
    assert called == ["a", "b", "b"]


async def test_a_rerun_copies_caught_failures_too(database_url: str) -> None:
    app, called = App("t"), []

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> str:
        def bad() -> None:
            called.append("bad")
            raise ValueError("no")

        try:
            await step.run("bad", bad)
        except StepError as error:
            return await step.run("good", str, error.message)
        return "?"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await run.result(10)
        again = await app.runs.rerun(run.id, from_step="good")
        assert await again.result(10) == "no"
    assert called == ["bad"]


async def test_a_rerun_asks_for_approvals_again(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str | None:
        decision = await step.approval("ask", title="May I?")
        return await step.run("after", lambda: decision.by, output=str)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        [request] = (await app.approvals.list(status="pending")).data
        await app.approvals.decide(request.id, Approve(), by="ana")
        assert await run.result(10) == "ana"
        again = await app.runs.rerun(run.id, from_step="after")
        await h.idle()
        assert await again.status() == "waiting"
        [request] = (await app.approvals.list(status="pending")).data
        await app.approvals.decide(request.id, Approve(), by="ben")
        assert await again.result(10) == "ben"


async def test_a_rerun_survives_a_crash_with_what_it_has_copied(database_url: str) -> None:
    app, called = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        await step.run("a", called.append, "a")
        await step.sleep("s", "1h")
        await step.run("b", called.append, "b")
        await step.sleep("t", "1h")
        return "done"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("3h")
        again = await app.runs.rerun(run.id, from_step="b")
        await h.idle()
        await restarted(h)
        await h.advance("1h")
        assert await again.result(10) == "done"
    assert called == ["a", "b", "b"]


# pause


async def test_runs_of_a_paused_function_stay_queued_until_it_is_resumed(database_url: str) -> None:
    app = App("t")

    @app.function(on="e")
    async def f(ctx: Context[Any], step: Step) -> str:
        await step.sleep("s", "1m")
        return "done"

    async with harness(app, database_url=database_url) as h:
        before = await h.start(f)
        await h.idle()
        await app.functions.pause("f")
        await h.start(f)
        await h.send(Event(name="e"))
        await h.advance("1h")
        await restarted(h)
        assert [run.status for run in (await app.runs.list()).data if run.id != before.id] == ["queued"] * 2
        assert not (await before.status()).is_final
        await app.functions.resume("f")
        await h.advance("1h")
        assert await before.result(10) == "done"
        assert {run.status for run in (await app.runs.list()).data} == {"completed"}
