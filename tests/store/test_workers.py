"""Claims, and what becomes of a worker's runs when it goes."""

from __future__ import annotations

import asyncio

import pytest

from agentflow.errors import ConfigurationError
from agentflow.store.hints import Hint, HintKind
from agentflow.store.operation_types import CancelRun, Finish, Suspend
from agentflow.store.operations.workers import RegisterWorker, RetireWorker
from agentflow.store.outcome_types import Fenced
from agentflow.store.stored_types import RunKey, Status
from tests.store.support import APP, FUNCTION, NEVER, World, a_wait, expire_leases, fresh


async def test_claims_go_by_ready_time_then_id_and_take_what_is_due(world: World) -> None:
    for run_id, ready_at in (("d", 1_500), ("b", 1_400), ("a", 1_500), ("c", 2_001)):
        await world.queue(run_id, ready_at=ready_at)
    assert await world.store.next_ready_at(app=APP, functions=[FUNCTION]) == 1_400
    assert [run.key for run in await world.claim(limit=2)] == [
        RunKey("b", world.worker, 1),
        RunKey("a", world.worker, 1),
    ]
    assert [run.key.run_id for run in await world.claim()] == ["d"]
    assert await world.store.next_ready_at(app=APP, functions=[FUNCTION]) == 2_001


async def test_a_claim_takes_only_its_app_s_and_its_functions(world: World) -> None:
    await world.queue("mine")
    await world.queue("foreign", app="other")
    await world.queue("unknown", function="else")
    assert [run.key.run_id for run in await world.claim()] == ["mine"]
    assert [run.key.run_id for run in await world.claim(functions=("else", FUNCTION))] == ["unknown"]
    assert await world.claim(functions=()) == []


async def test_a_claim_gives_all_that_the_run_is(world: World) -> None:
    await world.queue(
        "r", tags=("x", "y"), trigger='{"id":"e"}', depth=3, root_id="root", parent_id="p", parent_key="k"
    )
    run = await world.claim_one(now=2_000)
    assert (run.input, run.trigger, run.tags, run.depth) == ('{"n":1}', '{"id":"e"}', ("x", "y"), 3)
    assert (run.root_id, run.parent_id, run.parent_key) == ("root", "p", "k")
    assert (run.created_at, run.started_at, run.next_seq) == (1_000, 2_000, 1)
    await world.submit(Suspend(run.key, 0, Status.SLEEPING, 3_000))
    assert (await world.claim_one(now=3_000)).started_at == 2_000


async def test_two_claimers_share_the_runs_and_each_is_claimed_once(world: World) -> None:
    other = await world.other_worker()
    ids = [await world.queue() for _ in range(30)]
    claimed: list[str] = []
    while len(claimed) < len(ids):
        for runs in await asyncio.gather(world.claim(limit=4), other.claim(limit=4)):
            claimed.extend(run.key.run_id for run in runs)
    assert sorted(claimed) == sorted(ids)
    assert await world.claim() == []


async def test_a_worker_that_did_not_register_claims_nothing(world: World) -> None:
    await world.queue()
    assert await world.store.claim("ghost", epoch=1, app=APP, functions=[FUNCTION], limit=5, now=2_000) == []
    assert (
        await world.store.claim(world.worker, epoch=7, app=APP, functions=[FUNCTION], limit=5, now=2_000)
        == []
    )


async def test_a_worker_s_id_serves_once(world: World) -> None:
    with pytest.raises(ConfigurationError, match=world.worker):
        await world.store.register_worker(world.worker, lease_seconds=5, version="1")


async def test_a_registration_played_again_is_known_as_its_own(world: World) -> None:
    """Its answer may be lost with the connection; the worker has no other id to fall back on."""
    register = RegisterWorker(fresh("worker"), NEVER, "here", 7, "1", now=1_000)
    carry_out = getattr(world.store, "_transact", world.store.submit)
    assert await carry_out(register) == 1
    assert await carry_out(register) == 1
    assert await carry_out(register._replace(pid=8)) == 0
    assert await carry_out(register._replace(now=1_001)) == 0
    await carry_out(RetireWorker(register.worker_id, now=2_000))
    assert await carry_out(register) == 0


async def test_a_retired_worker_s_runs_are_ready_at_once_and_count_no_crash(world: World) -> None:
    leaving = await world.other_worker()
    key = await leaving.start()
    await world.store.retire_worker(leaving.worker)
    assert isinstance(await leaving.step(key), Fenced)
    claimed = await world.claim_one(now=NEVER)
    assert (claimed.key, claimed.crash_count) == (RunKey(key.run_id, world.worker, 2), 0)


async def test_a_dead_worker_is_fenced_and_its_runs_are_taken_over(world: World) -> None:
    dying = await world.other_worker()
    key = await dying.start()
    await dying.step(key, "a", 1)
    await dying.wait(key, a_wait())
    mine = await world.start()
    await world.store.abandon_worker(dying.worker)
    await expire_leases(world.store, keep=world.worker)
    assert await world.store.reap(now=1_900) == [key.run_id]
    await asyncio.sleep(0)  # hints come a turn of the loop later
    assert Hint(HintKind.READY) in world.hints
    assert await world.store.reap(now=1_900) == []
    assert isinstance(await dying.step(key, "b", 2), Fenced)
    assert isinstance(await dying.submit(Finish(key, Status.COMPLETED, "1", None, None, 2_000)), Fenced)
    assert isinstance(await dying.wait(key, a_wait("late", topic="x")), Fenced)
    claimed = await world.claim_one()
    assert (claimed.key, claimed.crash_count) == (RunKey(key.run_id, world.worker, 2), 1)
    assert ([step.key for step in claimed.steps], [wait.key for wait in claimed.waits]) == (["a"], ["w"])
    assert (await world.step(mine)).mail == 0


async def test_a_live_worker_is_not_reaped(world: World) -> None:
    other = await world.other_worker()
    key = await other.start()
    assert await world.store.reap(now=NEVER) == []
    assert (await other.step(key)).mail == 0


async def test_runs_whose_worker_nobody_knows_are_taken_too(world: World) -> None:
    other = await world.other_worker()
    key = await other.start()
    await _forget_worker(world, other.worker)
    assert await world.store.reap(now=1_900) == [key.run_id]


async def test_a_cancel_asked_of_a_dead_worker_s_run_comes_with_the_claim(world: World) -> None:
    dying = await world.other_worker()
    key = await dying.start()
    await world.submit(CancelRun(key.run_id, "stop", 1_800))
    await world.store.abandon_worker(dying.worker)
    await expire_leases(world.store, keep=world.worker)
    await world.store.reap(now=1_900)
    claimed = await world.claim_one()
    assert (claimed.cancel_at, claimed.reason) == (1_800, "stop")


async def test_an_orphan_is_released_when_it_is_missed_twice(world: World) -> None:
    held, lost = await world.start(), await world.start()
    assert await world.store.release_orphans(world.worker, {held.run_id}, now=1_500) == []
    assert await world.store.release_orphans(world.worker, {held.run_id}, now=1_500) == [lost.run_id]
    assert (await world.claim_one()).key == lost._replace(epoch=2)
    assert (await world.step(held)).mail == 0


async def test_a_run_that_shows_up_in_between_is_no_orphan(world: World) -> None:
    key = await world.start()
    await world.store.release_orphans(world.worker, set(), now=1_500)
    assert await world.store.release_orphans(world.worker, {key.run_id}, now=1_500) == []
    assert await world.store.release_orphans(world.worker, set(), now=1_500) == []


async def test_a_heartbeat_renews_until_the_lease_is_over_or_the_worker_reaped(world: World) -> None:
    heartbeat = world.store.heartbeat()
    try:
        assert await asyncio.to_thread(heartbeat.renew, world.worker, world.epoch, 30.0) is True
        assert await asyncio.to_thread(heartbeat.renew, world.worker, world.epoch + 1, 30.0) is False
        assert await asyncio.to_thread(heartbeat.renew, "nobody", 1, 30.0) is False
        await expire_leases(world.store, keep="nobody")
        assert await asyncio.to_thread(heartbeat.renew, world.worker, world.epoch, 30.0) is False
    finally:
        await asyncio.to_thread(heartbeat.close)


async def test_a_heartbeat_keeps_a_short_lease_alive(world: World) -> None:
    other = await world.other_worker(lease_seconds=1.5)
    key = await other.start()
    heartbeat = world.store.heartbeat()
    try:
        assert await asyncio.to_thread(heartbeat.renew, other.worker, other.epoch, 30.0) is True
    finally:
        await asyncio.to_thread(heartbeat.close)
    await asyncio.sleep(1.55)
    assert await world.store.reap(now=1_900) == []
    assert (await other.step(key)).mail == 0


async def test_a_million_year_clock_does_not_end_a_lease(world: World) -> None:
    """Leases go by the database's or the machine's own clock, never by domain time."""
    await world.store.reap(now=NEVER - 1)
    assert (await world.step(await world.start())).mail == 0


async def _forget_worker(world: World, worker_id: str) -> None:
    import sqlite3

    import asyncpg

    path = getattr(world.store, "_path", None)
    if path is not None:
        with sqlite3.connect(path, timeout=5) as connection:
            connection.execute("DELETE FROM agentflow_worker WHERE id = ?", (worker_id,))
        connection.close()
    else:
        database = await asyncpg.connect(world.store._dsn)  # type: ignore[attr-defined]
        await database.execute("DELETE FROM agentflow_worker WHERE id = $1", worker_id)
        await database.close()
