"""agentflow's side of the contest: each workload as a user would write it."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from statistics import median
from typing import Any

from agentflow import Agent, App, Context, ModelRequest, Settings, Step, ToolCall, tool
from agentflow.app import AppWorker
from agentflow.handles import RunHandle
from bench.talk import (
    Figures,
    Work,
    Workloads,
    answer,
    cpu_seconds,
    resident_mb,
    rounds,
    spread,
    wait_to_be_killed,
)

IDLE_SECONDS = 3.0


async def one(n: int) -> int:
    return n


async def sequence(work: Work) -> Figures:
    """One run whose steps come one after the other: the median step."""
    app = await open_app(work)
    took: list[float] = []

    @app.function
    async def run(ctx: Context[int], step: Step) -> int:
        for n in range(ctx.data):
            began = work.now()
            await step.run("step", one, n)
            took.append(work.now() - began)
        return ctx.data

    async with app.running():
        await settled()
        await (await app.start(run, work.sizes["steps"])).result()
    return {"step": median(took)}


async def throughput(work: Work) -> Figures:
    """Many runs at once in one process: seconds a step."""
    app = await open_app(work)
    runs, steps = work.sizes["runs"], work.sizes["steps_a_run"]

    @app.function
    async def run(ctx: Context[int], step: Step) -> int:
        for n in range(ctx.data):
            await step.run("step", one, n)
        return ctx.data

    async with app.running(concurrency=runs):
        await settled()
        began = work.now()
        handles = await asyncio.gather(*[app.start(run, steps) for _ in range(runs)])
        await asyncio.gather(*[handle.result() for handle in handles])
        return {"step": (work.now() - began) / (runs * steps)}


async def parallel(work: Work) -> Figures:
    """Runs, one after the other, of which each has many steps at once: the median from start to result."""
    app = await open_app(work)

    @app.function
    async def run(ctx: Context[int], step: Step) -> int:
        done = await asyncio.gather(*[step.run("step", one, n) for n in range(ctx.data)])
        return len(done)

    async def start_one(n: int) -> None:
        await (await app.start(run, work.sizes["branches"])).result()

    async with app.running():
        await settled()
        return {"run": median(await rounds(work, work.sizes["parallel_runs"], start_one))}


async def start(work: Work) -> Figures:
    """From the start of a run with one step to its result."""
    app = await open_app(work)

    @app.function
    async def run(ctx: Context[int], step: Step) -> int:
        return await step.run("step", one, ctx.data)

    async def start_one(n: int) -> None:
        await (await app.start(run, n)).result()

    async with app.running():
        await settled()
        return spread(await rounds(work, work.sizes["starts"], start_one))


async def signal(work: Work) -> Figures:
    """Runs that wait: what 1,000 of them hold in memory, and how long from a signal until the run goes on."""
    app = await open_app(work)
    went_on: dict[int, float] = {}

    @app.function
    async def run(ctx: Context[int], step: Step) -> int:
        await step.wait_for_signal("wait", signal=f"go-{ctx.data}", timeout="30d")
        went_on[ctx.data] = work.now()
        return ctx.data

    few, many = work.sizes["parked_few"], work.sizes["parked_many"]
    worker = app.worker(concurrency=200)
    await worker.start()
    try:
        handles = []
        sizes = []
        for n in range(many):
            handles.append(await app.start(run, n))
            if n + 1 in (few, many):
                await _until_parked(worker)
                sizes.append(resident_mb())
        took = []
        await settled()

        async def signal_one(n: int) -> None:
            began = work.now()
            await app.signal(f"go-{n}")
            assert await handles[n].result() == n
            took.append(went_on[n] - began)

        await rounds(work, work.sizes["signals"], signal_one)
    finally:
        await worker.stop()
    return {**spread(took), "parked": max(0.0, sizes[1] - sizes[0]) * 1000 / (many - few)}


async def between(work: Work) -> Figures:
    """Runs that wait in a worker of another process: from the signal until they go on there, and what it uses idle."""
    app = await open_app(work)

    @app.function
    async def run(ctx: Context[int], step: Step) -> float:
        await step.wait_for_signal("wait", signal=f"go-{ctx.data}", timeout="30d")
        return time.perf_counter()  # one clock for all processes of a machine

    if work.half:
        async with app.running():
            await wait_to_be_killed()
    took: list[float] = []

    async def signal_one(n: int) -> None:
        handle = await app.start(run, n)
        await _until(handle, "waiting")
        await asyncio.sleep(
            0.02
        )  # hints between processes are gathered while there are many: this one is alone
        began = time.perf_counter()
        await app.signal(f"go-{n}")
        took.append(await handle.result() - began)

    async with app, other_process(work) as pid:
        waiting = [await app.start(run, -1 - n) for n in range(work.sizes["parked_few"])]
        for handle in waiting:
            await _until(handle, "waiting")
        await rounds(work, work.sizes["signals"], signal_one)
        await asyncio.sleep(1)
        before = cpu_seconds(pid)
        await asyncio.sleep(IDLE_SECONDS)
        return {**spread(took), "idle": (cpu_seconds(pid) - before) / IDLE_SECONDS}


async def replay(work: Work) -> Figures:
    """A run that waits after many steps, in a new process: from the signal until its first new step runs."""
    app = await open_app(work)
    reached: list[float] = []

    async def new() -> None:
        reached.append(work.now())

    @app.function
    async def run(ctx: Context[int], step: Step) -> int:
        for n in range(ctx.data):
            await step.run("step", one, n)
        await step.wait_for_signal("wait", signal="go", timeout="30d")
        await step.run("new", new)
        return ctx.data

    worker = app.worker()
    await worker.start()
    try:
        if work.half:
            await app.start(run, work.sizes["steps"])
            await asyncio.sleep(0.1)
            await _until_parked(worker)
            await wait_to_be_killed()
        [parked] = (await app.runs.list()).data
        began = work.now()
        await app.signal("go")
        await app.runs.handle(parked.id).result()
    finally:
        await worker.stop()
    return {"resume": reached[0] - began}


async def recovery(work: Work) -> Figures:
    """Runs whose process was killed between two of their steps: from opening until all are done."""
    app = await open_app(work)
    runs, steps = work.sizes["recovered"], work.sizes["steps_a_run"]
    halves = 0

    async def hang() -> None:
        nonlocal halves
        halves += work.half
        while work.half:
            await asyncio.sleep(60)

    @app.function
    async def run(ctx: Context[int], step: Step) -> int:
        for n in range(steps):
            await step.run("step", one, n)
            if n == steps // 2:
                await step.run("hang", hang)
        return ctx.data

    began = work.now()
    async with app.running(concurrency=runs):
        if work.half:
            await asyncio.gather(*[app.start(run, n) for n in range(runs)])
            while halves < runs:
                await asyncio.sleep(0.01)
            await wait_to_be_killed()
        ids = await _every_run(app)
        assert len(ids) == runs
        await asyncio.gather(*[app.runs.handle(run_id).result() for run_id in ids])
        return {"all": work.now() - began}


async def agent(work: Work) -> Figures:
    """Runs of an agent, one after the other, whose model is a function: the median turn."""
    app = await open_app(work)
    turns = work.sizes["turns"]
    took: list[float] = []

    @tool
    async def look_up(number: int) -> str:
        """Look a number up."""
        return f"number {number} is fine"

    async def reply(request: ModelRequest) -> str | ToolCall:
        turn = len(request.messages) // 2 + 1
        return "done" if turn == turns else ToolCall(name="look_up", args={"number": turn})

    clerk = Agent("clerk", model=reply, instructions="You look numbers up.", tools=[look_up])

    @app.function
    async def run(ctx: Context[int], step: Step) -> str:
        began = work.now()
        result = await clerk.run(step, "Is everything fine?")
        took.append((work.now() - began) / turns)
        return result.output

    async def start_one(n: int) -> None:
        assert await (await app.start(run, n)).result() == "done"

    async with app.running():
        await settled()
        await rounds(work, work.sizes["agent_runs"], start_one)
    return {"turn": median(took)}


async def open_app(work: Work) -> App:
    app = App(
        "bench",
        database_url=work.url,
        settings=Settings(
            max_steps=work.sizes["steps"] + 10,
            durability="process" if work.database == "process" else "strict",
        ),
    )
    await app.migrate()
    return app


async def settled() -> None:
    """Wait for what a process does once, beside its work: compile its statements."""
    while any(thread.name == "agentflow-statements" for thread in threading.enumerate()):
        await asyncio.sleep(0.01)


@asynccontextmanager
async def other_process(work: Work) -> AsyncIterator[int]:
    """The half of a workload in a process beside this one; its id."""
    asked = json.dumps({**asdict(work), "half": True})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.ours", asked, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        yield process.pid
    finally:
        process.kill()
        await process.communicate()


async def _until(handle: RunHandle[Any], status: str) -> None:
    while await handle.status() != status:
        await asyncio.sleep(0.001)


async def _every_run(app: App) -> list[str]:
    page = await app.runs.list(limit=100)
    ids = [run.id for run in page.data]
    while page.has_more:
        page = await app.runs.list(limit=100, cursor=page.cursor)
        ids += [run.id for run in page.data]
    return ids


async def _until_parked(worker: AppWorker) -> None:
    while worker.running:
        await asyncio.sleep(0.01)
    gc.collect()


WORKLOADS: Workloads = {
    work.__name__: work
    for work in (sequence, throughput, parallel, start, signal, between, agent, replay, recovery)
}

if __name__ == "__main__":
    answer(WORKLOADS)
