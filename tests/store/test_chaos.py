"""Two stores on one database share runs while connections are cut and workers vanish: nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import random

import asyncpg
import pytest

from agentflow.store.operation_types import (
    Adopt,
    CommitStep,
    Finish,
    RegisterWait,
    SendSignal,
    StartRun,
    Suspend,
)
from agentflow.store.outcome_types import Delivered, Done, Exists, Fenced
from agentflow.store.stored_types import Status
from tests.store.support import NEVER, World, a_run, a_step, a_wait, make_store, until, with_worker

RUNS = 40
STEPS = 4


@pytest.mark.parametrize("seed", range(2))
async def test_every_run_ends_once_with_every_step(ready_url: str, seed: int) -> None:
    dice = random.Random(seed)
    stores = [make_store(ready_url) for _ in range(2)]
    for store in stores:
        await store.open()
    worlds = [await with_worker(store) for store in stores]
    ids = [f"run-{n}" for n in range(RUNS)]
    await asyncio.gather(*(worlds[0].submit(StartRun(a_run(run_id), 1_000)) for run_id in ids))
    ended: dict[str, int] = {}
    everything_ended = asyncio.Event()

    async def execute(world: World, claimed: object) -> None:
        run = claimed
        key, mail = run.key, run.mail  # type: ignore[attr-defined]
        known = {step.key: step.output for step in run.steps}  # type: ignore[attr-defined]
        seq = run.next_seq  # type: ignore[attr-defined]
        for n in range(STEPS):
            if f"s{n}" in known:
                continue
            outcome = await world.submit(CommitStep(key, a_step(f"s{n}", seq, f'"{key.epoch}"')))
            if isinstance(outcome, Fenced):
                return
            seq += 1
            assert isinstance(outcome, Done | Exists)
        if "w" not in known:
            outcome = await world.submit(
                RegisterWait(key, a_wait("w", topic=key.run_id, deadline=NEVER), seq, 1_300)
            )
            if isinstance(outcome, Fenced):
                return
            if not isinstance(outcome, Exists):
                outcome = await world.submit(Suspend(key, mail, Status.WAITING, NEVER))
                if isinstance(outcome, Done | Fenced):
                    return
                adopted = await world.submit(Adopt(key, seq, 1_300))
                if isinstance(adopted, Fenced):
                    return
                assert [step.key for step in adopted.steps] == ["w"]
        outcome = await world.submit(Finish(key, Status.COMPLETED, "1", None, None, 3_000))
        if isinstance(outcome, Done):
            ended[key.run_id] = ended.get(key.run_id, 0) + 1
            if len(ended) == RUNS:
                everything_ended.set()

    async def work(n: int) -> None:
        while not everything_ended.is_set():
            world = worlds[n]
            for claimed in await world.claim(limit=dice.randint(1, 6)):
                await execute(world, claimed)
            await asyncio.sleep(0)

    async def signal(run_id: str) -> None:
        async def is_delivered() -> bool:
            return isinstance(
                await worlds[0].submit(SendSignal(f"to-{run_id}", run_id, "1", 1_500)), Delivered
            )

        await until(is_delivered)

    async def disturb() -> None:
        while not everything_ended.is_set():
            await asyncio.sleep(dice.uniform(0.02, 0.15))
            n = dice.randrange(2)
            if dice.random() < 0.4:
                gone, worlds[n] = worlds[n], await with_worker(stores[n])
                await stores[n].abandon_worker(gone.worker)
                await _expire(stores[n], gone.worker)
            elif ready_url.startswith("postgres"):
                await _cut(ready_url, dice)
            await stores[n].reap(now=1_900)

    try:
        async with asyncio.timeout(30):
            await asyncio.gather(work(0), work(1), disturb(), *map(signal, ids))
        for run_id in ids:
            steps = (await stores[0].queries.list_steps(run_id)).data
            assert sorted(step.key for step in steps) == ["s0", "s1", "s2", "s3", "w"]
            assert len({step.seq for step in steps}) == 5
            assert await stores[0].queries.get_status(run_id) == "completed"
        # Of a finish that was played again after its commit, the answer comes once all the same.
        assert set(ended.values()) == {1}
    finally:
        for store in stores:
            await store.close()


async def _expire(store: object, worker_id: str) -> None:
    path = getattr(store, "_path", None)
    if path is None:
        database = await asyncpg.connect(store._dsn)  # type: ignore[attr-defined]
        await database.execute("UPDATE agentflow_worker SET lease_until = 0 WHERE id = $1", worker_id)
        await database.close()


async def _cut(url: str, dice: random.Random) -> None:
    database = await asyncpg.connect(url)
    try:
        victims = await database.fetch(
            "SELECT pid FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database() ORDER BY pid"
        )
        if victims:
            await database.execute("SELECT pg_terminate_backend($1)", dice.choice(victims)[0])
    finally:
        await database.close()
