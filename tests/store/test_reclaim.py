"""A run is taken up again where it left memory: only if nobody had it since, and with all that was delivered."""

from __future__ import annotations

import asyncio

import pytest

from agentflow.clock import NEVER
from agentflow.store.claim_types import FunctionInfo, Reclaimed
from agentflow.store.operation_types import (
    CancelRun,
    CommitStep,
    PauseFunction,
    RegisterFunctions,
    SendSignal,
    Suspend,
)
from agentflow.store.outcome_types import Done
from agentflow.store.stored_types import RunKey, Status
from tests.store.support import APP, FUNCTION, World, a_step, a_wait, fresh


async def test_it_goes_on_with_what_was_delivered_in_the_order_of_its_end(world: World) -> None:
    key = await _parked(world, "z", "a", "m")
    await _signal(world, key, "z", now=1_500)
    await _signal(world, key, "m", now=1_600)
    await _signal(world, key, "a", now=1_600)
    found = await _reclaim(world, key, next_seq=7)
    assert found is not None
    assert (found.epoch, found.mail) == (2, 3)
    assert [(step.key, step.seq, step.kind, step.ok) for step in found.steps] == [
        ("z", 7, "signal", True),
        ("a", 8, "signal", True),
        ("m", 9, "signal", True),
    ]
    # It is ours, and nobody else's.
    ours = RunKey(key.run_id, world.worker, 2)
    assert await world.submit(CommitStep(ours, a_step("next", 10))) == Done(3)
    assert await world.claim() == []
    assert await _reclaim(world, key, next_seq=7) is None
    stored = await world.store.queries.list_steps(key.run_id)
    assert [(step.key, step.seq) for step in stored.data] == [("z", 7), ("a", 8), ("m", 9), ("next", 10)]


async def test_what_nobody_woke_stays_where_it_is(world: World) -> None:
    key = await _parked(world, "w")
    assert await _reclaim(world, key) is None
    await _signal(world, key, "w", now=1_500)
    assert await _reclaim(world, key, now=1_499) is None
    assert await _reclaim(world, key, now=1_500) is not None


async def test_a_run_that_another_had_meanwhile_is_left_to_a_claim(world: World) -> None:
    key = await _parked(world, "w", "v")
    await _signal(world, key, "w", now=1_500)
    other = await world.other_worker()
    theirs = (await other.claim_one()).key
    await other.submit(Suspend(theirs, 1, Status.WAITING, NEVER))
    await _signal(world, key, "v", now=1_600)
    assert await _reclaim(world, key) is None
    claimed = await world.claim_one()
    assert [step.key for step in claimed.steps] == ["w", "v"]


@pytest.mark.parametrize("what", ["cancel", "pause"])
async def test_a_run_that_may_not_go_on_is_left_to_a_claim(world: World, what: str) -> None:
    await world.submit(RegisterFunctions((FunctionInfo(APP, FUNCTION, "1", "[]", "{}", "{}"),), 1_000))
    key = await _parked(world, "w")
    await _signal(world, key, "w", now=1_500)
    await world.submit(
        CancelRun(key.run_id, None, 1_600) if what == "cancel" else PauseFunction(APP, FUNCTION, 1_600)
    )
    assert await _reclaim(world, key) is None


async def test_a_worker_whose_lease_is_gone_takes_nothing(world: World) -> None:
    key = await _parked(world, "w")
    await _signal(world, key, "w", now=1_500)
    other = await world.other_worker()
    world.store.disown_worker(world.worker)
    assert await _reclaim(world, key) is None
    assert (await other.claim_one()).key.epoch == 2


async def test_of_two_that_take_it_at_once_one_gets_it(world: World) -> None:
    other = await world.other_worker()
    for _ in range(20):
        key = await _parked(world, "w")
        await _signal(world, key, "w", now=1_500)
        got = await asyncio.gather(_reclaim(world, key), _reclaim(other, key), other.claim())
        assert sum(bool(each) for each in got) == 1, got


async def _parked(world: World, *keys: str) -> RunKey:
    """A run that waits for a signal at each of these steps."""
    key = await world.start()
    for step in keys:
        await world.wait(key, a_wait(step, topic=f"{step} of {key.run_id}", deadline=NEVER))
    await world.submit(Suspend(key, 0, Status.WAITING, NEVER))
    return key


async def _signal(world: World, key: RunKey, step: str, *, now: int) -> None:
    await world.submit(SendSignal(fresh("signal"), f"{step} of {key.run_id}", "1", now))


async def _reclaim(world: World, last: RunKey, *, next_seq: int = 5, now: int = 2_000) -> Reclaimed | None:
    return await world.store.reclaim(world.worker, epoch=world.epoch, last=last, next_seq=next_seq, now=now)
