"""What blocked runs cost others: `python -m bench.lanes [--blocked 100000] [--url postgresql://...]`.

With so many runs blocked on one concurrency key, a claim of another key beside an empty table; and with so many queued
runs of an app that has no worker, a claim of another app. On SQLite, and on PostgreSQL where a URL of an empty database
is given.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from agentflow.settings import Settings
from agentflow.store.opening import open_store
from agentflow.store.operation_types import Finish, StartRun
from agentflow.store.protocol import Store
from agentflow.store.stored_types import Admission, GateLimits, Gates, NewRun, RunKey, Status

ROUNDS = 300
GATES = {"work": GateLimits(slots=(1,))}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.lanes", description=__doc__)
    parser.add_argument("--blocked", type=int, default=100_000)
    parser.add_argument("--url")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentflow-bench-") as folder:
        urls = [f"sqlite:///{Path(folder) / 'lanes.db'}", *([arguments.url] if arguments.url else [])]
        for url in urls:
            asyncio.run(measure(url, blocked=arguments.blocked))


async def measure(url: str, *, blocked: int) -> None:
    store = open_store(url, settings=Settings(database_url=url, durability="process"))
    await store.open(migrate=True)
    name = url.partition(":")[0]
    try:
        worker = await store.register_worker("bench", lease_seconds=600, version="")
        empty = await claim_another_key(store, worker)
        await fill(store, blocked, app="bench", key="held")
        while await store.next_ready_at(app="bench", functions=["work"]) is not None:
            await store.claim(
                "bench", epoch=worker, app="bench", functions=["work"], limit=100, now=2, gates=GATES
            )
        full = await claim_another_key(store, worker)
        print(
            f"{name}: a claim with nothing blocked {empty * 1e6:7.0f} µs, with {blocked} {full * 1e6:7.0f} µs: "
            f"{full / empty:.2f} x"
        )
        await fill(store, blocked, app="silent", key="other")
        beside = await claim_another_key(store, worker)
        print(
            f"{name}: and with {blocked} queued runs of an app without a worker {beside * 1e6:7.0f} µs: "
            f"{beside / empty:.2f} x"
        )
    finally:
        await store.close()


async def fill(store: Store, runs: int, *, app: str, key: str) -> None:
    for first in range(0, runs, 1000):
        await asyncio.gather(
            *[
                store.submit(StartRun(new_run(f"run_{app}_{n}", app=app, key=key), 1))
                for n in range(first, min(first + 1000, runs))
            ]
        )


async def claim_another_key(store: Store, epoch: int) -> float:
    """The median time of a claim that gets one run."""
    took = []
    for n in range(ROUNDS):
        run_id = f"run_{time.monotonic_ns()}"
        await store.submit(StartRun(new_run(run_id, app="bench", key=f"free-{n}"), 1))
        began = time.perf_counter()
        [claimed] = await store.claim(
            "bench", epoch=epoch, app="bench", functions=["work"], limit=10, now=2, gates=GATES
        )
        took.append(time.perf_counter() - began)
        key = RunKey(claimed.key.run_id, "bench", claimed.key.epoch)
        await store.submit(Finish(key, Status.COMPLETED, "null", None, None, 3, slots=claimed.slots))
    return statistics.median(took)


def new_run(run_id: str, *, app: str, key: str) -> NewRun:
    admission = Admission(Gates(slots=(f"slot:{app}/work:{key}",)))
    return NewRun(run_id, app, "work", "null", 1, 1, run_id, admission=admission)


if __name__ == "__main__":
    main()
