"""Who is raised when a worker dies, and that a worker has one suspect at a time."""

from __future__ import annotations

import pytest

from agentflow.store.operation_types import Adopt, BeginCode, Release, ResolveWait, SendSignal, Suspend
from agentflow.store.outcome_types import Delivered, Done, Exists, Waits
from agentflow.store.poison import Owned, to_be_raised
from agentflow.store.stored_types import RunKey, Status
from tests.store.support import World, a_step, a_wait, expire_leases


@pytest.mark.parametrize(
    ("begun", "raised"),
    [
        ({}, set()),
        ({"a": 0, "b": 1}, {"a", "b"}),
        ({"a": 2, "b": 0, "c": 1}, {"a"}),
        ({"a": 3, "b": 1}, {"a"}),
        ({"a": 2, "b": 3}, set()),
        ({"a": 4}, {"a"}),
        ({"a": 4, "b": 0}, {"a"}),
        ({"a": 5}, set()),
        ({"a": 5, "b": 0}, {"b"}),
    ],
)
def test_a_crash_raises_those_it_may_be_of_and_the_last_one_only_who_was_alone(
    begun: dict[str, int], raised: set[str]
) -> None:
    assert to_be_raised({run_id: Owned(count, has_begun=True) for run_id, count in begun.items()}) == raised


@pytest.mark.parametrize(
    ("begun", "claimed", "raised"),
    [
        ({}, {"a": 0}, {"a"}),
        ({}, {"a": 1}, set()),
        ({}, {"a": 4}, set()),
        ({"a": 1}, {"b": 2, "c": 0}, {"a", "c"}),
        ({"a": 2}, {"b": 3}, {"a"}),
        ({"a": 0}, {"b": 4}, {"a"}),
        ({"a": 2, "b": 1}, {"c": 4}, {"a"}),
        ({"a": 4}, {"b": 0}, {"a"}),
    ],
)
def test_a_crash_is_not_counted_for_a_run_that_was_claimed_and_not_begun_but_for_its_first(
    begun: dict[str, int], claimed: dict[str, int], raised: set[str]
) -> None:
    owned = {run_id: Owned(count, has_begun=True) for run_id, count in begun.items()}
    owned |= {run_id: Owned(count, has_begun=False) for run_id, count in claimed.items()}
    assert to_be_raised(owned) == raised


async def test_a_worker_has_one_suspect_at_a_time_and_others_beside_it(world: World) -> None:
    suspects = [await world.queue(name) for name in ("s1", "s2", "s3")]
    for _ in range(2):
        await _crash_with(world, suspects)
    await world.queue("innocent", ready_at=9_000)
    first, *others = await world.claim(now=9_000)
    assert (first.key.run_id, first.crash_count) == ("s1", 2)
    assert [run.key.run_id for run in others] == ["innocent"]
    assert await world.claim(now=9_000) == []
    assert [run.key.run_id for run in await (await world.other_worker()).claim(now=9_000)] == ["s2"]
    await world.step(first.key, "further", 1)
    assert [run.key.run_id for run in await world.claim(now=9_000)] == ["s3"]


async def test_suspects_that_wait_for_their_turn_hold_nobody_up(world: World) -> None:
    suspects = [await world.queue(f"s{n}") for n in range(4)]
    for _ in range(2):
        await _crash_with(world, suspects)
    await world.queue("innocent", ready_at=9_000)
    assert [run.key.run_id for run in await world.claim(now=9_000, limit=2)] == ["s0", "innocent"]


async def test_a_suspects_neighbour_is_not_raised_and_a_new_step_clears_it(world: World) -> None:
    await world.queue("bad")
    for _ in range(2):
        await _crash_with(world, ["bad"])
    await world.queue("neighbour")
    await _crash_with(world, ["bad", "neighbour"])
    counts = {run.key.run_id: run for run in await world.claim(now=9_000)}
    assert {run_id: run.crash_count for run_id, run in counts.items()} == {"bad": 3, "neighbour": 0}
    await world.step(counts["bad"].key, "further", 1)
    for run in counts.values():
        await world.submit(Release(run.key, 2_000))
    again = {run.key.run_id: run.crash_count for run in await world.claim(now=9_000)}
    assert again == {"bad": 0, "neighbour": 0}


async def test_a_crash_between_a_claim_and_the_runs_code_is_not_counted_after_the_first(world: World) -> None:
    await world.queue("run")
    for expected in (1, 1, 2, 2, 3):
        dying = await world.other_worker()
        [claimed] = await dying.claim(now=9_000)
        if expected > claimed.crash_count > 0:
            assert type(await dying.submit(BeginCode(claimed.key))) is Done
        await _kill(world, dying)
        again = await world.claim_one(now=9_000)
        assert again.crash_count == expected
        await world.submit(Release(again.key, 2_000))


@pytest.mark.parametrize(
    "way", ["signal", "buffering", "buffered", "due", "due in memory", "timeout of its own"]
)
async def test_whatever_becomes_a_step_of_a_run_begins_its_count_again(world: World, way: str) -> None:
    await world.queue("run")
    await _crash_with(world, ["run"])
    claimed = await world.claim_one(now=2_000)
    assert claimed.crash_count == 1
    key = claimed.key
    send = SendSignal("s", "go", "1", 2_500, buffer_until=9_000 if way.startswith("buffer") else None)
    if way == "buffered":
        await world.submit(send)
        assert type(await world.wait(key, a_wait(), now=2_600)) is Exists
    else:
        assert type(await world.wait(key, a_wait(deadline=3_000))) is Waits
    match way:
        case "signal" | "buffering":
            assert await world.submit(Suspend(key, 0, Status.WAITING, 3_000)) == Done()
            assert await world.submit(send) == Delivered("run")
        case "due":
            assert await world.submit(Suspend(key, 0, Status.WAITING, 3_000)) == Done()
        case "due in memory":
            assert len((await world.submit(Adopt(key, 5, 3_000))).steps) == 1
        case "timeout of its own":
            await world.submit(ResolveWait(key, a_step("w", kind="signal")))
    if way not in ("signal", "buffering", "due"):
        await world.submit(Release(key, 3_000))
    for _ in range(2):  # as it is told, and as it is stored
        again = await world.claim_one(now=3_000)
        assert (len(again.steps), again.crash_count) == (1, 0)
        await world.submit(Release(again.key, 3_000))


async def _crash_with(world: World, runs: list[str]) -> None:
    """A worker dies that executes these runs."""
    dying = await world.other_worker()
    claimed: list[RunKey] = [run.key for run in await dying.claim(now=9_000)]
    assert sorted(key.run_id for key in claimed) == sorted(runs)
    for key in claimed:
        assert type(await dying.submit(BeginCode(key))) is Done
    assert sorted(await _kill(world, dying)) == sorted(runs)


async def _kill(world: World, dying: World) -> list[str]:
    """What is taken from a worker that dies."""
    await world.store.abandon_worker(dying.worker)
    await expire_leases(world.store, keep=world.worker)
    return await world.store.reap(now=2_000)
