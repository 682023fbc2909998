"""Model limits in the database: how many calls begin in a period, what is given back, and who waits how long."""

from __future__ import annotations

import asyncio
import random

import pytest

from agentflow.store.operation_types import BeginModelCall, SettleModelCall, SlowModelCalls
from agentflow.store.outcome_types import Done, NotBefore
from agentflow.store.protocol import Store
from tests.store.support import World, fresh, make_store

MINUTE, SECOND = 60_000_000, 1_000_000
DAY = 86_400 * SECOND


def a_call(provider: str, now: int, *, id: str | None = None, **changes: object) -> BeginModelCall:
    call = BeginModelCall(id or fresh("call"), provider, 60, None, MINUTE, 0, 0, now)
    return call._replace(**changes)


async def begun_by_patient_callers(
    world: World, *, callers: int, until: int, used: int = 1, **limit: object
) -> list[int]:
    """When calls began, with so many callers that ask again when they are told to, and at once after each call."""
    provider, rng = fresh("provider"), random.Random(4)
    due = {n: rng.randrange(SECOND) for n in range(callers)}
    begun, ids = [], {n: fresh("call") for n in due}
    while (now := min(due.values())) < until:
        caller = min(due, key=due.__getitem__)
        needs = rng.randrange(1, 2 * used) if used > 1 else 0
        answer = await world.submit(
            a_call(provider, now, id=ids[caller], needs=needs, spread=rng.randrange(1000), **limit)
        )
        if isinstance(answer, NotBefore):
            assert answer.at > now
            due[caller] = answer.at + rng.randrange(20_000)
        else:
            begun.extend([now] * max(1, needs))
            ids[caller] = fresh("call")
            due[caller] = now + rng.randrange(50_000)
    return begun


def most_in_a_period(begun: list[int], period: int = MINUTE) -> int:
    return max(sum(first <= at < first + period for at in begun) for first in set(begun))


@pytest.mark.parametrize("requests", [1, 2, 7, 60])
async def test_in_no_period_more_calls_begin_than_the_limit_says(world: World, requests: int) -> None:
    begun = await begun_by_patient_callers(world, callers=12, until=4 * MINUTE, requests=requests)
    assert most_in_a_period(begun) <= requests
    # And it is made use of: nine tenths of it at least, the places of the line that come late taken off.
    assert len(begun) >= 4 * requests * 0.85


async def test_in_no_period_more_tokens_are_taken_than_the_limit_says(world: World) -> None:
    taken = await begun_by_patient_callers(
        world, callers=8, until=3 * MINUTE, requests=None, tokens=1_000, used=40
    )
    assert most_in_a_period(taken) <= 1_000
    assert len(taken) >= 3 * 1_000 * 0.8


async def test_a_tenth_of_a_limit_may_begin_at_once(world: World) -> None:
    provider = fresh("provider")
    answers = [await world.submit(a_call(provider, SECOND)) for _ in range(7)]
    assert answers[:6] == [Done()] * 6
    # Sixty in a minute are six at once, and 54 in the rest of it.
    assert answers[6] == NotBefore(SECOND + -(-MINUTE // 55), "requests")


async def test_of_calls_at_once_by_two_stores_only_a_burst_begins(world: World, ready_url: str) -> None:
    provider = fresh("provider")
    other = make_store(ready_url)
    await other.open()
    stores: list[Store] = [world.store, other]
    answers = await asyncio.gather(*(stores[n % 2].submit(a_call(provider, SECOND)) for n in range(40)))
    await other.close()
    assert sum(answer == Done() for answer in answers) == 6
    told = [answer.at for answer in answers if isinstance(answer, NotBefore)]
    assert len(set(told)) == 34, "those who wait are told instants apart from each other"


async def test_a_longer_line_than_a_period_is_scattered(world: World) -> None:
    provider = fresh("provider")
    answers = [await world.submit(a_call(provider, SECOND, requests=3, spread=500 + n)) for n in range(6)]
    at = SECOND + MINUTE // 3
    assert [answer.at for answer in answers[1:5]] == [at, at + MINUTE // 3, at + 2 * MINUTE // 3, at + MINUTE]
    assert answers[5] == NotBefore(at + MINUTE * 505 // 1000, "requests")


async def test_a_call_that_has_begun_keeps_its_place_when_it_asks_again(world: World) -> None:
    provider, call = fresh("provider"), fresh("call")
    once = a_call(provider, SECOND, id=call, requests=1)
    assert await world.submit(once) == Done()
    assert await world.submit(once) == Done()
    assert await world.submit(a_call(provider, SECOND, requests=1)) == NotBefore(SECOND + MINUTE, "requests")


async def test_who_asks_too_early_keeps_the_place_it_has(world: World) -> None:
    provider, call = fresh("provider"), fresh("call")
    await world.submit(a_call(provider, SECOND, requests=10))
    told = await world.submit(a_call(provider, SECOND, id=call, requests=10))
    for second in (2, 4, 6):
        assert await world.submit(a_call(provider, second * SECOND, id=call, requests=10)) == told
    assert await world.submit(a_call(provider, told.at, id=call, requests=10)) == Done()


async def test_tokens_that_were_not_used_are_given_back_once(world: World) -> None:
    provider, call = fresh("provider"), fresh("call")
    limit = {"requests": None, "tokens": 100, "needs": 100}
    await world.submit(a_call(provider, SECOND, id=call, **limit))
    full = await world.submit(a_call(provider, SECOND, **limit))
    assert full == NotBefore(SECOND + -(-100 * MINUTE // 91), "tokens")
    for _ in range(2):  # a batch may be played again
        await world.submit(SettleModelCall(call, provider, 0, SECOND))
    assert await world.submit(a_call(provider, SECOND, **limit)) == Done()
    again = await world.submit(a_call(provider, SECOND, **limit))
    assert isinstance(again, NotBefore)
    assert again.because == "tokens"


async def test_tokens_that_were_used_beyond_the_estimate_are_charged(world: World) -> None:
    provider, call = fresh("provider"), fresh("call")
    limit = {"requests": None, "tokens": 100, "needs": 10}
    await world.submit(a_call(provider, SECOND, id=call, **limit))
    await world.submit(SettleModelCall(call, provider, 91, SECOND))
    answer = await world.submit(a_call(provider, SECOND, **limit))
    assert answer.because == "tokens"
    assert abs(answer.at - (SECOND + MINUTE)) < 10, "91 of its 91 tokens a minute are used"


async def test_a_call_whose_end_is_not_told_holds_its_tokens_for_a_period_at_most(world: World) -> None:
    provider = fresh("provider")
    limit = {"requests": None, "tokens": 100}
    await world.submit(a_call(provider, SECOND, needs=91, **limit))
    assert isinstance(await world.submit(a_call(provider, 2 * SECOND, needs=91, **limit)), NotBefore)
    assert await world.submit(a_call(provider, SECOND + MINUTE, needs=91, **limit)) == Done()


async def test_a_call_that_needs_more_than_the_limit_begins_when_nothing_is_under_way(world: World) -> None:
    provider = fresh("provider")
    limit = {"requests": None, "tokens": 100}
    assert await world.submit(a_call(provider, SECOND, needs=10**9, **limit)) == Done()
    answer = await world.submit(a_call(provider, SECOND, needs=1, **limit))
    assert SECOND < answer.at <= SECOND + MINUTE * 100 // 90, "and takes the whole limit, not more"


async def test_who_was_told_to_slow_down_tells_all(world: World) -> None:
    provider = fresh("provider")
    await world.submit(SlowModelCalls(provider, 30 * SECOND))
    await world.submit(SlowModelCalls(provider, 10 * SECOND))
    assert await world.submit(a_call(provider, 20 * SECOND)) == NotBefore(30 * SECOND, "paused")
    assert await world.submit(a_call(provider, 30 * SECOND)) == Done()


async def test_each_provider_has_limits_of_its_own(world: World) -> None:
    one, other = fresh("provider"), fresh("provider")
    await world.submit(SlowModelCalls(one, 30 * SECOND))
    assert await world.submit(a_call(other, SECOND, requests=1)) == Done()


async def test_what_a_crash_left_is_forgotten_after_a_day(world: World) -> None:
    provider, lost = fresh("provider"), fresh("call")
    limit = {"requests": None, "tokens": 100, "needs": 10}
    await world.submit(a_call(provider, SECOND, id=lost, **limit))
    await world.submit(a_call(provider, SECOND + DAY, **limit))
    await world.submit(SettleModelCall(lost, provider, 10**6, SECOND + DAY))  # would charge, if it were known
    assert await world.submit(a_call(provider, SECOND + DAY + MINUTE, **limit)) == Done()
