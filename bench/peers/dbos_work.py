"""DBOS's side of the contest: async workflows and steps, its configuration as it comes."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from statistics import median

from dbos import DBOS, SetWorkflowID

from bench.talk import Figures, Work, Workloads, answer, resident_mb, rounds, spread, wait_to_be_killed


@DBOS.step()
async def one(n: int) -> int:
    return n


async def sequence(work: Work) -> Figures:
    took: list[float] = []

    @DBOS.workflow()
    async def run(steps: int) -> int:
        for n in range(steps):
            began = time.perf_counter()
            await one(n)
            took.append(time.perf_counter() - began)
        return steps

    launch(work)
    await (await DBOS.start_workflow_async(run, work.sizes["steps"])).get_result()
    return {"step": median(took)}


async def throughput(work: Work) -> Figures:
    runs, steps = work.sizes["runs"], work.sizes["steps_a_run"]

    @DBOS.workflow()
    async def run(steps: int) -> int:
        for n in range(steps):
            await one(n)
        return steps

    launch(work)
    began = time.perf_counter()
    handles = await asyncio.gather(*[DBOS.start_workflow_async(run, steps) for _ in range(runs)])
    await asyncio.gather(*[handle.get_result() for handle in handles])
    return {"step": (time.perf_counter() - began) / (runs * steps)}


async def parallel(work: Work) -> Figures:
    @DBOS.workflow()
    async def run(branches: int) -> int:
        return len(await asyncio.gather(*[one(n) for n in range(branches)]))

    async def start_one(n: int) -> None:
        await (await DBOS.start_workflow_async(run, work.sizes["branches"])).get_result()

    launch(work)
    return {"run": median(await rounds(work, work.sizes["parallel_runs"], start_one))}


async def start(work: Work) -> Figures:
    @DBOS.workflow()
    async def run(n: int) -> int:
        return await one(n)

    async def start_one(n: int) -> None:
        await (await DBOS.start_workflow_async(run, n)).get_result()

    launch(work)
    return spread(await rounds(work, work.sizes["starts"], start_one))


async def signal(work: Work) -> Figures:
    """A waiting workflow stays in memory; a message wakes it."""
    went_on: dict[int, float] = {}

    @DBOS.workflow()
    async def run(n: int) -> int:
        await DBOS.recv_async("go", timeout_seconds=86400)
        went_on[n] = time.perf_counter()
        return n

    launch(work)
    few, many = work.sizes["parked_few"], work.sizes["parked_many"]
    handles = []
    sizes = []
    for n in range(many):
        with SetWorkflowID(f"run-{n}"):
            handles.append(await DBOS.start_workflow_async(run, n))
        if n + 1 in (few, many):
            await asyncio.sleep(1)  # until the last ones wait
            gc.collect()
            sizes.append(resident_mb())
    took = []

    async def signal_one(n: int) -> None:
        began = time.perf_counter()
        await DBOS.send_async(f"run-{n}", "go", "go")
        assert await handles[n].get_result() == n
        took.append(went_on[n] - began)

    await rounds(work, work.sizes["signals"], signal_one)
    return {**spread(took), "parked": max(0.0, sizes[1] - sizes[0]) * 1000 / (many - few)}


async def replay(work: Work) -> Figures:
    """Recovered at launch: from the entry of the workflow until it stands where it stood. No message is in it."""
    reached: list[float] = []
    stands = asyncio.Event()

    @DBOS.workflow()
    async def run(steps: int) -> int:
        reached.append(time.perf_counter())
        for n in range(steps):
            await one(n)
        reached.append(time.perf_counter())
        stands.set()
        await DBOS.recv_async("go", timeout_seconds=86400)
        return steps

    launch(work)
    if work.half:
        await DBOS.start_workflow_async(run, work.sizes["steps"])
        await stands.wait()
        await asyncio.sleep(0.3)
        await wait_to_be_killed()
    await stands.wait()
    return {"resume": reached[1] - reached[0]}


async def recovery(work: Work) -> Figures:
    runs, steps = work.sizes["recovered"], work.sizes["steps_a_run"]
    halves = 0

    @DBOS.step()
    async def hang() -> None:
        nonlocal halves
        halves += work.half
        while work.half:
            await asyncio.sleep(60)

    @DBOS.workflow()
    async def run(n: int) -> int:
        for step in range(steps):
            await one(step)
            if step == steps // 2:
                await hang()
        return n

    began = time.perf_counter()
    launch(work)
    if work.half:
        for n in range(runs):
            with SetWorkflowID(f"run-{n}"):
                await DBOS.start_workflow_async(run, n)
        while halves < runs:
            await asyncio.sleep(0.01)
        await wait_to_be_killed()
    # Asked for those that succeeded: between launch and its entry a recovered workflow is not pending either.
    while len(await DBOS.list_workflows_async(status="SUCCESS", load_input=False, load_output=False)) < runs:
        await asyncio.sleep(0.05)
    return {"all": time.perf_counter() - began}


def launch(work: Work) -> None:
    logging.disable(logging.WARNING)
    DBOS(
        config={
            "name": "bench",
            "system_database_url": work.url,
            "run_admin_server": False,
            "application_version": "1",
        }
    )
    DBOS.launch()


WORKLOADS: Workloads = {
    work.__name__: work for work in (sequence, throughput, parallel, start, signal, replay, recovery)
}

if __name__ == "__main__":
    answer(WORKLOADS)
