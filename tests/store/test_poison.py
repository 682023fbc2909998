"""Who is raised when a worker dies, and that a worker has one suspect at a time."""

from __future__ import annotations

import pytest

from agentflow.store.operation_types import Release
from agentflow.store.poison import to_be_raised
from agentflow.store.stored_types import RunKey
from tests.store.support import World, expire_leases


@pytest.mark.parametrize(
    ("owned", "raised"),
    [
        ({}, set()),
        ({"a": 0, "b": 1}, {"a", "b"}),
        ({"a": 2, "b": 0, "c": 1}, {"a"}),
        ({"a": 3, "b": 1}, {"a"}),
        ({"a": 2, "b": 3}, set()),
        ({"a": 4, "b": 0}, {"b"}),
        ({"a": 4, "b": 2}, {"b"}),
        ({"a": 4}, {"a"}),
        ({"a": 5}, set()),
        ({"a": 5, "b": 0}, {"b"}),
    ],
)
def test_a_crash_raises_those_it_may_be_of_and_the_last_one_only_who_was_alone(
    owned: dict[str, int], raised: set[str]
) -> None:
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


async def _crash_with(world: World, runs: list[str]) -> None:
    """A worker dies that executes these runs."""
    dying = await world.other_worker()
    claimed: list[RunKey] = [run.key for run in await dying.claim(now=9_000)]
    assert sorted(key.run_id for key in claimed) == sorted(runs)
    await world.store.abandon_worker(dying.worker)
    await expire_leases(world.store, keep=world.worker)
    assert sorted(await world.store.reap(now=2_000)) == sorted(runs)
