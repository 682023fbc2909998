"""LangGraph's side of the contest: the functional API, `@entrypoint` and `@task`, with durability="sync"."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator
from statistics import median
from typing import Any

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.func import entrypoint, task
from langgraph.types import Command, interrupt
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from bench.talk import Figures, Work, Workloads, answer, resident_mb, rounds, spread, wait_to_be_killed


@task
async def one(n: int) -> int:
    return n


async def sequence(work: Work) -> Figures:
    took: list[float] = []

    async with open_saver(work) as saver:

        @entrypoint(checkpointer=saver)
        async def run(steps: int) -> int:
            for n in range(steps):
                began = time.perf_counter()
                await one(n)
                took.append(time.perf_counter() - began)
            return steps

        await invoke(run, work.sizes["steps"], "run")
    return {"step": median(took)}


async def throughput(work: Work) -> Figures:
    runs, steps = work.sizes["runs"], work.sizes["steps_a_run"]
    async with open_saver(work) as saver:

        @entrypoint(checkpointer=saver)
        async def run(steps: int) -> int:
            for n in range(steps):
                await one(n)
            return steps

        began = time.perf_counter()
        await asyncio.gather(*[invoke(run, steps, f"run-{n}") for n in range(runs)])
        return {"step": (time.perf_counter() - began) / (runs * steps)}


async def parallel(work: Work) -> Figures:
    async with open_saver(work) as saver:

        @entrypoint(checkpointer=saver)
        async def run(branches: int) -> int:
            return len(await asyncio.gather(*[one(n) for n in range(branches)]))

        async def start_one(n: int) -> None:
            await invoke(run, work.sizes["branches"], f"run-{n}")

        return {"run": median(await rounds(work, work.sizes["parallel_runs"], start_one))}


async def start(work: Work) -> Figures:
    async with open_saver(work) as saver:

        @entrypoint(checkpointer=saver)
        async def run(n: int) -> int:
            return await one(n)

        async def start_one(n: int) -> None:
            await invoke(run, n, f"run-{n}")

        return spread(await rounds(work, work.sizes["starts"], start_one))


async def signal(work: Work) -> Figures:
    """An interrupted run is nowhere but in the database; who resumes it runs it."""
    went_on: dict[int, float] = {}
    async with open_saver(work) as saver:

        @entrypoint(checkpointer=saver)
        async def run(n: int) -> int:
            interrupt("go?")
            went_on[n] = time.perf_counter()
            return n

        few, many = work.sizes["parked_few"], work.sizes["parked_many"]
        sizes = []
        for n in range(many):
            await invoke(run, n, f"run-{n}")
            if n + 1 in (few, many):
                gc.collect()
                sizes.append(resident_mb())
        took = []

        async def signal_one(n: int) -> None:
            began = time.perf_counter()
            assert await invoke(run, Command(resume="go"), f"run-{n}") == n
            took.append(went_on[n] - began)

        await rounds(work, work.sizes["signals"], signal_one)
    return {**spread(took), "parked": max(0.0, sizes[1] - sizes[0]) * 1000 / (many - few)}


async def replay(work: Work) -> Figures:
    """An interrupted run with many tasks, in a new process: from `Command(resume=)` until its first new task runs."""
    reached: list[float] = []

    @task
    async def new() -> None:
        reached.append(time.perf_counter())

    async with open_saver(work) as saver:

        @entrypoint(checkpointer=saver)
        async def run(steps: int) -> int:
            for n in range(steps):
                await one(n)
            interrupt("go?")
            await new()
            return steps

        if work.half:
            await invoke(run, work.sizes["steps"], "run")
            await wait_to_be_killed()
        began = time.perf_counter()
        assert await invoke(run, Command(resume="go"), "run") == work.sizes["steps"]
    return {"resume": reached[0] - began}


async def recovery(work: Work) -> Figures:
    """Nothing recovers by itself: the new process invokes every thread again, as its user would have to."""
    runs, steps = work.sizes["recovered"], work.sizes["steps_a_run"]
    halves = 0

    @task
    async def hang() -> None:
        nonlocal halves
        halves += work.half
        while work.half:
            await asyncio.sleep(60)

    began = time.perf_counter()
    async with open_saver(work) as saver:

        @entrypoint(checkpointer=saver)
        async def run(n: int) -> int:
            for step in range(steps):
                await one(step)
                if step == steps // 2:
                    await hang()
            return n

        if work.half:
            going = [asyncio.create_task(invoke(run, n, f"run-{n}")) for n in range(runs)]
            while halves < runs:
                await asyncio.sleep(0.01)
            await asyncio.sleep(1)  # results of tasks are saved behind the run's back
            await wait_to_be_killed()
            del going

        async def again(n: int) -> int:
            # A run that was killed before its first checkpoint was saved has to be given its input again.
            state = await run.aget_state({"configurable": {"thread_id": f"run-{n}"}})
            return await invoke(run, None if state.created_at else n, f"run-{n}")

        done = await asyncio.gather(*[again(n) for n in range(runs)])
        assert sorted(done) == list(range(runs))
        return {"all": time.perf_counter() - began}


async def invoke(run: Any, data: Any, thread: str) -> Any:
    return await run.ainvoke(data, {"configurable": {"thread_id": thread}}, durability="sync")


@contextlib.asynccontextmanager
async def open_saver(work: Work) -> AsyncIterator[Any]:
    if work.database != "postgresql":
        async with AsyncSqliteSaver.from_conn_string(work.url.removeprefix("sqlite:///")) as saver:
            await saver.setup()
            yield saver
        return
    arguments = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(work.url, min_size=1, max_size=20, kwargs=arguments, open=False) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield saver


WORKLOADS: Workloads = {
    work.__name__: work for work in (sequence, throughput, parallel, start, signal, replay, recovery)
}

if __name__ == "__main__":
    answer(WORKLOADS)
