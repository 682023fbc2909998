"""A throttle over many runs, by claims that come late now and then: its rate, and how many begin in a period."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import Any

import pytest

from agentflow.store.operation_types import Finish, StartRun
from agentflow.store.stored_types import Admission, GateLimits, Gates, Status
from tests.store.support import FUNCTION, World, a_run

SECOND = 1_000_000
INTERVAL = SECOND // 100
GATES = {FUNCTION: GateLimits(interval=INTERVAL, slack=SECOND // 20)}


async def begin_all(world: World, runs: int, *, next_look: Any) -> list[int]:
    """The times at which the runs begin, when somebody claims at the times that `next_look` gives."""
    admission = Admission(Gates(throttle="throttle:t"))
    now = 10 * SECOND
    queued = [a_run(f"run{n:05}", ready_at=now)._replace(admission=admission) for n in range(runs)]
    await asyncio.gather(*[world.submit(StartRun(run, now)) for run in queued])
    app = queued[0].app
    begun: list[int] = []
    ending: list[Awaitable[object]] = []
    while len(begun) < runs:
        claimed = await world.store.claim(
            world.worker, epoch=world.epoch, app=app, functions=[FUNCTION], limit=50, now=now, gates=GATES
        )
        for each in claimed:
            begun.append(now)
            end = Finish(each.key, Status.COMPLETED, "null", None, None, now)
            ending.append(asyncio.ensure_future(world.submit(end)))
        now = next_look(now, await world.store.next_ready_at(app=app, functions=[FUNCTION]))
    await asyncio.gather(*ending)
    return begun


def most_in_a_second(begun: list[int]) -> int:
    return max(sum(start <= at < start + SECOND for at in begun) for start in begun)


@pytest.mark.parametrize("lateness", [0, 3_000, 30_000])
async def test_a_throttle_keeps_its_rate_within_a_twentieth_although_claims_come_late(
    world: World, lateness: int
) -> None:
    rng = random.Random(lateness)

    def look(now: int, due: int | None) -> int:
        return max(now, due or now) + rng.randrange(lateness + 1)

    begun = await begin_all(world, 400, next_look=look)
    seconds = (begun[-1] - begun[0]) / SECOND
    assert 0.95 <= 399 / seconds / 100 <= 1.05
    assert most_in_a_second(begun) <= 105


async def test_after_a_stall_what_was_missed_is_made_good_by_and_by(world: World) -> None:
    def look(now: int, due: int | None) -> int:
        is_stalled = 11 * SECOND <= now < 12 * SECOND
        return 12 * SECOND if is_stalled else max(now, due or now)

    begun = await begin_all(world, 400, next_look=look)
    assert most_in_a_second(begun) <= 110  # 100, the slack of a twentieth, and a twenty-fifth
    # 400 runs take 4 s; a second was lost, and in the three that follow it a twenty-fifth of each is won back.
    assert 4.7 <= (begun[-1] - begun[0]) / SECOND <= 4.95


async def test_after_a_rest_nothing_is_made_good(world: World) -> None:
    def look(now: int, due: int | None) -> int:
        return 3600 * SECOND if 11 * SECOND <= now < 3600 * SECOND else max(now, due or now)

    begun = await begin_all(world, 300, next_look=look)
    after = [at for at in begun if at >= 3600 * SECOND]
    assert most_in_a_second(after) <= 106
