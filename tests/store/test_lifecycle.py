"""What goes with a run's beginning and with its end goes with it in a batch of many as well."""

from __future__ import annotations

import asyncio

from agentflow.clock import NEVER
from agentflow.runs import RunStatus
from agentflow.store.operation_types import Finish, RegisterWait, Rerun, SendEvents, StartRun, Suspend
from agentflow.store.stored_types import CANCEL_KIND, Status
from tests.store.support import World, a_run, a_wait, an_event, fresh

CANCEL = a_wait("@cancel0", CANCEL_KIND, "gone", NEVER)


async def test_each_failed_run_of_a_batch_starts_its_follow_up_once(world: World) -> None:
    keys = await asyncio.gather(*(world.start() for _ in range(10)))
    finishes = [
        Finish(key, Status.FAILED, None, '{"name":"E","message":"m"}', None, 2_000)._replace(
            follow_up=a_run(f"{key.run_id}-after", ready_at=2_000)
        )
        for key in keys
    ]
    await asyncio.gather(*map(world.submit, [*finishes, *finishes]))
    claimed = await world.claim(now=3_000, limit=100)
    assert sorted(run.key.run_id for run in claimed) == sorted(f"{key.run_id}-after" for key in keys)


async def test_each_run_of_a_batch_has_its_rule_and_an_event_cancels_all(world: World) -> None:
    runs = [a_run(cancel_on=(CANCEL,)) for _ in range(10)]
    await asyncio.gather(*(world.submit(StartRun(run, 1_000)) for run in runs))
    spared = await world.queue()
    await world.submit(SendEvents((an_event("gone"),), 1_500))
    statuses = [await world.store.queries.get_status(run.id) for run in runs]
    assert statuses == [RunStatus.CANCELLED] * 10
    assert await world.store.queries.get_status(spared) is RunStatus.QUEUED


async def test_a_rule_is_no_wait_for_the_run_and_its_end_removes_it(world: World) -> None:
    key = await world.start(cancel_on=(CANCEL._replace(deadline=1_400),))
    await world.wait(key, a_wait("w", topic=fresh("signal"), deadline=9_000))
    await world.submit(Suspend(key, 0, Status.WAITING, 9_000))
    record = await world.store.queries.get_run(key.run_id)
    assert record is not None
    assert [waiting.step_key for waiting in record.waiting] == ["w"]
    claimed = await world.claim_one(now=9_000)
    assert [step.key for step in claimed.steps] == ["w"]
    assert claimed.waits == ()
    await world.submit(Finish(claimed.key, Status.COMPLETED, '"done"', None, None, 9_100))
    await world.submit(SendEvents((an_event("gone"),), 9_200))
    assert await world.store.queries.get_status(key.run_id) is RunStatus.COMPLETED


async def test_a_rerun_played_again_is_one_run_with_the_steps_once(world: World) -> None:
    key = await world.start()
    for seq, name in enumerate("abc", 1):
        await world.step(key, name, seq)
    await world.submit(RegisterWait(key, a_wait("ask", "approval", fresh("approval")), 4, 1_300))
    again = Rerun(a_run(rerun_of=key.run_id, ready_at=1_500), 1_500, "c")
    first, second = [await world.submit(again) for _ in range(2)]
    assert (first.created, second.created, first.run_id) == (True, False, second.run_id)
    claimed = await world.claim_one()
    assert [(step.key, step.seq) for step in claimed.steps] == [("a", 1), ("b", 2)]
    assert claimed.next_seq == 3
