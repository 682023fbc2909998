"""Rules 10 to 16: attempts, policies, what a failed step raises, timeouts, `on_failure`, poisoned runs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from tenacity import Retrying, retry_if_exception_type, retry_if_result, stop_after_attempt, wait_fixed

from agentflow import App, Context, Event, Step, step_info
from agentflow.errors import ConfigurationError, NonRetriable, RetryAfter, StepError
from agentflow.flow import RunFailure
from agentflow.testing import Harness, crash_after, harness
from tests.behaviours.looking import failure_of, restarted, steps_of
from tests.store.support import until

# 10


async def test_retries_4_is_five_attempts_for_each_step(database_url: str) -> None:
    app, called = App("t"), {"a": 0, "b": 0}

    @app.function(retries=4)
    async def f(ctx: Context[None], step: Step) -> list[int]:
        def fail(name: str) -> None:
            called[name] += 1
            raise ValueError(name)

        attempts = []
        for name in called:
            try:
                await step.run(name, fail, name)
            except StepError as error:
                attempts.append(error.attempts)
        return attempts

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        assert await run.result(10) == [5, 5]
        assert [record.attempts for record in (await steps_of(app, run)).values()] == [5, 5]
    assert called == {"a": 5, "b": 5}


async def test_the_code_between_steps_has_five_attempts_counted_since_the_last_new_step(
    database_url: str,
) -> None:
    app, seen = App("t"), []

    @app.function(retries=4)
    async def f(ctx: Context[None], step: Step) -> None:
        if len(seen) < 4:
            seen.append(("before", ctx.attempt))
            raise ValueError("before")
        await step.run("new", int)
        seen.append(("after", ctx.attempt))
        raise KeyError("after")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("2h")
        assert (await failure_of(run)).name == "KeyError"
    assert [attempt for where, attempt in seen if where == "before"] == [0, 1, 2, 3]
    assert len([where for where, _ in seen if where == "after"]) == 5


async def test_retries_0_is_one_attempt_of_a_step_and_of_the_code_between(database_url: str) -> None:
    app, called = App("t"), []

    @app.function(retries=0)
    async def f(ctx: Context[str], step: Step) -> None:
        def fail() -> None:
            called.append(ctx.data)
            raise ValueError

        if ctx.data == "step":
            await step.run("x", fail)
        fail()

    async with harness(app, database_url=database_url) as h:
        runs = [await h.start(f, where) for where in ("step", "code")]
        await h.advance("1h")
        assert [(await failure_of(run)).name for run in runs] == ["ValueError"] * 2
    assert sorted(called) == ["code", "step"]


@pytest.mark.parametrize("retries", [-1, 21, True, 1.5, "4"])
def test_retries_are_0_to_20(retries: Any) -> None:
    app = App("t")

    async def f(ctx: Context[None], step: Step) -> None: ...

    with pytest.raises(ConfigurationError):
        app.function("f", retries=retries)(f)


async def test_a_steps_retry_goes_over_the_functions_retries(database_url: str) -> None:
    app, called = App("t"), {"one": 0, "none": 0}

    @app.function(retries=4)
    async def f(ctx: Context[None], step: Step) -> list[int]:
        def fail(name: str) -> None:
            called[name] += 1
            raise ValueError

        got = []
        for name, retry in [("one", 1), ("none", 0)]:
            try:
                await step.run(name, fail, name, retry=retry)
            except StepError as error:
                got.append(error.attempts)
        return got

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        assert await run.result(10) == [2, 1]
    assert called == {"one": 2, "none": 1}


async def test_tenacitys_stop_wait_and_retry_are_honoured_over_a_crash(database_url: str) -> None:
    app, at = App("t"), []
    policy = Retrying(
        stop=stop_after_attempt(3), wait=wait_fixed(600), retry=retry_if_exception_type(ConnectionError)
    )

    clock: list[Harness] = []

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        def fail(kind: type[Exception]) -> None:
            at.append((kind.__name__, clock[0].now()))
            raise kind("no")

        got: list[Any] = []
        for kind in (ConnectionError, ValueError):
            try:
                await step.run(kind.__name__, fail, kind, retry=policy)
            except StepError as error:
                got += [error.name, error.attempts]
        return got

    async with harness(app, database_url=database_url) as h:
        clock.append(h)
        begun = h.now()
        run = await h.start(f)
        await h.advance("9m")
        assert len(at) == 1
        await restarted(h)
        await h.advance("1h")
        assert await run.result(10) == ["ConnectionError", 3, "ValueError", 1]
    offsets = [(when - begun) // timedelta(minutes=1) for _, when in at]
    assert offsets == [0, 10, 20, 20]


async def test_tenacity_may_retry_a_result(database_url: str) -> None:
    app, answers = App("t"), iter(["", "", "full"])
    policy = Retrying(
        stop=stop_after_attempt(5), wait=wait_fixed(60), retry=retry_if_result(lambda text: text == "")
    )

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        def ask() -> str:
            return next(answers)

        return await step.run("ask", ask, retry=policy)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("5m")
        assert await run.result(10) == "full"


async def test_the_default_delays_grow_from_about_a_second_to_an_hour_at_most(database_url: str) -> None:
    app, at = App("t"), []

    clock: list[Harness] = []

    @app.function(retries=20)
    async def f(ctx: Context[None], step: Step) -> None:
        def fail() -> None:
            at.append(clock[0].now())
            raise ValueError

        await step.run("x", fail)

    async with harness(app, database_url=database_url) as h:
        clock.append(h)
        run = await h.start(f)
        await h.advance("2d")
        await failure_of(run)
    gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(at)]
    assert len(gaps) == 20
    assert 0.5 <= gaps[0] <= 2
    assert max(gaps) <= 3600
    assert gaps[-1] >= 1800


async def test_a_functions_retry_is_the_default_of_its_steps_and_rules_the_code_between_them(
    database_url: str,
) -> None:
    app, called = App("t"), []
    policy = Retrying(stop=stop_after_attempt(2), wait=wait_fixed(60))

    @app.function(retry=policy)
    async def f(ctx: Context[str], step: Step) -> None:
        def fail() -> None:
            called.append(ctx.data)
            raise ValueError

        if ctx.data == "step":
            await step.run("x", fail)
        fail()

    async with harness(app, database_url=database_url) as h:
        for where in ("step", "code"):
            await h.start(f, where)
        await h.advance("1h")
    assert sorted(called) == ["code", "code", "step", "step"]


# 11


async def test_a_long_delay_is_a_durable_timer_that_survives_a_restart(database_url: str) -> None:
    app, called = App("t"), [0]

    @app.function
    async def f(ctx: Context[None], step: Step) -> int:
        def body() -> int:
            called[0] += 1
            if called[0] == 1:
                raise RetryAfter("2h")
            return step_info().attempt

        return await step.run("x", body)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        assert await run.status() == "sleeping"
        await h.crash()
        await h.advance("1h")
        await h.restart()
        await h.advance("59m")
        assert called == [1]
        await h.advance("1m")
        assert await run.result(10) == 1


# 12


async def test_non_retriable_ends_a_step_at_its_first_attempt_catchable_as_step_error(
    database_url: str,
) -> None:
    app, called = App("t"), [0]

    class Declined(NonRetriable):
        pass

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        def body() -> None:
            called[0] += 1
            raise Declined("card")

        try:
            await step.run("x", body)
        except StepError as error:
            await step.sleep("s", 60)
            return [error.name, error.message, error.attempts]
        return []

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        assert await run.result(10) == ["Declined", "card", 1]
        assert (await steps_of(app, run))["x"].status == "failed"
    assert called == [1]


async def test_non_retriable_between_steps_fails_the_run_at_once(database_url: str) -> None:
    app, entered = App("t"), [0]

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        entered[0] += 1
        raise NonRetriable("no use")

    async with harness(app, database_url=database_url) as h:
        error = await failure_of(await h.start(f))
    assert (error.name, error.message, entered) == ("NonRetriable", "no use", [1])


async def test_retry_after_sets_the_delay_and_uses_an_attempt(database_url: str) -> None:
    app, at = App("t"), []

    clock: list[Harness] = []

    @app.function(retries=2)
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        def body() -> None:
            at.append(clock[0].now())
            raise RetryAfter(timedelta(minutes=7), "busy")

        try:
            await step.run("x", body)
        except StepError as error:
            return [error.name, error.message, error.attempts]
        return []

    async with harness(app, database_url=database_url) as h:
        clock.append(h)
        run = await h.start(f)
        await h.advance("1h")
        assert await run.result(10) == ["RetryAfter", "busy", 3]
    assert [round((when - at[0]).total_seconds()) for when in at] == [0, 420, 840]


async def test_retry_after_between_steps_sets_the_delay(database_url: str) -> None:
    app, entered = App("t"), [0]

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        entered[0] += 1
        if ctx.attempt == 0:
            raise RetryAfter("3h")
        return "done"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("2h59m")
        assert entered == [1]
        assert await run.status() == "sleeping"
        await h.advance("1m")
        assert await run.result(10) == "done"


# 13


class OutOfStock(Exception):
    def __init__(self, message: str, *, sku: str) -> None:
        super().__init__(message)
        self.sku = sku
        self.left = {"north": 0}
        self.socket = object()


async def test_a_step_error_has_name_message_traceback_and_the_json_able_attributes(
    database_url: str,
) -> None:
    app, caught = App("t"), []

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> None:
        def order_the_thing() -> None:
            raise OutOfStock("nothing left", sku="A-1")

        try:
            await step.run("order", order_the_thing)
        except StepError as error:
            trace = "order_the_thing" in (error.traceback or "")
            caught.append((error.step_id, error.name, error.message, error.attributes, trace))
        await step.sleep("s", 60)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("2m")
        await run.result(10)
        stored = (await steps_of(app, run))["order"].error
    told = ("order", "OutOfStock", "nothing left", {"sku": "A-1", "left": {"north": 0}}, True)
    assert caught == [told, told]
    assert stored is not None
    assert (stored.name, stored.attributes) == ("OutOfStock", {"sku": "A-1", "left": {"north": 0}})


async def test_a_caught_step_error_lets_the_run_go_on_and_the_body_is_never_called_again(
    database_url: str,
) -> None:
    app, called = App("t"), [0]

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> str:
        def body() -> None:
            called[0] += 1
            raise ValueError("no")

        try:
            await step.run("x", body)
        except StepError as error:
            await step.run("compensate", str, error.message)
        await step.sleep("s", 60)
        return "went on"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        await restarted(h)
        await h.advance("2m")
        assert await run.result(10) == "went on"
    assert called == [1]


async def test_a_re_raised_step_error_fails_the_run_without_further_attempts(database_url: str) -> None:
    app, entered = App("t"), [0]

    @app.function(retries=3)
    async def f(ctx: Context[None], step: Step) -> None:
        entered[0] += 1

        def body() -> None:
            raise ValueError("no")

        try:
            await step.run("x", body, retry=0)
        except StepError:
            raise

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        error = await failure_of(run)
    assert (error.name, error.message, error.step_id) == ("ValueError", "no", "x")
    assert entered == [1]


async def test_another_exception_raised_instead_is_an_error_of_the_function_and_retried(
    database_url: str,
) -> None:
    app, entered, called = App("t"), [0], [0]

    @app.function(retries=2)
    async def f(ctx: Context[None], step: Step) -> None:
        entered[0] += 1

        def body() -> None:
            called[0] += 1
            raise ValueError("no")

        try:
            await step.run("x", body, retry=0)
        except StepError as error:
            raise RuntimeError("instead") from error

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        error = await failure_of(run)
    assert (error.name, error.message, error.step_id) == ("RuntimeError", "instead", None)
    assert (entered, called) == ([3], [1])


async def test_a_group_of_step_errors_fails_the_run_without_further_attempts(database_url: str) -> None:
    app, entered = App("t"), [0]

    @app.function(retries=3)
    async def f(ctx: Context[None], step: Step) -> None:
        entered[0] += 1

        def body() -> None:
            raise ValueError("no")

        async with asyncio.TaskGroup() as group:
            group.create_task(step.run("x", body, retry=0))

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        error = await failure_of(run)
    assert (error.name, error.step_id, entered) == ("ValueError", "x", [1])


async def test_an_own_error_of_a_step_that_fails_the_run_names_its_step(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        await step.run("tells a set", lambda: {1})

    async with harness(app, database_url=database_url) as h:
        error = await failure_of(await h.start(f))
    assert (error.name, error.step_id) == ("Unserialisable", "tells a set")


async def test_invalid_input_uncaught_fails_the_run_without_a_retry(database_url: str) -> None:
    app, entered = App("t"), [0]

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        entered[0] += 1
        await step.sleep("s", -5)

    async with harness(app, database_url=database_url) as h:
        error = await failure_of(await h.start(f))
    assert (error.name, entered) == ("InvalidInput", [1])


async def test_the_attempt_of_step_info_counts_from_0_and_its_idempotency_key_is_stable(
    database_url: str,
) -> None:
    app, seen = App("t"), []

    @app.function(retries=2)
    async def f(ctx: Context[None], step: Step) -> None:
        def body() -> None:
            seen.append((step_info().attempt, step_info().idempotency_key, step_info().run_id == ctx.run_id))
            if len(seen) < 3:
                raise ValueError

        await step.run("x", body)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        await run.result(10)
    assert [(attempt, same) for attempt, _, same in seen] == [(0, True), (1, True), (2, True)]
    assert len({key for _, key, _ in seen}) == 1


async def test_a_step_that_waits_for_its_next_attempt_is_waiting_and_its_run_sleeping(
    database_url: str,
) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        def body() -> None:
            raise RetryAfter("1h", "later")

        await step.run("x", body)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        assert await run.status() == "sleeping"
        record = (await steps_of(app, run))["x"]
        assert (record.status, record.attempts, record.kind) == ("waiting", 1, "run")
        [waiting] = (await app.runs.get(run.id)).waiting
        assert (waiting.step_key, waiting.until) == ("x", waiting.since + timedelta(hours=1))


# 14


async def test_timeout_cancels_an_async_body_and_the_attempt_counts(database_url: str) -> None:
    app, said = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        async def body() -> None:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                said.append("cancelled")
                raise

        try:
            await step.run("x", body, timeout=0.02, retry=1)
        except StepError as error:
            return [error.name, error.attempts]
        return []

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        assert await run.result(10) == ["TimeoutError", 2]
    assert said == ["cancelled", "cancelled"]


async def test_a_sync_bodys_late_result_is_dropped_and_its_retry_starts_only_after_its_thread_has_ended(
    database_url: str,
) -> None:
    app, spans = App("t"), []
    go_on = threading.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        def body() -> str:
            begun = time.monotonic()
            attempt = step_info().attempt
            if attempt == 0:
                go_on.wait(10)
            spans.append((begun, time.monotonic()))
            return f"attempt {attempt}"

        return await step.run("x", body, timeout=0.4, retry=3)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await asyncio.sleep(0.5)
        assert spans == []
        go_on.set()
        await h.advance("1h")
        assert await run.result(10) == "attempt 1"
    (_, first_ended), (second_began, _) = spans
    assert second_began >= first_ended


# 15


async def test_on_failure_runs_once_with_its_own_steps_the_error_the_step_the_run_and_the_event(
    database_url: str,
) -> None:
    app, told = App("t"), []

    async def react(ctx: Context[RunFailure], step: Step) -> None:
        await step.run("tell", told.append, None)
        await step.sleep("s", 60)
        failure = ctx.data
        event = failure.event
        assert event is not None
        told.append((failure.run_id, failure.error.name, failure.error.step_id, event.name, event.data))

    @app.function(on="order/placed", retries=0, on_failure=react)
    async def pay(ctx: Context[dict[str, int]], step: Step) -> None:
        await step.run("charge", lambda: 1 / 0)

    async with harness(app, database_url=database_url) as h:
        await h.send(Event(name="order/placed", data={"n": 1}))
        await h.idle()
        await restarted(h)
        await h.advance("2m")
        [failed] = (await app.runs.list(function="pay")).data
        [reaction] = (await app.runs.list(function="pay-failure")).data
    assert reaction.status == "completed"
    assert told == [None, (failed.id, "ZeroDivisionError", "charge", "order/placed", {"n": 1})]


async def test_on_failure_is_not_for_cancelled_runs(database_url: str) -> None:
    app, told = App("t"), []

    async def react(ctx: Context[RunFailure], step: Step) -> None:
        told.append(ctx.data)

    @app.function(on_failure=react)
    async def f(ctx: Context[None], step: Step) -> None:
        await step.sleep("s", "1d")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        await app.runs.cancel(run.id)
        await h.advance("2d")
        assert [record.function for record in (await app.runs.list()).data] == ["f"]
    assert told == []


async def test_an_event_with_bad_data_gives_a_failed_run_and_on_failure_is_told(database_url: str) -> None:
    app, told = App("t"), []

    async def react(ctx: Context[RunFailure], step: Step) -> None:
        told.append(ctx.data.error.name)

    @app.function(on="n", on_failure=react)
    async def f(ctx: Context[dict[str, int]], step: Step) -> None: ...

    async with harness(app, database_url=database_url) as h:
        await h.send(Event(name="n", data={"n": "not a number"}))
        await h.idle()
        [failed] = (await app.runs.list(function="f")).data
    assert failed.status == "failed"
    assert told == ["InvalidInput"]


async def test_a_failing_on_failure_starts_nothing_else(database_url: str) -> None:
    app, called = App("t"), [0]

    async def react(ctx: Context[RunFailure], step: Step) -> None:
        called[0] += 1
        raise NonRetriable("this too")

    @app.function(on_failure=react)
    async def f(ctx: Context[None], step: Step) -> None:
        raise NonRetriable("no")

    async with harness(app, database_url=database_url) as h:
        await h.start(f)
        await h.advance("1d")
        assert len((await app.runs.list()).data) == 2
    assert called == [1]


# 16


async def test_a_lone_run_that_ends_five_workers_fails_as_poisoned(database_url: str) -> None:
    app, entered = App("t"), asyncio.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        entered.set()
        await asyncio.Event().wait()

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        for _ in range(5):
            await asyncio.wait_for(entered.wait(), 10)
            entered.clear()
            await h.crash()
            assert not (await run.status()).is_final
            await h.restart()
        assert (await failure_of(run)).name == "Poisoned"


async def test_a_new_committed_step_resets_the_count_of_crashes(database_url: str) -> None:
    app, entered, made = App("t"), asyncio.Event(), [0]

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        for _ in range(made[0]):
            await step.run("x", int)
        entered.set()
        if made[0] < 8:
            await asyncio.Event().wait()
        return "survived"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        for _ in range(8):
            await asyncio.wait_for(entered.wait(), 10)
            entered.clear()
            await h.crash()
            made[0] += 1
            await h.restart()
        assert await run.result(10) == "survived"


@pytest.mark.parametrize("point", ["after_claim", "after_start"])
async def test_a_crash_before_the_runs_code_is_called_is_not_the_runs(database_url: str, point: str) -> None:
    app, entered, gate = App("t"), [0], asyncio.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        entered[0] += 1
        await gate.wait()
        return "survived"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await until(lambda: entered[0] == 1)
        await h.crash()
        for _ in range(6):
            with crash_after(point):
                await h.restart()
        gate.set()
        await h.restart()
        assert await run.result(10) == "survived"
    assert entered == [2]


@pytest.mark.parametrize("way", ["sleep", "timeout", "signal", "event", "child"])
async def test_whatever_a_run_has_waited_for_resets_the_count_of_crashes(database_url: str, way: str) -> None:
    app, made, entered = App("t"), [0], [0]

    @app.function
    async def child(ctx: Context[None], step: Step) -> None:
        await step.sleep("s", "1m")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        for n in range(7):
            match way:
                case "sleep":
                    await step.sleep("x", "1m")
                case "timeout":
                    assert await step.wait_for_signal("x", signal="nobody", timeout="1m") is None
                case "signal":
                    assert await step.wait_for_signal("x", signal="go", timeout="1d") is not None
                case "event":
                    assert await step.wait_for_event("x", event="go", timeout="1d") is not None
                case _:
                    await step.invoke("x", child)
            if n == made[0]:
                entered[0] += 1
                await asyncio.Event().wait()
        return "survived"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        for n in range(7):
            await h.idle()
            if way == "signal":
                await h.signal("go")
            elif way == "event":
                await h.send({"name": "go"})
            passing = asyncio.create_task(h.advance("1m"))
            await until(lambda n=n: entered[0] == n + 1)
            await h.crash()
            await passing
            made[0] += 1
            await h.restart()
        assert await run.result(10) == "survived"


async def test_a_crash_while_a_run_sleeps_is_not_its_own(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        await step.sleep("s", "1d")
        return "awake"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        for _ in range(6):
            await restarted(h)
        await h.advance("1d")
        assert await run.result(10) == "awake"


async def test_a_retry_after_with_a_wrong_duration_does_not_hang_the_run(database_url: str) -> None:
    app = App("t")

    @app.function(retries=1)
    async def f(ctx: Context[None], step: Step) -> str:
        def body() -> None:
            raise RetryAfter("two moons")

        try:
            await step.run("x", body)
        except StepError as error:
            return error.name
        except Exception as error:
            return type(error).__name__
        return "no error"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1d")
        assert await run.result(10) in {"InvalidInput", "RetryAfter"}


@pytest.mark.parametrize("error", [StopIteration, concurrent.futures.CancelledError])
async def test_what_no_future_can_hold_is_an_ordinary_failure_of_a_sync_body(
    database_url: str, error: type[Exception]
) -> None:
    app, called = App("t"), []

    def body() -> (
        None
    ):  # next() of an iterator that is empty, a job of the user's own pool that was cancelled
        called.append(step_info().attempt)
        raise error

    @app.function(retries=1)
    async def f(ctx: Context[None], step: Step) -> str:
        try:
            await step.run("call", body)
        except StepError as failed:
            return failed.message
        return "no error"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await asyncio.wait_for(h.advance("1h"), 20)
        assert await run.result(10) == ("coroutine raised StopIteration" if error is StopIteration else "")
    assert called == [0, 1]


async def answer() -> int:
    return 42


@pytest.mark.parametrize(
    ("call", "name", "message"),
    [
        (lambda step: step.run("x", answer()), "ConfigurationError", "step 'x' is given a coroutine"),
        (lambda step: step.run("x", 5), "ConfigurationError", "step 'x' is given 5, which is no function"),
        (lambda step: step.sleep_until("x", "2030-01-01"), "InvalidInput", "'2030-01-01' is a str"),
        (lambda step: step.wait_for_event("x", event="", timeout=1), "InvalidInput", "event='' names no"),
        (lambda step: step.wait_for_event("x", event=None, timeout=1), "InvalidInput", "event=None names no"),
        (
            lambda step: step.wait_for_signal("x", signal="s", timeout=1, on_conflict="Replace"),
            "InvalidInput",
            "on_conflict='Replace': write 'fail' or 'replace'",
        ),
        (
            lambda step: step.invoke("x", "f", timeout=1, on_timeout="stop"),
            "InvalidInput",
            "on_timeout='stop': write 'leave' or 'cancel'",
        ),
        (lambda step: step.approval("x", title=5), "InvalidInput", "title=5 of an approval is a int"),
        (lambda step: step.send_event("x", None), "InvalidInput", "None is no event"),
    ],
)
async def test_a_step_that_is_called_wrongly_fails_the_run_at_once_and_says_how(
    database_url: str, call: Any, name: str, message: str
) -> None:
    app, entered = App("t"), [0]

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        entered[0] += 1
        await call(step)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1m")
        error = await failure_of(run)
    assert (error.name, entered) == (name, [1])
    assert message in error.message
