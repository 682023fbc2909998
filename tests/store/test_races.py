"""The end of a race: its outcome and the withdrawal of its branches are one thing, done once."""

from __future__ import annotations

import pytest

from agentflow.store.operation_types import CommitRace, CommitStep, RecordAttempt, RegisterWait, SendSignal
from agentflow.store.outcome_types import Done, Exists, Fenced, NobodyWaits, Waits
from agentflow.store.stored_types import RunKey, StoredAttempt
from tests.store.support import World, a_run, a_step, a_wait, an_approval, fresh

SCOPES = ("r@a/", "r@b%/", "r@b_/")


def the_end(key: RunKey, output: str = '{"name":"a","value":1}', seq: int = 7) -> CommitRace:
    return CommitRace(key, a_step("r", seq, output, kind="race", name="a"), SCOPES)


async def test_what_the_branches_wait_for_goes_and_what_only_looks_like_it_stays(world: World) -> None:
    key = await world.start()
    own = ["r@a/w", "r@b%/w", "r@b_/x/w", "r@a/w:1", "r@a/in@x/w"]
    # Neither are % and _ wildcards, nor is `r@0` a branch: it is the same id in a task.
    others = ["r@bc/w", "R@a/w", "r@0", "r", "r@c/w", "xr@a/w"]
    for n, name in enumerate(own + others):
        assert await world.wait(key, a_wait(name, topic=f"s{n}")) == Waits(9_000)
    await world.submit(RecordAttempt(key, StoredAttempt("r@a/retried", 1, "{}", 5_000, 1_200)))
    await world.submit(RecordAttempt(key, StoredAttempt("other", 1, "{}", 5_000, 1_200)))
    assert await world.submit(the_end(key)) == Done()
    left = (await world.store.queries.get_run(key.run_id)).waiting
    assert sorted(waiting.step_key for waiting in left) == sorted([*others, "other"])
    assert await world.submit(SendSignal("s", "s0", "1", 1_500)) == NobodyWaits()


async def test_played_again_it_gives_the_first_outcome_and_changes_nothing(world: World) -> None:
    key = await world.start()
    await world.submit(the_end(key))
    await world.wait(key, a_wait("r@a/w"))
    stored = a_step("r", 7, '{"name":"a","value":1}', kind="race", name="a")
    assert await world.submit(the_end(key, '{"name":"b","value":2}', 9)) == Exists(stored)


async def test_an_approval_is_cancelled_and_a_child_unless_it_is_detached(world: World) -> None:
    key = await world.start()
    approval = an_approval()
    await world.wait(key, a_wait("r@a/ask", "approval", approval.id), approval=approval)
    children = {}
    for name, parent_key in (("r@a/child", "r@a/child"), ("r@a/free", None)):
        child = a_run(fresh("child"), parent_id=key.run_id, parent_key=parent_key, depth=1)
        await world.wait(key, a_wait(name, "invoke", child.id), child=child)
        children[name] = child.id
    assert await world.submit(the_end(key)) == Done()
    assert (await world.store.queries.get_approval(approval.id)).status == "cancelled"
    told = {name: (await world.store.queries.get_run(child)).status for name, child in children.items()}
    assert told == {"r@a/child": "cancelled", "r@a/free": "queued"}
    # The child's end is not handed to the step that waited for it.
    assert {step.key for step in (await world.store.queries.list_steps(key.run_id)).data} == {"r"}


async def test_in_one_batch_it_comes_after_what_was_given_before_it(world: World) -> None:
    key = await world.start()
    futures = [
        world.store.submit(operation)
        for operation in (
            CommitStep(key, a_step("r@a/work", 1)),
            RegisterWait(key, a_wait("r@b_/w"), 2, 1_300),
            CommitStep(key, a_step("r@b_/work", 3)),
            the_end(key, seq=4),
            CommitStep(key, a_step("next", 5)),
        )
    ]
    answers = [await future for future in futures]
    assert answers == [Done(), Waits(9_000), Done(), Done(), Done()]
    assert (await world.store.queries.get_run(key.run_id)).waiting == []


@pytest.mark.parametrize("wrong", ["epoch", "worker"])
async def test_a_fenced_worker_withdraws_nothing(world: World, wrong: str) -> None:
    key = await world.start()
    await world.wait(key, a_wait("r@a/w"))
    other = key._replace(epoch=9) if wrong == "epoch" else key._replace(worker_id="gone")
    assert isinstance(await world.submit(the_end(other)), Fenced)
    assert len((await world.store.queries.get_run(key.run_id)).waiting) == 1
