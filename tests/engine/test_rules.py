"""The rules of steps, replay, errors and retries, one sentence a test, where the tests of steps do not hold them."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from typing import Any

import pytest
from pydantic import BaseModel

from agentflow.app import App
from agentflow.context import Context
from agentflow.errors import (
    InvalidInput,
    NestedStep,
    NonRetriable,
    RunFailed,
    SignalConflict,
    StepError,
    Unserialisable,
)
from agentflow.info import step_info
from agentflow.runs import RunStatus, StepRecord
from agentflow.settings import Settings
from agentflow.step import Step
from agentflow.testing import Harness, harness


async def steps_of(app: App, run_id: str) -> list[StepRecord]:
    return (await app.runs.steps(run_id)).data


async def failure_of(h: Harness, run_id: str) -> Any:
    with pytest.raises(RunFailed) as raised:
        await h.app.runs.handle(run_id).result(5)
    return raised.value.error


# 1


async def test_a_steps_result_is_durable_before_the_next_line_of_user_code_runs(database_url: str) -> None:
    app, seen = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        for n in range(3):
            await step.run("count", lambda n=n: n)
            seen.append([record.output for record in await steps_of(app, ctx.run_id)])

    async with harness(app, database_url=database_url) as h:
        await (await h.start(f)).result(5)
    assert seen == [[0], [0, 1], [0, 1, 2]]


async def test_a_run_goes_from_step_to_step_without_replay(sqlite_url: str) -> None:
    app, entered = App("t"), 0

    @app.function
    async def f(ctx: Context[None], step: Step) -> int:
        nonlocal entered
        entered += 1
        for n in range(20):
            await step.run("count", lambda n=n: n)
        return entered

    async with harness(app, database_url=sqlite_url) as h:
        assert await (await h.start(f)).result(5) == 1


# 2


async def test_a_branch_adds_its_path_the_order_in_which_its_parent_created_tasks(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        async def leaf(pause: float) -> None:
            await asyncio.sleep(pause)
            await step.run("id", lambda: 1)
            await step.run("id", lambda: 1)

        async def inner(pause: float) -> None:
            await asyncio.gather(leaf(pause), leaf(0))

        await step.run("id", lambda: 1)
        await asyncio.gather(inner(0.02), inner(0))
        await step.run("id", lambda: 1)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await run.result(5)
        keys = {record.key for record in await steps_of(app, run.id)}
    leaves = {f"id{n}@{path}" for n in ("", ":1") for path in ("0.0", "0.1", "1.0", "1.1")}
    assert keys == leaves | {"id", "id:1"}


async def test_a_step_id_has_at_most_512_bytes_and_at_least_one(sqlite_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[str]:
        told = [await step.run("é" * 256, lambda: "long")]
        for bad in ("é" * 257, ""):
            try:
                await step.run(bad, lambda: "no")
            except InvalidInput:
                told.append("refused")
        return told

    async with harness(app, database_url=sqlite_url) as h:
        assert await (await h.start(f)).result(5) == ["long", "refused", "refused"]


# 3


@pytest.mark.parametrize(
    "value",
    [float("nan"), "\ud800", "a\x00b", {1: 2}, b"x", {"deep": None}],
    ids=["nan", "surrogate", "nul", "key", "bytes", "nesting"],
)
async def test_what_would_not_come_back_equal_is_refused_and_not_retried(sqlite_url: str, value: Any) -> None:
    app, calls = App("t"), 0
    if isinstance(value, dict) and "deep" in value:
        for _ in range(120):
            value = {"deep": value}

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        def body() -> Any:
            nonlocal calls
            calls += 1
            return value

        try:
            await step.run("bad", body)
        except Unserialisable as error:
            return str(error)
        return "no"

    async with harness(app, database_url=sqlite_url) as h:
        assert "'bad'" in await (await h.start(f)).result(5)
    assert calls == 1


# 4


class Deploy:
    """Code that is changed while its runs wait."""

    def __init__(self) -> None:
        self.version = 1


async def test_an_added_step_runs_when_reached_a_removed_one_is_ignored_a_reordered_one_resolves(
    database_url: str,
) -> None:
    app, deploy, calls = App("t"), Deploy(), []

    def body(name: str) -> str:
        calls.append(name)
        return name

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[str]:
        names = ["a", "b", "c"] if deploy.version == 1 else ["c", "added", "a"]
        values = [await step.run(name, body, name) for name in names]
        await step.sleep("nap", "1h")
        return values

    async with harness(app, database_url=database_url, strict_replay=False) as h:
        run = await h.start(f)
        await h.idle()
        deploy.version = 2
        await h.advance("1h")
        assert await run.result(5) == ["c", "added", "a"]
    assert calls == ["a", "b", "c", "added"]


@pytest.mark.parametrize("change", ["kind", "type"])
async def test_a_mismatch_is_tried_again_so_that_a_fixed_deploy_heals_it(
    database_url: str, change: str
) -> None:
    app, deploy = App("t"), Deploy()

    class Old(BaseModel):
        old: int

    class New(BaseModel):
        new: int

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        if deploy.version == 1:
            await step.run("it", lambda: Old(old=1), output=Old)
        elif change == "kind":
            await step.sleep("it", 1)
        else:
            await step.run("it", lambda: New(new=1), output=New)
        await step.sleep("nap", "1h")
        return "done"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        deploy.version = 2
        await h.advance("2h")
        found = await app.runs.get(run.id)
        assert not found.status.is_final
        assert "ReplayMismatch" in (found.reason or "")
        assert "'it'" in (found.reason or "")
        deploy.version = 1
        await h.advance("2h")
        assert await run.result(5) == "done"


# 5


async def test_parallel_steps_run_at_once_each_with_its_own_attempts_in_the_order_of_the_arguments(
    database_url: str,
) -> None:
    app, together = App("t"), asyncio.Barrier(3)

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        async def body(n: int) -> int:
            if step_info().attempt == 0:
                await together.wait()
            if step_info().attempt < n:
                raise ValueError(n)
            return n

        return await asyncio.gather(*[step.run(f"s{n}", body, n) for n in (2, 0, 1)])

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        assert await run.result(5) == [2, 0, 1]
        attempts = {record.key: record.attempts for record in await steps_of(app, run.id)}
    assert attempts == {"s0": 1, "s1": 2, "s2": 3}


async def test_a_failing_branch_does_not_undo_its_siblings_memos(database_url: str) -> None:
    app, calls = App("t"), []

    @app.function(retries=1)
    async def f(ctx: Context[None], step: Step) -> str:
        async def good() -> None:
            await step.run("good", lambda: calls.append("good"))

        async def bad() -> None:
            await step.run("good too", lambda: None)
            await step.sleep("nap", 1)
            if ctx.attempt == 0:
                raise ValueError("once")

        await asyncio.gather(good(), bad())
        return "done"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        assert await run.result(5) == "done"
    assert calls == ["good"]


# 6 and 9


@pytest.mark.parametrize("where", ["async", "thread", "task"])
async def test_a_nested_step_fails_the_run_from_wherever_in_the_body(sqlite_url: str, where: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        async def nest() -> None:
            with suppress(NestedStep):
                await step.sleep("inner", 1)

        async def in_task() -> None:
            await asyncio.create_task(nest())

        def in_thread() -> None:
            with pytest.raises(NestedStep):
                step.run("inner", lambda: 1)

        try:
            await step.run("outer", {"async": nest, "thread": in_thread, "task": in_task}[where])
        except BaseException:
            return "hidden"
        return "hidden too"

    async with harness(app, database_url=sqlite_url) as h:
        error = await failure_of(h, (await h.start(f)).id)
    assert error.name == "NestedStep"


@pytest.mark.parametrize(
    "limit", ["max_steps", "max_step_bytes", "max_run_bytes", "max_wait", "max_event_bytes"]
)
async def test_over_a_limit_the_run_fails_at_once_with_step_and_figure_whatever_is_caught(
    sqlite_url: str, limit: str
) -> None:
    limits: dict[str, Any] = {limit: "1h" if limit == "max_wait" else 3 if limit == "max_steps" else 300}
    app = App("t", settings=Settings(**limits))

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        try:
            for _ in range(4):
                await step.run("small", lambda: "x" * 100)
            await step.run("culprit", lambda: "x" * 400)
            await step.send_event("culprit", {"name": "e", "data": {"x": "x" * 400}})
            await step.sleep("culprit", "2h")
        except BaseException:
            return "hidden"
        return "no"

    async with harness(app, database_url=sqlite_url) as h:
        error = await failure_of(h, (await h.start(f)).id)
    assert error.name == "LimitExceeded"
    assert limits[limit] == "1h" or str(limits[limit]) in error.message


# 8


async def test_whatever_a_step_raises_comes_back_as_the_same_class_on_replay(database_url: str) -> None:
    app, seen = App("t"), []

    @app.function
    async def holder(ctx: Context[None], step: Step) -> None:
        await step.wait_for_signal("hold", signal="taken", timeout="30d")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        def fail(error: Exception) -> None:
            raise error

        caught = []
        for call in (
            lambda: step.run("unserialisable", lambda: {1}),
            lambda: step.run("foreign", fail, NonRetriable("no")),
            lambda: step.run("own", fail, InvalidInput("bad")),
            lambda: step.wait_for_signal("conflict", signal="taken", timeout="1d"),
            lambda: step.sleep("negative", -1),
        ):
            try:
                await call()
            except Exception as error:
                caught.append((type(error), str(error)))
        seen.append(caught)
        await step.sleep("nap", "1h")
        return "done"

    async with harness(app, database_url=database_url) as h:
        await h.start(holder)
        await h.idle()
        run = await h.start(f)
        await h.advance("2h")
        assert await run.result(5) == "done"
    first, replayed = seen
    assert replayed == first
    assert [kind for kind, _ in first] == [
        Unserialisable,
        StepError,
        InvalidInput,
        SignalConflict,
        InvalidInput,
    ]


# 10 to 14


@pytest.mark.parametrize("retries", [0, 2, 4])
async def test_retries_n_is_n_plus_one_attempts_of_the_code_between_steps(
    sqlite_url: str, retries: int
) -> None:
    app, attempts = App("t"), []

    @app.function(retries=retries)
    async def f(ctx: Context[None], step: Step) -> None:
        await step.run("before", lambda: 1)
        attempts.append(ctx.attempt)
        raise ValueError("always")

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.advance("3d")
        assert (await failure_of(h, run.id)).name == "ValueError"
    # Before the step was committed the first attempt began.
    assert attempts == list(range(retries + 1))


async def test_attempts_of_the_code_are_counted_since_the_last_new_step(sqlite_url: str) -> None:
    app, entered = App("t"), 0

    @app.function(retries=1)
    async def f(ctx: Context[None], step: Step) -> str:
        nonlocal entered
        for n in range(3):
            await step.run("step", lambda: 1)
            if entered == n:
                entered += 1
                raise ValueError(n)
        return "done"

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.advance("1d")
        assert await run.result(5) == "done"
    assert entered == 3


async def test_a_retry_is_a_durable_timer_and_holds_nothing(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> int:
        def body() -> int:
            if step_info().attempt == 0:
                raise ValueError("once")
            return step_info().attempt

        return await step.run("flaky", body)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        assert await run.status() is RunStatus.SLEEPING
        await h.crash()
        await h.restart()
        await h.idle()
        assert await run.status() is RunStatus.SLEEPING
        await h.advance("1m")
        assert await run.result(5) == 1


async def test_step_error_has_the_originals_name_message_traceback_and_attributes(database_url: str) -> None:
    app, seen = App("t"), []

    class Declined(Exception):
        def __init__(self, code: int) -> None:
            super().__init__(f"declined: {code}")
            self.code = code
            self.secret = object()

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        def pay() -> None:
            raise Declined(7)

        try:
            await step.run("pay", pay, retry=0)
        except StepError as error:
            is_traced = "in pay" in (error.traceback or "")
            seen.append(
                (error.step_id, error.name, error.message, error.attempts, error.attributes, is_traced)
            )
        await step.sleep("nap", 1)
        return "done"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance(1)
        assert await run.result(5) == "done"
    assert seen == [("pay", "Declined", "declined: 7", 1, {"code": 7}, True)] * 2


async def test_a_sync_body_that_takes_too_long_has_its_result_dropped(sqlite_url: str) -> None:
    app, gate, ended = App("t"), threading.Event(), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        def slow() -> str:
            gate.wait(5)
            ended.append(1)
            return "too late"

        asyncio.get_running_loop().call_later(0.2, gate.set)
        try:
            return await step.run("slow", slow, timeout=0.05, retry=0)
        except StepError as error:
            return error.name

    async with harness(app, database_url=sqlite_url) as h:
        assert await (await h.start(f)).result(5) == "TimeoutError"
    assert ended == [1]


# what a function sees of it


async def test_the_runs_logger_is_silent_while_it_replays(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="agentflow.run")
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        ctx.logger.info("begin")
        await step.run("one", lambda: 1)
        ctx.logger.info("after one")
        await asyncio.gather(step.sleep("nap", 1), step.run("two", lambda: 2))
        ctx.logger.info("after nap")
        return "done"

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.advance(1)
        assert await run.result(5) == "done"
    told = [record.getMessage() for record in caplog.records if record.name == "agentflow.run"]
    assert told == ["begin", "after one", "after nap"]
