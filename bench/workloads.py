"""The workloads: each opens an App on an empty database, does its work, and gives one figure."""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from statistics import median, quantiles

from agentflow.app import App, AppWorker
from agentflow.context import Context
from agentflow.settings import Settings
from agentflow.step import Step


async def one(n: int) -> int:
    return n


async def sequence(database_url: str, *, steps: int) -> float:
    """Seconds a step, in one run whose steps come one after the other: the median over the run."""
    app = App("bench", database_url=database_url, settings=Settings(max_steps=steps + 1))
    took: list[float] = []

    @app.function
    async def run(ctx: Context[int], step: Step) -> int:
        for n in range(ctx.data):
            began = time.perf_counter()
            await step.run("step", one, n)
            took.append(time.perf_counter() - began)
        return ctx.data

    async with app.running():
        await (await app.start(run, steps)).result()
    return median(took)


async def throughput(database_url: str, *, runs: int, steps: int) -> float:
    """Steps a second, with many runs at once in one process."""
    app = App("bench", database_url=database_url)

    @app.function
    async def run(ctx: Context[int], step: Step) -> int:
        for n in range(ctx.data):
            await step.run("step", one, n)
        return ctx.data

    async with app.running(concurrency=runs):
        began = time.perf_counter()
        handles = await asyncio.gather(*[app.start(run, steps) for _ in range(runs)])
        await asyncio.gather(*[handle.result() for handle in handles])
        return runs * steps / (time.perf_counter() - began)


async def start_to_result(database_url: str, *, rounds: int) -> tuple[float, float]:
    """Seconds from the start of a one-step run to its result: p50 and p99."""
    app = App("bench", database_url=database_url)
    took = []

    @app.function
    async def run(ctx: Context[int], step: Step) -> int:
        return await step.run("step", one, ctx.data)

    async with app.running():
        for n in range(rounds):
            began = time.perf_counter()
            await (await app.start(run, n)).result()
            took.append(time.perf_counter() - began)
    return median(took), quantiles(took, n=100)[-1]


async def parked(database_url: str, *, few: int, many: int) -> tuple[float, float, float]:
    """Runs that wait: MB of growth from `few` to `many`, and seconds from a signal to the result (p50, p99)."""
    app = App("bench", database_url=database_url)

    @app.function
    async def run(ctx: Context[int], step: Step) -> int:
        await step.wait_for_signal("wait", signal=f"go-{ctx.data}", timeout="30d")
        return ctx.data

    worker = app.worker(concurrency=200)
    await worker.start()
    try:
        handles = []
        sizes = []
        for n in range(many):
            handles.append(await app.start(run, n))
            if n + 1 in (few, many):
                await _until_parked(worker)
                sizes.append(_resident_mb())
        took = []
        for n in range(0, many, max(1, many // 200)):
            began = time.perf_counter()
            await app.signal(f"go-{n}")
            assert await handles[n].result() == n
            took.append(time.perf_counter() - began)
    finally:
        await worker.stop()
    return sizes[1] - sizes[0], median(took), quantiles(took, n=100)[-1]


async def _until_parked(worker: AppWorker) -> None:
    while worker.running:
        await asyncio.sleep(0.01)
    gc.collect()


def _resident_mb() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1e6
