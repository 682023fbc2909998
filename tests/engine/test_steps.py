"""What each kind of step does, on both databases."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from agentflow.app import App
from agentflow.context import Context
from agentflow.errors import (
    InvalidInput,
    InvokeTimeout,
    NonRetriable,
    NoWaiter,
    RetryAfter,
    RunCancelled,
    RunFailed,
    SignalConflict,
    StepError,
    Unserialisable,
)
from agentflow.events import Event
from agentflow.functions import FunctionRef
from agentflow.info import step_info
from agentflow.runs import RunStatus
from agentflow.step import Step
from agentflow.testing import harness


class Order(BaseModel):
    id: str
    total: int


async def test_a_step_is_executed_once_and_its_value_comes_back_typed(database_url: str) -> None:
    app, calls = App("t"), []

    async def load(order_id: str) -> Order:
        calls.append(order_id)
        return Order(id=order_id, total=3)

    @app.function
    async def f(ctx: Context[str], step: Step) -> int:
        order = await step.run("load", load, ctx.data)
        await step.sleep("pause", "1h")
        return order.total

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f, "o1")
        await h.idle()
        assert await run.status() is RunStatus.SLEEPING
        await h.advance("1h")
        assert await run.result() == 3
        assert calls == ["o1"]
        steps = (await app.runs.steps(run.id)).data
        assert [(step.key, step.kind, step.status) for step in steps] == [
            ("load", "run", "completed"),
            ("pause", "sleep", "completed"),
        ]
        assert steps[0].output == {"id": "o1", "total": 3}


async def test_the_first_run_too_sees_the_json_round_trip(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        value = await step.run("tuple", lambda: (1, 2))
        return [type(value).__name__, value]

    async with harness(app, database_url=database_url) as h:
        assert await (await h.start(f)).result(5) == ["list", [1, 2]]


async def test_a_sync_body_runs_in_a_thread(sqlite_url: str) -> None:
    app = App("t")

    def work() -> str:
        return f"{threading.current_thread() is threading.main_thread()} {step_info().idempotency_key}"

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        return await step.run("work", work)

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        assert await run.result(5) == f"False {run.id}:work"


async def test_repeated_ids_are_counted_in_the_order_of_the_calls(sqlite_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[int]:
        return [await step.run("same", lambda n=n: n) for n in range(3)]

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        assert await run.result(5) == [0, 1, 2]
        assert [step.key for step in (await app.runs.steps(run.id)).data] == ["same", "same:1", "same:2"]


async def test_branches_that_use_the_same_ids_never_swap_results(database_url: str) -> None:
    app, delays = App("t"), {"a": 0.03, "b": 0.0}
    bodies: list[str] = []

    async def slow(name: str, value: int) -> str:
        bodies.append(f"{name}{value}")
        await asyncio.sleep(delays[name])
        return f"{name}{value}"

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[list[str]]:
        async def branch(name: str) -> list[str]:
            first = await step.run("x", slow, name, 1)
            await step.sleep("nap", "1m")
            return [first, await step.run("x", slow, name, 2)]

        return await asyncio.gather(branch("a"), branch("b"))

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        delays.update(a=0.0, b=0.03)
        await h.advance("1m")
        assert await run.result(5) == [["a1", "a2"], ["b1", "b2"]]
        assert sorted(bodies) == ["a1", "a2", "b1", "b2"]
        keys = {step.key for step in (await app.runs.steps(run.id)).data}
        assert keys == {"x@0", "x@1", "nap@0", "nap@1", "x:1@0", "x:1@1"}


async def test_a_step_handed_straight_to_gather_takes_its_key_in_the_caller(sqlite_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[int]:
        return await asyncio.gather(step.run("x", lambda: 1), step.run("x", lambda: 2))

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        assert await run.result(5) == [1, 2]
        assert {step.key for step in (await app.runs.steps(run.id)).data} == {"x", "x:1"}


async def test_a_task_group_works_like_gather(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> int:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(step.run("one", lambda: 1))
            second = group.create_task(step.sleep("nap", "2h"))
        assert second.done()
        return first.result()

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        assert await run.status() is RunStatus.SLEEPING
        await h.advance("2h")
        assert await run.result(5) == 1


async def test_user_ids_may_hold_any_character(sqlite_url: str) -> None:
    app, ids = App("t"), ["a:1", "a", "a@0", "ü → 漢", "a\\", "x/y z%"]

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[str]:
        return [await step.run(name, lambda name=name: name) for name in ids]

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        assert await run.result(5) == ids
        assert [step.id for step in (await app.runs.steps(run.id)).data] == ids


# ------------------------------------------------------------------------------------------ errors


async def test_a_failing_step_is_retried_and_the_retry_outlives_a_crash(database_url: str) -> None:
    app, calls = App("t"), []

    async def flaky() -> str:
        calls.append(step_info().attempt)
        if len(calls) < 3:
            raise OSError("down")
        return "up"

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        return await step.run("flaky", flaky)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        assert await run.status() is RunStatus.SLEEPING
        [waiting] = (await app.runs.get(run.id)).waiting
        assert waiting.kind == "retry"
        await h.crash()
        await h.restart()
        await h.advance("1m")
        assert await run.result(5) == "up"
        assert calls == [0, 1, 2]
        [step] = (await app.runs.steps(run.id)).data
        assert step.attempts == 3


async def test_used_up_attempts_raise_step_error_which_may_be_caught(database_url: str) -> None:
    app, calls = App("t"), []

    class Teapot(Exception):
        def __init__(self) -> None:
            super().__init__("short and stout")
            self.status = 418

    async def fail() -> None:
        calls.append(1)
        raise Teapot

    @app.function(retries=1)
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        try:
            await step.run("fail", fail)
        except StepError as error:
            caught = [error.step_id, error.name, error.message, error.attempts, error.attributes]
        await step.sleep("nap", 1)
        return caught

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        assert await run.result(5) == ["fail", "Teapot", "short and stout", 2, {"status": 418}]
        assert len(calls) == 2


async def test_an_uncaught_step_error_fails_the_run_without_further_attempts(database_url: str) -> None:
    app, calls = App("t"), []

    async def fail() -> None:
        raise NonRetriable("no use")

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        calls.append(ctx.attempt)
        await step.run("fail", fail)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1d")
        with pytest.raises(RunFailed, match="NonRetriable: no use") as failure:
            await run.result(5)
        assert failure.value.error.step_id == "fail"
        assert calls == [0]


async def test_another_exception_raised_instead_is_retried_as_the_functions_own(database_url: str) -> None:
    app, attempts = App("t"), []

    async def fail() -> None:
        raise NonRetriable("no use")

    @app.function(retries=2)
    async def f(ctx: Context[None], step: Step) -> None:
        attempts.append(ctx.attempt)
        try:
            await step.run("fail", fail)
        except StepError as error:
            raise ValueError("mine") from error

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1d")
        with pytest.raises(RunFailed, match="ValueError: mine"):
            await run.result(5)
        assert attempts == [0, 1, 2]


async def test_retry_after_sets_the_next_delay(sqlite_url: str) -> None:
    app, times = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        async def body() -> str:
            times.append(clock())
            if len(times) == 1:
                raise RetryAfter("3h")
            return "done"

        return await step.run("body", body)

    async with harness(app, database_url=sqlite_url) as h:
        clock = h.now
        run = await h.start(f)
        await h.advance("1d")
        assert await run.result(5) == "done"
        assert times[1] - times[0] == timedelta(hours=3)


async def test_a_tenacity_policy_rules_a_step(sqlite_url: str) -> None:
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

    app, calls = App("t"), []
    policy = Retrying(stop=stop_after_attempt(2), wait=wait_fixed(60), retry=retry_if_exception_type(OSError))

    async def fail(error: str) -> None:
        calls.append(error)
        raise OSError("io") if error == "io" else KeyError("key")

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[int]:
        attempts = []
        for name in ("io", "key"):
            try:
                await step.run(name, fail, name, retry=policy)
            except StepError as error:
                attempts.append(error.attempts)
        return attempts

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        assert await run.result(5) == [2, 1]
        assert calls == ["io", "io", "key"]


async def test_a_body_that_takes_too_long_is_cancelled_and_the_attempt_counts(sqlite_url: str) -> None:
    app, calls = App("t"), []

    async def slow() -> str:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.sleep(30)
        return "in time"

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        return await step.run("slow", slow, timeout=0.05)

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        assert await run.result(5) == "in time"
        [step] = (await app.runs.steps(run.id)).data
        assert step.attempts == 2


async def test_a_retry_starts_only_after_the_thread_of_a_timed_out_attempt_has_ended(sqlite_url: str) -> None:
    app = App("t")
    running, most, calls = 0, 0, 0

    def slow() -> str:
        nonlocal running, most, calls
        calls, running = calls + 1, running + 1
        most = max(most, running)
        time.sleep(0.8 if calls == 1 else 0)
        running -= 1
        return "done"

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        return await step.run("slow", slow, timeout=0.4, retry=3)

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        assert await run.result(5) == "done"
        assert (calls, most) == (2, 1)


async def test_a_value_that_is_not_json_is_refused_with_the_steps_name(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        await step.run("bad", lambda: {"when": {1, 2}})

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        with pytest.raises(RunFailed, match=r"Unserialisable: step 'bad': at \$\.when"):
            await run.result(5)


async def test_a_step_inside_a_body_fails_the_run_whatever_the_body_catches(database_url: str) -> None:
    app, calls = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        async def body() -> str:
            calls.append(1)
            try:
                await step.run("inner", lambda: 1)
            except Exception:
                return "caught"
            return "no"

        return await step.run("outer", body)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1d")
        with pytest.raises(RunFailed, match="NestedStep"):
            await run.result(5)
        assert calls == [1]


async def test_bad_input_is_refused_at_the_start_and_fails_the_run_of_an_event(database_url: str) -> None:
    app = App("t")

    @app.function(on="order/created")
    async def f(ctx: Context[Order], step: Step) -> int:
        return ctx.data.total

    async with harness(app, database_url=database_url) as h:
        with pytest.raises(InvalidInput, match="total"):
            await h.start(f, {"id": "1"})
        [event_id] = await h.send({"name": "order/created", "data": {"id": "1"}})
        await h.idle()
        [run] = (await app.events.runs(event_id)).data
        assert run.status is RunStatus.FAILED
        assert (await app.runs.get(run.id)).error.name == "InvalidInput"  # type: ignore[union-attr]


async def test_an_output_that_does_not_fit_the_annotation_fails_the_run(sqlite_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> int:
        return "no number"  # type: ignore[return-value]

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        with pytest.raises(RunFailed, match="Unserialisable"):
            await run.result(5)


# ----------------------------------------------------------------------------------------- signals


async def test_a_signal_goes_to_its_one_waiter(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[str], step: Step) -> Any:
        signal = await step.wait_for_signal("wait", signal=ctx.data, timeout="3d", output=Order)
        return None if signal is None else [signal.name, signal.data.total]

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f, "go")
        await h.idle()
        assert await run.status() is RunStatus.WAITING
        [waiting] = (await app.runs.get(run.id)).waiting
        assert (waiting.kind, waiting.name) == ("signal", "go")
        with pytest.raises(NoWaiter):
            await h.signal("other")
        assert await h.signal("go", {"id": "1", "total": 5}) == run.id
        assert await run.result(5) == ["go", 5]
        with pytest.raises(NoWaiter):
            await h.signal("go")


async def test_signal_data_that_does_not_validate_is_invalid_input_and_may_be_caught(
    database_url: str,
) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[bool], step: Step) -> str:
        try:
            await step.wait_for_signal("wait", signal=f"go-{ctx.data}", timeout="3d", output=Order)
        except InvalidInput as error:
            if not ctx.data:
                raise
            await step.sleep("nap", 1)
            return str(error)
        return "no"

    async with harness(app, database_url=database_url) as h:
        catching, letting_it_pass = await h.start(f, True), await h.start(f, False)
        await h.idle()
        for caught in (True, False):
            await h.signal(f"go-{caught}", {"id": 1})
        await h.advance("1m")
        assert "what step 'wait' has received is not valid" in await catching.result(5)
        with pytest.raises(RunFailed, match="InvalidInput"):
            await letting_it_pass.result(5)


async def test_a_wait_without_a_signal_times_out_with_none(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        return await step.wait_for_signal("wait", signal="never", timeout="3d")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance(timedelta(days=3) - timedelta(seconds=1))
        assert await run.status() is RunStatus.WAITING
        await h.advance("1s")
        assert await run.result(5) is None


async def test_a_second_live_waiter_of_a_name_gets_a_conflict_or_takes_over(database_url: str) -> None:
    app = App("t")

    @app.function
    async def first(ctx: Context[None], step: Step) -> Any:
        return await step.wait_for_signal("wait", signal="s", timeout="1d")

    @app.function
    async def second(ctx: Context[str], step: Step) -> str:
        try:
            got = await step.wait_for_signal("wait", signal="s", timeout="1d", on_conflict=ctx.data)  # type: ignore[arg-type]
        except SignalConflict:
            await step.sleep("nap", 1)
            return "conflict"
        return "nothing" if got is None else "got it"

    async with harness(app, database_url=database_url) as h:
        one = await h.start(first)
        await h.idle()
        two = await h.start(second, "fail")
        await h.advance(1)
        assert await two.result(5) == "conflict"
        three = await h.start(second, "replace")
        await h.idle()
        assert await one.result(5) is None
        await h.signal("s")
        assert await three.result(5) == "got it"


async def test_a_buffered_signal_waits_for_its_waiter(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        signal = await step.wait_for_signal("wait", signal="early", timeout="1d")
        return signal and signal.data

    async with harness(app, database_url=database_url) as h:
        assert await h.signal("early", 1, buffer="1h") is None
        with pytest.raises(SignalConflict):
            await h.signal("early", 2, buffer="1h")
        assert await (await h.start(f)).result(5) == 1
        await h.signal("early", 3, buffer="1h")
        await h.advance("2h")
        run = await h.start(f)
        await h.advance("1d")
        assert await run.result(5) is None


async def test_who_does_not_wait_at_all_takes_a_signal_that_is_there(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        asked = [await step.wait_for_signal("wait", signal="early", timeout=0) for _ in range(2)]
        return [signal and signal.data for signal in asked]

    async with harness(app, database_url=database_url, replay_every_step=True) as h:
        await h.signal("early", "here", buffer="1h")
        assert await (await h.start(f)).result(5) == ["here", None]
        with pytest.raises(NoWaiter):
            await h.signal("early")


async def test_a_run_sends_a_signal_once(database_url: str) -> None:
    app = App("t")

    @app.function
    async def waiter(ctx: Context[None], step: Step) -> Any:
        signal = await step.wait_for_signal("wait", signal="s", timeout="1d")
        return signal and signal.data

    @app.function
    async def sender(ctx: Context[None], step: Step) -> list[Any]:
        got = await step.send_signal("send", "s", {"n": 1})
        try:
            await step.send_signal("again", "s")
        except NoWaiter:
            return [got, "no waiter"]
        return [got]

    async with harness(app, database_url=database_url) as h:
        one = await h.start(waiter)
        await h.idle()
        assert await (await h.start(sender)).result(5) == [one.id, "no waiter"]
        assert await one.result(5) == {"n": 1}


# ------------------------------------------------------------------------------------------ events


async def test_an_event_starts_its_functions_and_its_id_deduplicates(database_url: str) -> None:
    app = App("t")

    @app.function(on=["order/*", "other"])
    async def f(ctx: Context[dict[str, Any]], step: Step) -> Any:
        assert ctx.event is not None
        return [ctx.event.name, ctx.data]

    async with harness(app, database_url=database_url) as h:
        ids = await h.send([Event(name="order/paid", data={"n": 1}, id="e1"), {"name": "nobody"}])
        again = await h.send(Event(name="order/paid", data={"n": 2}, id="e1"))
        assert again == ids[:1]
        await h.idle()
        [run] = (await app.events.runs(ids[0])).data
        assert (await app.runs.get(run.id)).output == ["order/paid", {"n": 1}]
        assert len((await app.runs.list()).data) == 1


async def test_an_event_with_a_future_ts_delays_its_runs(database_url: str) -> None:
    app = App("t")

    @app.function(on="later")
    async def f(ctx: Context[dict[str, Any]], step: Step) -> str:
        return "ran"

    async with harness(app, database_url=database_url) as h:
        [event_id] = await h.send(Event(name="later", ts=h.now() + timedelta(hours=2)))
        await h.advance("1h")
        [run] = (await app.events.runs(event_id)).data
        assert run.status is RunStatus.QUEUED
        await h.advance("1h")
        assert (await app.runs.get(run.id)).output == "ran"


async def test_a_wait_takes_only_the_event_that_matches(database_url: str) -> None:
    app = App("t")

    @app.function(on="user/new")
    async def f(ctx: Context[dict[str, Any]], step: Step) -> Any:
        event = await step.wait_for_event("paid", event="paid", match="data.user.id", timeout="1d")
        return event and event.data["amount"]

    async with harness(app, database_url=database_url) as h:
        [event_id] = await h.send({"name": "user/new", "data": {"user": {"id": 7}}})
        await h.idle()
        await h.send({"name": "paid", "data": {"user": {"id": 8}, "amount": 1}})
        await h.send({"name": "paid", "data": {"user": {"id": "7"}, "amount": 2}})
        await h.send({"name": "paid", "data": {"amount": 3}})
        await h.idle()
        [run] = (await app.events.runs(event_id)).data
        assert run.status is RunStatus.WAITING
        await h.send({"name": "paid", "data": {"user": {"id": 7}, "amount": 4}})
        await h.idle()
        assert (await app.runs.get(run.id)).output == 4


async def test_one_event_wakes_every_run_that_waits_for_it(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[int], step: Step) -> int:
        event = await step.wait_for_event("go", event="go", timeout="1d")
        return ctx.data if event else -1

    async with harness(app, database_url=database_url) as h:
        runs = [await h.start(f, n) for n in range(5)]
        await h.idle()
        await h.send({"name": "go"})
        assert [await run.result(5) for run in runs] == [0, 1, 2, 3, 4]


async def test_a_wait_registered_before_a_send_of_the_same_name_gets_it(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        event, ids = await asyncio.gather(
            step.wait_for_event("wait", event="ping", timeout="1h"),
            step.send_event("send", {"name": "ping", "data": {"n": 1}}),
        )
        return [event and event.data, len(ids)]

    async with harness(app, database_url=database_url) as h:
        assert await (await h.start(f)).result(5) == [{"n": 1}, 1]


async def test_lookback_takes_an_event_that_came_before(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[str | None], step: Step) -> Any:
        event = await step.wait_for_event("e", event="early", timeout="1m", lookback=ctx.data)
        return event and event.data

    async with harness(app, database_url=database_url) as h:
        await h.send({"name": "early", "data": {"n": 1}})
        await h.advance("4m")
        with_lookback, without = await h.start(f, "5m"), await h.start(f, None)
        await h.advance("2m")
        assert await with_lookback.result(5) == {"n": 1}
        assert await without.result(5) is None


async def test_who_does_not_wait_at_all_takes_an_event_that_came_before(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        lookbacks = ["5m", "1m", None]
        asked = [
            await step.wait_for_event("e", event="early", timeout=0, lookback=lookback)
            for lookback in lookbacks
        ]
        return [event and event.data for event in asked]

    async with harness(app, database_url=database_url, replay_every_step=True) as h:
        await h.send({"name": "early", "data": {"n": 1}})
        await h.advance("4m")
        assert await (await h.start(f)).result(5) == [{"n": 1}, None, None]


# ------------------------------------------------------------------------------------------ invoke


async def test_invoke_gives_the_childs_typed_output(database_url: str) -> None:
    app = App("t")

    @app.function
    async def child(ctx: Context[Order], step: Step) -> Order:
        await step.sleep("nap", "1h")
        return Order(id=ctx.data.id, total=ctx.data.total * 2)

    @app.function
    async def parent(ctx: Context[None], step: Step) -> int:
        order = await step.invoke("double", child, data=Order(id="1", total=4))
        return order.total

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        await h.advance("1h")
        assert await run.result(5) == 8
        runs = (await app.runs.list()).data
        [one] = [found for found in runs if found.parent_id == run.id]
        assert one.root_id == run.id


async def test_a_childs_failure_raises_step_error_and_is_not_retried_by_the_parent(database_url: str) -> None:
    app, calls = App("t"), []

    @app.function(retries=0)
    async def child(ctx: Context[None], step: Step) -> None:
        calls.append(1)
        raise ValueError("child's")

    @app.function
    async def parent(ctx: Context[None], step: Step) -> str:
        try:
            await step.invoke("call", child)
        except StepError as error:
            return f"{error.name}: {error.message}"
        return "no"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        await h.advance("1h")
        assert await run.result(5) == "ValueError: child's"
        assert calls == [1]


async def test_an_invoke_that_takes_too_long_raises_and_may_cancel_the_child(database_url: str) -> None:
    app = App("t")

    @app.function
    async def child(ctx: Context[None], step: Step) -> None:
        await step.sleep("long", "1w")

    @app.function
    async def parent(ctx: Context[str], step: Step) -> str:
        try:
            await step.invoke("call", child, timeout="1h", on_timeout=ctx.data)  # type: ignore[arg-type]
        except InvokeTimeout:
            await step.sleep("nap", 1)
            return "too late"
        return "no"

    async with harness(app, database_url=database_url) as h:
        leave, cancel = await h.start(parent, "leave"), await h.start(parent, "cancel")
        await h.advance("2h")
        assert [await leave.result(5), await cancel.result(5)] == ["too late", "too late"]
        children = {run.parent_id: run.status for run in (await app.runs.list()).data if run.parent_id}
        assert children == {leave.id: RunStatus.SLEEPING, cancel.id: RunStatus.CANCELLED}


async def test_cancelling_a_parent_cancels_its_children_unless_detached(database_url: str) -> None:
    app = App("t")

    @app.function
    async def child(ctx: Context[None], step: Step) -> None:
        await step.sleep("long", "1w")

    @app.function
    async def parent(ctx: Context[None], step: Step) -> None:
        await step.invoke("free", child, detach=True)
        await step.invoke("bound", child)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        await h.idle()
        cancelled = await app.runs.cancel(run.id, "enough")
        assert (cancelled.status, cancelled.reason) == (RunStatus.CANCELLED, "enough")
        with pytest.raises(RunCancelled, match="enough"):
            await run.result(5)
        children = sorted(found.status for found in (await app.runs.list()).data if found.parent_id)
        assert children == [RunStatus.CANCELLED, RunStatus.SLEEPING]


async def test_invoke_of_an_unknown_function_or_with_bad_data_makes_no_child(sqlite_url: str) -> None:
    app = App("t")

    @app.function
    async def child(ctx: Context[Order], step: Step) -> None: ...

    @app.function
    async def parent(ctx: Context[None], step: Step) -> list[str]:
        caught = []
        for target, data in (("nowhere", None), (FunctionRef("child"), {"id": 1})):
            try:
                await step.invoke("call", target, data=data)
            except Exception as error:
                caught.append(type(error).__name__)
        return caught

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(parent)
        assert await run.result(5) == ["NotFound", "InvalidInput"]
        assert len((await app.runs.list()).data) == 1


async def test_a_running_body_is_cancelled_with_its_run(database_url: str) -> None:
    app, log = App("t"), []
    started = asyncio.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        async def body() -> None:
            started.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                log.append("cancelled")
                raise

        await step.run("body", body)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await started.wait()
        await app.runs.cancel(run.id, "stop")
        with pytest.raises(RunCancelled, match="stop"):
            await run.result(5)
        assert log == ["cancelled"]


async def test_unserialisable_may_be_caught(sqlite_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        try:
            await step.run("bad", lambda: {1})
        except Unserialisable:
            await step.sleep("nap", 1)
            return "caught"
        return "no"

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.advance(1)
        assert await run.result(5) == "caught"
