"""A run that only waits leaves memory, whatever its code is made of; nothing that unwinds is taken for its end."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agentflow.app import App
from agentflow.context import Context
from agentflow.engine import races
from agentflow.runs import RunStatus
from agentflow.step import Step
from agentflow.testing import harness


async def test_a_run_that_waits_is_gone_from_memory(sqlite_url: str) -> None:
    app, alive = App("t"), []

    class Local:
        pass

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        local = Local()
        alive.append(weakref.ref(local))
        await step.wait_for_signal("wait", signal="go", timeout="1d")
        return "done"

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.idle()
        gc.collect()
        assert [ref() for ref in alive] == [None]
        await h.signal("go")
        assert await run.result(5) == "done"


@pytest.mark.parametrize(
    "shape", ["nested", "group", "lock", "queue", "event", "semaphore", "wait", "generator"]
)
async def test_every_way_of_waiting_is_seen_through(sqlite_url: str, shape: str) -> None:
    app, entered = App("t"), 0

    async def nested(step: Step) -> Any:
        async def nest(depth: int) -> Any:
            if depth:
                return (await asyncio.gather(nest(depth - 1)))[0]
            return await step.wait_for_signal("w", signal="go", timeout="1d")

        return await nest(5)

    async def group(step: Step) -> Any:
        async with asyncio.TaskGroup() as one, asyncio.TaskGroup() as two:
            one.create_task(step.sleep("s", "1h"))
            task = two.create_task(step.wait_for_signal("w", signal="go", timeout="1d"))
        return task.result()

    async def lock(step: Step) -> Any:
        gate = asyncio.Lock()

        async def hold() -> Any:
            async with gate:
                return await step.wait_for_signal("w", signal="go", timeout="1d")

        async def queue_up() -> None:
            async with gate:
                pass

        return (await asyncio.gather(hold(), queue_up()))[0]

    async def queue(step: Step) -> Any:
        channel: asyncio.Queue[Any] = asyncio.Queue()

        async def produce() -> None:
            channel.put_nowait(await step.wait_for_signal("w", signal="go", timeout="1d"))

        task = asyncio.create_task(produce())
        got = await channel.get()
        await task
        return got

    async def event(step: Step) -> Any:
        happened, got = asyncio.Event(), []

        async def wait() -> None:
            got.append(await step.wait_for_signal("w", signal="go", timeout="1d"))
            happened.set()

        task = asyncio.create_task(wait())
        await happened.wait()
        await task
        return got[0]

    async def semaphore(step: Step) -> Any:
        limit = asyncio.Semaphore(1)

        async def limited(n: int) -> Any:
            async with limit:
                return n or await step.wait_for_signal("w", signal="go", timeout="1d")

        return (await asyncio.gather(*[limited(n) for n in range(4)]))[0]

    async def wait(step: Step) -> Any:
        tasks = [
            asyncio.create_task(step.wait_for_signal("w", signal="go", timeout="1d")),
            asyncio.create_task(step.sleep("s", "2d")),
        ]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()

    async def generator(step: Step) -> Any:
        channel: asyncio.Queue[Any] = asyncio.Queue()

        async def produce() -> None:
            channel.put_nowait(await step.wait_for_signal("w", signal="go", timeout="1d"))

        async def items() -> AsyncIterator[Any]:
            while True:
                yield await channel.get()

        async def relayed() -> AsyncIterator[Any]:
            async for item in items():
                yield item

        task = asyncio.create_task(produce())
        async for item in relayed():
            await task
            return item
        raise AssertionError("the generator has ended")

    shapes = {fn.__name__: fn for fn in (nested, group, lock, queue, event, semaphore, wait, generator)}

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        nonlocal entered
        entered += 1
        signal = await shapes[shape](step)
        return signal.data

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.idle()
        assert await run.status() is RunStatus.WAITING
        await h.signal("go", 7)
        await h.advance("1h")
        assert await run.result(5) == 7
        assert entered >= 2


async def test_what_unwinds_is_not_taken_for_the_runs_end(sqlite_url: str) -> None:
    app, log = App("t"), []

    @asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        log.append("open")
        try:
            yield
        finally:
            await asyncio.sleep(0)
            log.append("close")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        try:
            async with resource():
                results = await asyncio.gather(
                    step.wait_for_signal("w", signal="go", timeout="1d"), return_exceptions=True
                )
                # A suspension arrives here as a value; what is made of it is dropped.
                return [type(result).__name__ for result in results]
        finally:
            log.append("finally")

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.idle()
        assert await run.status() is RunStatus.WAITING
        assert log == ["open", "close", "finally"]
        await h.signal("go")
        assert await run.result(5) == ["Signal"]
        assert log == ["open", "close", "finally"] * 2


async def test_no_step_runs_while_a_run_unwinds(sqlite_url: str) -> None:
    app, calls = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        try:
            await step.sleep("nap", "1h")
        finally:
            await step.run("clean", lambda: calls.append(1))
        return "done"

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.idle()
        assert calls == []
        await h.advance("1h")
        assert await run.result(5) == "done"
        assert calls == [1]


async def test_a_run_that_swallows_its_suspension_is_ended_all_the_same(sqlite_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> int:
        for attempt in range(1000):
            try:
                await step.wait_for_signal("w", signal="go", timeout="1d")
                return attempt
            except BaseException:
                continue
        return -1

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.idle()
        assert await run.status() is RunStatus.WAITING
        await h.signal("go")
        assert await run.result(5) == 0


@pytest.mark.parametrize("where", ["function", "loser"])
async def test_code_that_catches_everything_for_ever_holds_up_neither_its_run_nor_the_process(
    sqlite_url: str, where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(races, "LONGEST_UNWINDING", 0.2)
    app = App("t")

    async def wait_whatever_comes(step: Step) -> str:
        while True:
            try:
                await step.wait_for_signal("w", signal="go", timeout="1d")
                return "went on"
            except BaseException:
                continue

    async def short(step: Step) -> str:
        await step.run("first", int)
        return "won"

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        if where == "function":
            return await wait_whatever_comes(step)
        _, value = await step.race("race", loser=wait_whatever_comes, short=short)
        await step.sleep("nap", "1h")
        return str(value)

    async def use() -> str:
        async with harness(app, database_url=sqlite_url) as h:
            run = await h.start(f)
            await h.idle()
            if where == "function":
                assert await run.status() is RunStatus.WAITING
                await h.signal("go")
            else:
                assert await run.status() is RunStatus.SLEEPING
                await h.advance("1h")
            return await run.result(5)

    # A loop of its own: `asyncio.run` waits for the tasks that are left, and has to end.
    assert await asyncio.wait_for(asyncio.to_thread(asyncio.run, use()), 50) == (
        "went on" if where == "function" else "won"
    )
    assert "it swallows its cancellation" in caplog.text


async def test_a_failing_sibling_withdraws_the_wait(database_url: str) -> None:
    app = App("t")

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> str:
        async def fail() -> None:
            await step.run("one", lambda: 1)
            raise ValueError("no")

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(step.wait_for_signal("w", signal="go", timeout="1d"))
                group.create_task(fail())
        except* ValueError:
            pass
        await step.sleep("nap", "1h")
        return "went on"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        assert [waiting.kind for waiting in (await app.runs.get(run.id)).waiting] == ["sleep"]
        await h.advance("1h")
        assert await run.result(5) == "went on"


async def test_first_completed_does_not_change_its_mind_on_replay(database_url: str) -> None:
    app, seen = App("t"), []
    slow, fast = asyncio.Event(), asyncio.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        async def first() -> str:
            await slow.wait()
            return "first"

        async def second() -> str:
            await fast.wait()
            return "second"

        tasks = {
            asyncio.create_task(step.run("a", first), name="a"),
            asyncio.create_task(step.run("b", second), name="b"),
        }
        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        seen.append([task.get_name() for task in done])
        slow.set()
        await asyncio.wait(rest)
        await step.sleep("nap", "1h")
        return seen[-1]

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        fast.set()
        await h.advance("1h")
        assert await run.result(5) == ["b"]
        assert seen == [["b"], ["b"]]


async def test_outcomes_are_handed_out_in_the_order_of_their_seq(sqlite_url: str) -> None:
    app, orders = App("t"), []
    gates = {name: asyncio.Event() for name in "abc"}

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        order: list[str] = []

        async def branch(name: str, opens: str | None) -> None:
            async def body() -> str:
                await gates[name].wait()
                return name

            order.append(await step.run(name, body))
            if opens is not None:
                gates[opens].set()

        await asyncio.gather(branch("a", None), branch("b", "a"), branch("c", "b"))
        await step.sleep("nap", "1h")
        orders.append(order)
        return "".join(order)

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        gates["c"].set()
        await h.advance("1h")
        assert await run.result(5) == "cba"


async def test_a_run_that_is_busy_elsewhere_stays_and_gets_its_timers_and_signals(database_url: str) -> None:
    app, gate = App("t"), asyncio.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        async def busy() -> str:
            await gate.wait()
            return "busy"

        async def wait() -> Any:
            signal = await step.wait_for_signal("w", signal="go", timeout="1d")
            gate.set()
            return signal and signal.data

        return await asyncio.gather(step.run("busy", busy), wait())

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        while not (await app.runs.get(run.id)).waiting:
            await asyncio.sleep(0.01)
        assert await run.status() is RunStatus.RUNNING
        await h.signal("go", 1)
        assert await run.result(10) == ["busy", 1]


async def test_a_local_timeout_around_a_wait_keeps_the_run_in_memory_and_fires(sqlite_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        try:
            async with asyncio.timeout(0.2):
                await step.wait_for_signal("w", signal="go", timeout="1d")
        except TimeoutError:
            return "local"
        return "durable"

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        assert await run.result(5) == "local"


async def test_a_crash_in_the_middle_repeats_only_what_was_not_committed(database_url: str) -> None:
    app, calls = App("t"), []
    hold, reached = asyncio.Event(), asyncio.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> int:
        total = 0
        for n in range(3):

            async def body(n: int = n) -> int:
                calls.append(n)
                if n == 2:
                    reached.set()
                    await hold.wait()
                return n

            total += await step.run("count", body)
        return total

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await reached.wait()
        await h.crash()
        hold.set()
        await h.restart()
        assert await run.result(30) == 3
        assert calls == [0, 1, 2, 2]
