"""Attempts to break the engine: cancelled, crashed or stopped where it hurts, called from where it should not be."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, field_serializer, field_validator

from agentflow.app import App
from agentflow.clock import SystemClock
from agentflow.context import Context
from agentflow.engine.claims import Claims
from agentflow.engine.leases import HeartbeatThread
from agentflow.engine.tasks import has_local_timer, install_task_factory
from agentflow.engine.wakeups import Wakeups
from agentflow.engine.worker import Worker
from agentflow.errors import AgentflowError, NonRetriable, RunCancelled, RunFailed, StepError
from agentflow.events import Event
from agentflow.functions import Registry
from agentflow.runs import RunStatus, StepRecord
from agentflow.settings import Settings
from agentflow.starts import new_event
from agentflow.step import Step
from agentflow.store.operation_types import ResolveWait, SendEvents
from agentflow.store.outcome_types import Fenced
from agentflow.testing import Harness, harness


def worker_of(h: Harness) -> Worker:
    assert h._worker is not None
    return h._worker


async def steps_of(app: App, run_id: str) -> list[StepRecord]:
    return (await app.runs.steps(run_id)).data


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


# --------------------------------------------------------------- what a run inherits, and from where


async def test_a_run_started_inside_a_body_is_no_part_of_that_body(database_url: str) -> None:
    app = App("t")

    @app.function
    async def child(ctx: Context[None], step: Step) -> int:
        return await step.run("one", lambda: 1)

    @app.function
    async def parent(ctx: Context[None], step: Step) -> str:
        async def start() -> str:
            return (await app.start(child)).id

        return await step.run("start", start)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        child_id = await run.result(5)
        assert await app.runs.handle(child_id).result(5) == 1


async def test_who_waits_for_a_run_does_not_depend_on_the_run_that_waited_first(sqlite_url: str) -> None:
    app = App("t")

    @app.function
    async def slow(ctx: Context[None], step: Step) -> None:
        await step.wait_for_signal("go", signal="go", timeout="1d")

    @app.function
    async def impatient(ctx: Context[str], step: Step) -> str:
        try:
            await app.runs.handle(ctx.data).result(timeout=0.5)
        except TimeoutError:
            return "gave up"
        return "no"

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(slow)
        await h.idle()
        first = await h.start(impatient, run.id)
        await until(lambda: app.client.watchers._waiting.get(run.id))
        other = asyncio.create_task(app.runs.handle(run.id).result(5))
        assert await first.result(5) == "gave up"
        await app.runs.cancel(run.id)
        with pytest.raises(RunCancelled):
            await other


async def test_closing_the_app_ends_the_wait_for_a_result(sqlite_url: str) -> None:
    app = App("t", database_url=sqlite_url)

    @app.function
    async def slow(ctx: Context[None], step: Step) -> None:
        await step.wait_for_signal("go", signal="go", timeout="1d")

    async with app.running():
        run = await app.start(slow)
        waiting = asyncio.create_task(run.result())
        await until(lambda: app.client.watchers._waiting)
    with pytest.raises(AgentflowError, match="closed"):
        async with asyncio.timeout(5):
            await waiting


async def test_two_loops_in_two_threads_do_not_mix_up_their_tasks() -> None:
    """While one thread is about to make a branch, a task of another loop is nobody's branch."""
    from agentflow.engine.tasks import Branch, _branches, start_task

    class Owner:
        def __init__(self) -> None:
            self.branches: list[Branch] = []

        def add_branch(self, branch: Branch) -> None:
            self.branches.append(branch)

        def drop_branch(self, branch: Branch) -> None: ...

    making, other_is_done = threading.Event(), threading.Event()
    mixed_up: list[Any] = []

    def slow_factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any) -> asyncio.Task[Any]:
        making.set()
        assert other_is_done.wait(5)
        return asyncio.Task(coroutine, loop=loop, **kwargs)

    def in_other_thread() -> None:
        async def nothing() -> None:
            await asyncio.sleep(0)

        async def main() -> None:
            install_task_factory(asyncio.get_running_loop())
            assert making.wait(5)
            task = asyncio.create_task(nothing())
            mixed_up.extend(found for found in (task, asyncio.current_task()) if found in _branches)
            other_is_done.set()
            await task

        asyncio.run(main())

    thread = threading.Thread(target=in_other_thread)
    thread.start()
    owner = Owner()

    async def child() -> str:
        return "child"

    async def parent() -> str:
        return await asyncio.create_task(child())

    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(slow_factory)  # type: ignore[arg-type]
    install_task_factory(loop)
    try:
        assert await start_task(loop, parent(), branch=Branch(owner), name="parent") == "child"
    finally:
        loop.set_task_factory(before)
        other_is_done.set()
        thread.join()
    assert mixed_up == []
    assert [branch.path for branch in owner.branches] == ["", "0"]


# -------------------------------------------------------------------------------- a run that is over


async def test_a_step_made_before_and_awaited_while_the_run_unwinds_does_not_run(sqlite_url: str) -> None:
    app, calls, entered = App("t"), [], 0

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        nonlocal entered
        entered += 1
        body = step.run("body", lambda: calls.append(entered))
        wait = step.invoke("child", child)
        try:
            await step.sleep("nap", "1h")
        finally:
            await asyncio.gather(body, wait, return_exceptions=True)
        return "done"

    @app.function
    async def child(ctx: Context[None], step: Step) -> None:
        calls.append("child")

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.idle()
        assert calls == []
        assert len((await app.runs.list()).data) == 1
        await h.advance("1h")
        assert await run.result(5) == "done"
        assert sorted(calls, key=str) == [2, "child"]


async def test_what_a_function_leaves_behind_when_it_returns_is_cancelled_and_writes_nothing(
    database_url: str,
) -> None:
    app, log = App("t"), []
    left: list[asyncio.Task[Any]] = []

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        started = asyncio.Event()

        async def body() -> None:
            started.set()
            try:
                await asyncio.sleep(60)
            finally:
                log.append("body ended")

        async def background() -> None:
            await step.run("first", body)
            await step.run("second", lambda: log.append("second"))

        left.append(asyncio.create_task(background()))
        left.append(asyncio.create_task(step.wait_for_signal("w", signal="go", timeout="1d")))
        await started.wait()
        return "done"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        assert await run.result(5) == "done"
        assert log == ["body ended"]
        assert all(task.done() for task in left)
        assert [step.key for step in await steps_of(app, run.id)] == []
        await h.idle()
        assert (await app.runs.get(run.id)).waiting == []


async def test_a_clean_up_that_hangs_holds_its_run_up_for_a_limited_time(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentflow.engine.unwinding.LONGEST_UNWINDING", 0.3)
    app, entered = App("t"), 0

    @app.function
    async def f(ctx: Context[None], step: Step) -> int:
        nonlocal entered
        entered += 1
        try:
            await step.wait_for_signal("w", signal="go", timeout="1d")
        finally:
            if entered == 1:
                await asyncio.sleep(3600)
        return entered

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await until(lambda: entered == 1)
        async with asyncio.timeout(5):
            await h.idle()
        await h.signal("go")
        assert await run.result(5) == 2


# ------------------------------------------------------------------------- cancelled at a bad moment


async def test_a_wait_cancelled_while_it_is_registered_is_withdrawn(database_url: str) -> None:
    app = App("t")

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> Any:
        async def fail() -> None:
            raise ValueError("at once")

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(step.wait_for_signal("first", signal="go", timeout="1d"))
                group.create_task(fail())
        except* ValueError:
            pass
        signal = await step.wait_for_signal("second", signal="go", timeout="1d")
        assert signal is not None
        return signal.data

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        assert [waiting.step_key for waiting in (await app.runs.get(run.id)).waiting] == ["second"]
        await h.signal("go", 7)
        assert await run.result(5) == 7


@pytest.mark.parametrize("turns", range(8))
async def test_a_start_whose_caller_is_cancelled_happens_wholly_or_not_at_all(
    sqlite_url: str, turns: int
) -> None:
    app, calls = App("t"), []

    @app.function
    async def f(ctx: Context[int], step: Step) -> None:
        await step.run("body", lambda: calls.append(ctx.data))

    async with harness(app, database_url=sqlite_url) as h:
        starting = asyncio.create_task(app.start(f, turns))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        await app.start(f, -1)  # behind it in the queue
        await h.idle()
        statuses = [run.status for run in (await app.runs.list()).data]
        assert set(statuses) == {RunStatus.COMPLETED}
        assert len(calls) == len(statuses)


async def test_a_local_timeout_cancels_a_body_and_the_run_goes_on(database_url: str) -> None:
    app, log = App("t"), []

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> str:
        async def slow() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                log.append("cancelled")
                raise

        try:
            async with asyncio.timeout(0.1):
                await step.run("slow", slow)
        except TimeoutError:
            return await step.run("fallback", lambda: "fell back")
        return "no"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        assert await run.result(5) == "fell back"
        assert log == ["cancelled"]
        assert [step.key for step in await steps_of(app, run.id)] == ["fallback"]


async def test_a_cancellation_that_escapes_is_the_functions_failure_and_not_a_suspension(
    sqlite_url: str,
) -> None:
    app = App("t")

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> None:
        await step.run("one", lambda: 1)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await step.sleep("nap", "1h")

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        with pytest.raises(RunFailed, match="CancelledError"):
            await run.result(5)


async def test_a_timeout_of_the_loop_in_a_parent_task_keeps_the_run_in_memory(sqlite_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        async def deep() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(step.wait_for_signal("w", signal="go", timeout="1d"))
                group.create_task(step.sleep("s", "2d"))

        try:
            async with asyncio.timeout(None) as limit:
                limit.reschedule(asyncio.get_running_loop().time() + 0.2)
                await deep()
        except TimeoutError:
            return "local"
        return "durable"

    async with harness(app, database_url=sqlite_url) as h:
        assert await (await h.start(f)).result(5) == "local"


@pytest.mark.parametrize("limit", [50, None])
async def test_a_local_timeout_is_seen_in_a_loop_that_does_not_show_its_timers(limit: int | None) -> None:
    class Loop:
        """As uvloop's."""

    async def deep() -> None:
        async with asyncio.timeout(limit):
            await asyncio.Event().wait()

    task = asyncio.create_task(deep())
    await asyncio.sleep(0)
    assert has_local_timer(Loop(), {task}) is (limit is not None)  # type: ignore[arg-type]
    task.cancel()
    await asyncio.wait([task])


async def test_a_task_that_is_to_be_cancelled_later_keeps_the_run_in_memory(sqlite_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        task = asyncio.create_task(step.wait_for_signal("w", signal="go", timeout="1d"))
        asyncio.get_running_loop().call_later(0.2, task.cancel)
        await asyncio.wait([task])
        return "cancelled" if task.cancelled() else "no"

    async with harness(app, database_url=sqlite_url) as h:
        assert await (await h.start(f)).result(5) == "cancelled"


async def test_a_timeout_without_a_time_does_not_keep_a_run_in_memory(sqlite_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        async with asyncio.timeout(None):
            await step.wait_for_signal("w", signal="go", timeout="1d")
        return "done"

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        async with asyncio.timeout(5):
            await h.idle()
        assert await run.status() is RunStatus.WAITING
        await h.signal("go")
        assert await run.result(5) == "done"


# ----------------------------------------------------------------------------- seq, and lost answers


async def test_no_two_steps_have_the_same_seq_however_much_is_delivered_at_once(database_url: str) -> None:
    """Waits whose registration is not yet acknowledged are adopted too."""
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> int:
        async def wait(n: int) -> Any:
            return await step.wait_for_event(f"w{n}", event="happened", timeout="1d")

        async def meddle() -> None:
            client = app.client
            event = new_event(
                Event(name="happened"), now=client.clock.now(), functions=[], settings=client.settings
            )
            client.store.submit(SendEvents((event,), client.clock.now()))
            worker_of(h)._look_into_mail(ctx.run_id)
            for n in range(5):
                await step.run(f"after{n}", lambda: 1)

        found = await asyncio.gather(*[wait(n) for n in range(8)], meddle())
        await step.sleep("nap", "1h")
        return sum(event is not None for event in found)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        assert await run.result(5) == 8
        seqs = [step.seq for step in await steps_of(app, run.id)]
        assert len(seqs) == 14
        assert len(set(seqs)) == 14


async def test_a_detached_invoke_whose_worker_died_halfway_is_not_waited_for(sqlite_url: str) -> None:
    app = App("t")
    lost: list[asyncio.Future[Any]] = []

    @app.function
    async def child(ctx: Context[None], step: Step) -> None:
        await step.wait_for_signal("never", signal="never", timeout="300d")

    @app.function
    async def parent(ctx: Context[None], step: Step) -> str:
        return await step.invoke("call", child, detach=True)

    async with harness(app, database_url=sqlite_url) as h:
        store = app.client.store
        submit = store.submit

        def lose_the_end(operation: Any) -> asyncio.Future[Any]:
            if isinstance(operation, ResolveWait):
                lost.append(asyncio.get_running_loop().create_future())
                return lost[-1]
            return submit(operation)

        store.submit = lose_the_end  # type: ignore[method-assign]
        worker = worker_of(h)
        run = await h.start(parent)
        await until(lambda: lost)
        crashing = asyncio.create_task(h.crash())
        await until(lambda: worker.is_stopping)
        lost[0].set_result(Fenced("the worker is gone"))
        await crashing
        store.submit = submit  # type: ignore[method-assign]
        await h.restart()
        child_id = await run.result(5)
        await h.idle()
        assert await app.runs.handle(child_id).status() is RunStatus.WAITING


# --------------------------------------------------------------------- errors from unexpected places


class Loud(BaseModel):
    text: str

    @field_serializer("text")
    def write(self, text: str) -> str:
        raise KeyError(text)


class Picky(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def read(cls, text: str) -> str:
        return {"good": text}[text]


async def test_an_output_that_breaks_its_own_serializer_fails_the_run(sqlite_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Loud:
        return Loud(text="oh")

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        with pytest.raises(RunFailed, match="oh"):
            await run.result(3)


async def test_an_input_that_breaks_its_own_validator_fails_the_run(sqlite_url: str) -> None:
    app = App("t")

    @app.function(on="picky")
    async def f(ctx: Context[Picky], step: Step) -> str:
        return ctx.data.text

    async with harness(app, database_url=sqlite_url) as h:
        [event_id] = await h.send({"name": "picky", "data": {"text": "bad"}})
        await h.idle()
        [run] = (await app.events.runs(event_id)).data
        with pytest.raises(RunFailed, match="InvalidInput"):
            await app.runs.handle(run.id).result(3)


@pytest.mark.parametrize("how", ["async", "thread", "between"])
async def test_a_program_that_exits_in_a_step_does_not_take_the_worker_along(
    sqlite_url: str, how: str
) -> None:
    app = App("t")

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> str:
        async def leave() -> None:
            raise SystemExit(3)

        if how == "between":
            raise SystemExit(3)
        try:
            await step.run("leave", leave if how == "async" else lambda: exit(3))
        except StepError as error:
            return error.name
        return "no"

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        if how == "between":
            with pytest.raises(RunFailed, match="SystemExit"):
                await run.result(5)
        else:
            assert await run.result(5) == "SystemExit"


@pytest.mark.parametrize("where", ["function", "body"])
async def test_a_group_of_errors_none_of_which_may_be_retried_is_not_retried(
    sqlite_url: str, where: str
) -> None:
    app, calls = App("t"), 0

    async def work() -> None:
        nonlocal calls
        calls += 1

        async def fail() -> None:
            raise NonRetriable("never")

        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        await (work() if where == "function" else step.run("work", work))

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.advance("1d")
        with pytest.raises(RunFailed):
            await run.result(5)
        assert calls == 1


async def test_a_step_called_in_the_thread_of_a_body_fails_the_run(sqlite_url: str) -> None:
    app, threads = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        def body() -> str:
            try:
                step.run("inner", lambda: 1)
            except AgentflowError:
                threads.append(threading.current_thread())
            return "caught"

        return await step.run("outer", body)

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        with pytest.raises(RunFailed, match="NestedStep"):
            await run.result(5)
        assert threads != [threading.main_thread()]


async def test_what_a_thread_raises_after_its_step_was_cancelled_is_nobodys_business(sqlite_url: str) -> None:
    app, gate, unheard, loop = App("t"), threading.Event(), [], asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: unheard.append(context))

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> str:
        def body() -> None:
            gate.wait(5)
            raise ValueError("late")

        try:
            async with asyncio.timeout(0.05):
                await step.run("body", body)
        except TimeoutError:
            return "went on"
        return "no"

    async with harness(app, database_url=sqlite_url) as h:
        assert await (await h.start(f)).result(5) == "went on"
        gate.set()
    await asyncio.sleep(0.05)
    gc.collect()
    loop.set_exception_handler(before)
    assert unheard == []


async def test_a_sync_body_that_timed_out_before_it_had_a_thread_is_not_called_later(sqlite_url: str) -> None:
    app, calls, gate = App("t", settings=Settings(concurrency=1)), [], threading.Event()

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> str:
        async def queued() -> str:
            try:
                await step.run("queued", lambda: calls.append(1), timeout=0.1)
            except StepError as error:
                return error.name
            finally:
                gate.set()
            return "no"

        _, told = await asyncio.gather(step.run("hog", lambda: gate.wait(5)), queued())
        return told

    async with harness(app, database_url=sqlite_url) as h:
        assert await (await h.start(f)).result(5) == "TimeoutError"
        assert calls == []


async def test_a_step_called_outside_of_the_runs_tasks_is_refused(sqlite_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[str]:
        def call() -> str:
            try:
                step.run("from a thread", lambda: 1)
            except Exception as error:
                return type(error).__name__
            return "no"

        called: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: called.set_result(call()))
        return [await asyncio.to_thread(call), await called]

    async with harness(app, database_url=sqlite_url) as h:
        assert await (await h.start(f)).result(5) == ["ConfigurationError"] * 2


# ------------------------------------------------------------------------------- a worker that stops


async def test_a_worker_that_stops_lets_a_body_end_whose_siblings_want_new_ones(database_url: str) -> None:
    app, calls = App("t"), []
    started, gate, first = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        async def long() -> str:
            calls.append("long")
            started.set()
            await gate.wait()
            return "long"

        async def short() -> str:
            calls.append("short")
            await first.wait()
            return "short"

        async def chain() -> list[Any]:
            return [await step.run("one", short), await step.run("two", short)]

        return await asyncio.gather(step.run("long", long), chain(), step.sleep("nap", "1h"))

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await started.wait()
        worker = worker_of(h)
        stopping = asyncio.create_task(worker.stop())
        await until(lambda: worker.is_stopping)
        first.set()
        while [step.key for step in await steps_of(app, run.id) if step.status == "completed"] != ["one@1"]:
            await asyncio.sleep(0.005)
        assert not stopping.done()
        gate.set()
        async with asyncio.timeout(3):
            await stopping
        assert calls == ["long", "short"]
        assert {step.key for step in await steps_of(app, run.id) if step.status == "completed"} == {
            "long",
            "one@1",
        }
        await h.restart()
        await h.advance("1h")
        assert await run.result(5) == ["long", ["short", "short"], None]
        assert calls == ["long", "short", "short"]


@pytest.mark.parametrize("fault", ["raises", "hangs"])
async def test_a_worker_stops_although_the_database_is_away(
    sqlite_url: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> None: ...

    async with harness(app, database_url=sqlite_url) as h:
        worker = worker_of(h)
        heartbeat = worker._heartbeat
        assert heartbeat is not None

        async def retire(worker_id: str) -> None:
            if fault == "raises":
                raise OSError("away")
            await asyncio.Event().wait()

        with monkeypatch.context() as patched:
            patched.setattr(app.client.store, "retire_worker", retire)
            async with asyncio.timeout(8):
                await worker.stop()
                await worker.stop()
        assert not heartbeat._thread.is_alive()


async def test_a_worker_may_be_stopped_twice_at_once(sqlite_url: str) -> None:
    app, gate, started = App("t"), asyncio.Event(), asyncio.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        async def body() -> str:
            started.set()
            await gate.wait()
            return "done"

        return await step.run("body", body)

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await started.wait()
        worker = worker_of(h)
        stopping = [asyncio.create_task(worker.stop()) for _ in range(2)]
        await until(lambda: worker.is_stopping)
        gate.set()
        await asyncio.gather(*stopping)
        assert await run.result(5) == "done"


async def test_a_worker_that_stops_under_load_leaves_every_run_to_the_next_one(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[int], step: Step) -> int:
        total = 0
        for n in range(4):
            total += await step.run("add", lambda n=n: n)
            if n == 1:
                await step.sleep("nap", 0.05)
        return total

    async with harness(app, database_url=database_url, clock="system") as h:
        runs = []
        for _ in range(4):
            runs.extend(await asyncio.gather(*[h.start(f, n) for n in range(10)]))
            async with asyncio.timeout(5):
                await h.restart()
        assert [await run.result(20) for run in runs] == [6] * 40


# --------------------------------------------------------------------------------- leases and claims


class Counting:
    """A store whose worker has lost its lease: there are due runs, and none is ever got."""

    def __init__(self) -> None:
        self.claims = 0

    async def claim(self, worker_id: str, **options: Any) -> list[Any]:
        self.claims += 1
        return []

    async def next_ready_at(self, **options: Any) -> int:
        return 0


async def test_runs_that_are_due_and_cannot_be_claimed_do_not_make_the_loop_spin() -> None:
    store = Counting()
    claims = Claims(
        store,  # type: ignore[arg-type]
        SystemClock(),
        Registry("t"),
        Wakeups(on_ready=lambda _: False, on_mail=lambda _: None, on_any=lambda: None),
        app="t",
        worker=lambda: ("w", 1),
        room=lambda: 5,
        on_claimed=lambda _: None,
        rng=random.Random(1),
        gates={},
    )
    loop = asyncio.create_task(claims.run())
    await asyncio.sleep(0.3)
    loop.cancel()
    await asyncio.wait([loop])
    assert 1 <= store.claims < 20


class Later:
    """A store with a run that is due three milliseconds after it was looked for: another process's clock is ahead."""

    def __init__(self, clock: VirtualTime) -> None:
        self.clock = clock
        self.due = 0
        self.claimed = asyncio.Event()

    async def claim(self, worker_id: str, *, now: int, **options: Any) -> list[Any]:
        if self.due and now >= self.due:
            self.claimed.set()
        return []

    async def next_ready_at(self, **options: Any) -> int:
        self.due = self.due or self.clock.micros + 3_000
        self.clock.micros = self.due  # it has come meanwhile
        return self.due


class VirtualTime:
    micros = 1_000_000

    def now(self) -> int:
        return self.micros


async def test_what_becomes_due_while_it_is_asked_for_is_claimed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for pause in ("IN_VAIN_PAUSE", "SHORTEST_POLL", "LONGEST_POLL"):
        monkeypatch.setattr(f"agentflow.engine.claims.{pause}", 60.0)
    clock = VirtualTime()
    store = Later(clock)
    claims = Claims(
        store,  # type: ignore[arg-type]
        clock,
        Registry("t"),
        Wakeups(on_ready=lambda _: False, on_mail=lambda _: None, on_any=lambda: None),
        app="t",
        worker=lambda: ("w", 1),
        room=lambda: 5,
        on_claimed=lambda _: None,
        rng=random.Random(1),
        gates={},
    )
    loop = asyncio.create_task(claims.run())
    await asyncio.wait_for(store.claimed.wait(), 5)
    loop.cancel()
    await asyncio.wait([loop])


class StuckHeartbeat:
    """A database that does not answer."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def heartbeat(self) -> StuckHeartbeat:
        return self

    def renew(self, worker_id: str, epoch: int, lease_seconds: float) -> bool:
        self.gate.wait(10)
        raise OSError("no answer")

    def close(self) -> None: ...


async def test_a_worker_fences_itself_in_time_although_the_database_does_not_answer() -> None:
    store, lost = StuckHeartbeat(), asyncio.Event()
    began = time.monotonic()
    heartbeat = HeartbeatThread(
        store,  # type: ignore[arg-type]
        "w",
        1,
        lease_seconds=2.0,
        hang_limit_seconds=60,
        on_lost=lost.set,
    )
    heartbeat.start()
    try:
        async with asyncio.timeout(5):
            await lost.wait()
        assert 1.5 < time.monotonic() - began < 2.0
    finally:
        heartbeat.stop()
        store.gate.set()
        await heartbeat.join()


async def test_a_worker_that_lost_its_lease_gets_one_new_one(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing to close the old row is no reason to take yet another lease: its heartbeat would live for ever."""
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> int:
        return await step.run("one", lambda: 1)

    async with harness(app, database_url=sqlite_url) as h:
        store, worker = app.client.store, worker_of(h)
        retire, fails = store.retire_worker, 1

        async def fail_once(worker_id: str) -> None:
            nonlocal fails
            if fails:
                fails -= 1
                raise OSError("away")
            await retire(worker_id)

        monkeypatch.setattr(store, "retire_worker", fail_once)
        old = worker.id
        worker._heartbeat.stop()  # type: ignore[union-attr]
        worker._lost_lease()
        await until(lambda: fails == 0)
        await asyncio.sleep(1.3)
        alive = [
            t.name for t in threading.enumerate() if t.name.startswith("agentflow-heartbeat") and t.is_alive()
        ]
        assert len([name for name in alive if old not in name]) == 1
        assert await (await h.start(f)).result(5) == 1


async def test_a_run_whose_claim_is_on_its_way_is_never_released_as_an_orphan(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a claim may take longer than any number of looks for orphans."""
    monkeypatch.setattr("agentflow.engine.worker.ORPHAN_INTERVAL_SECONDS", 0.02)
    app, entered, released = App("t"), [], []

    @app.function(on="go")
    async def f(ctx: Context[dict[str, Any]], step: Step) -> str:
        entered.append(ctx.run_id)
        return await step.run("one", lambda: "done")

    async with harness(app, database_url=database_url) as h:
        store = app.client.store
        claim, release = store.claim, store.release_orphans
        slow = True

        async def slow_claim(*args: Any, **options: Any) -> Any:
            nonlocal slow
            claimed = await claim(*args, **options)
            if claimed and slow:
                slow = False
                await asyncio.sleep(0.5)
            return claimed

        async def count(*args: Any, **options: Any) -> list[str]:
            found = await release(*args, **options)
            released.extend(found)
            return found

        monkeypatch.setattr(store, "claim", slow_claim)
        monkeypatch.setattr(store, "release_orphans", count)
        await h.restart()
        [event_id] = await h.send({"name": "go"})
        await until(lambda: entered)
        await h.idle()
        [run] = (await app.events.runs(event_id)).data
        assert run.status is RunStatus.COMPLETED
        assert released == []
        assert len(entered) == 1
