"""A pause takes effect with the operation, also within one batch."""

from __future__ import annotations

import asyncio

from agentflow.store.claim_types import FunctionInfo
from agentflow.store.operation_types import PauseFunction, RegisterFunctions, StartRun
from tests.store.support import APP, FUNCTION, World, a_run


async def test_starts_of_one_batch_are_queued_or_begun_as_it_was_when_they_came(world: World) -> None:
    await world.submit(RegisterFunctions((FunctionInfo(APP, FUNCTION, "1", "[]", "{}", "{}"),), 1_000))
    operations = [
        StartRun(a_run(), 1_000, owner=world.worker),
        PauseFunction(APP, FUNCTION, 1_100),
        StartRun(a_run(), 1_200, owner=world.worker),
        StartRun(a_run(app="another"), 1_200, owner=world.worker),
        PauseFunction(APP, FUNCTION, 1_300, resume=True),
        StartRun(a_run(), 1_400, owner=world.worker),
    ]
    answers = await asyncio.gather(*map(world.submit, operations))
    assert [answer.epoch for answer in answers if hasattr(answer, "epoch")] == [1, 0, 1, 1]


async def test_many_starts_of_one_batch_stay_queued_while_their_function_is_paused(world: World) -> None:
    await world.submit(RegisterFunctions((FunctionInfo(APP, FUNCTION, "1", "[]", "{}", "{}"),), 1_000))
    await world.submit(PauseFunction(APP, FUNCTION, 1_100))
    operations = [StartRun(a_run(app=app), 1_200, owner=world.worker) for app in (APP, "another") * 5]
    answers = await asyncio.gather(*map(world.submit, operations))
    assert [answer.epoch for answer in answers] == [0, 1] * 5


async def test_runs_of_a_paused_function_are_not_claimed(world: World) -> None:
    await world.submit(RegisterFunctions((FunctionInfo(APP, FUNCTION, "1", "[]", "{}", "{}"),), 1_000))
    run_id = await world.queue()
    await world.submit(PauseFunction(APP, FUNCTION, 1_100))
    assert await world.claim() == []
    await world.submit(PauseFunction(APP, FUNCTION, 1_200, resume=True))
    assert (await world.claim_one()).key.run_id == run_id
