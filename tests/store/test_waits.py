"""Waits: registered once, resolved by exactly one."""

from __future__ import annotations

import asyncio
import sys

import pytest

from agentflow import expressions
from agentflow.errors import ConfigurationError
from agentflow.matching import correlation
from agentflow.store.hints import Hint, HintKind
from agentflow.store.operation_types import (
    Adopt,
    CancelRun,
    Finish,
    ResolveWait,
    SendEvents,
    SendSignal,
    Suspend,
    WithdrawWait,
)
from agentflow.store.outcome_types import (
    Adopted,
    AlreadyBuffered,
    Delivered,
    Done,
    Exists,
    NobodyWaits,
    Sent,
    SignalTaken,
    Waits,
)
from agentflow.store.stored_types import Status
from tests.store.support import NEVER, World, a_run, a_step, a_wait, an_event, fresh, until

GOT = '{"name":"go","data":{"x":1}}'


def a_signal(signal_id: str = "s1", now: int = 1_500, **changes: object) -> SendSignal:
    return SendSignal(signal_id, "go", '{"x":1}', now)._replace(**changes)


async def test_a_second_registration_changes_nothing(world: World) -> None:
    key = await world.start()
    assert await world.wait(key, a_wait(deadline=9_000)) == Waits(9_000)
    assert await world.wait(key, a_wait(deadline=12_000)) == Waits(9_000)


async def test_a_signal_resolves_the_wait_of_a_running_run(world: World) -> None:
    key = await world.start()
    await world.wait(key, a_wait())
    assert await world.submit(a_signal()) == Delivered(key.run_id)
    assert Hint(HintKind.MAIL, key.run_id) in world.hints
    assert await world.store.list_mail(world.worker) == [(key.run_id, 1, False)]
    adopted = await world.submit(Adopt(key, 4, 1_600))
    assert adopted == Adopted(
        (a_step("w", 4, GOT, kind="signal", name="go", started_at=1_300, ended_at=1_500),), 1, False
    )
    assert (await world.submit(Adopt(key, 5, 1_600))).steps == ()


async def test_an_adoption_played_again_gives_what_it_gave_the_first_time(world: World) -> None:
    """Its answer may be lost with the connection; nobody else tells the run what was delivered to it."""
    key = await world.start()
    await world.wait(key, a_wait("w1", topic="a"))
    await world.wait(key, a_wait("w2", topic="b"))
    await world.submit(SendSignal(fresh("signal"), "a", "1", 1_500))
    adopt = Adopt(key, 3, 1_600, room=3)
    first = await world.submit(adopt)
    assert [(step.key, step.seq) for step in first.steps] == [("w1", 3)]
    await world.step(key, "later", 6)
    assert await world.submit(adopt) == first
    await world.submit(SendSignal(fresh("signal"), "b", "2", 1_700))
    again = await world.submit(adopt)
    assert [(step.key, step.seq) for step in again.steps] == [("w1", 3), ("w2", 4)]
    assert (await world.submit(Adopt(key, 7, 1_800, room=1))).steps == ()


async def test_a_signal_readies_a_waiting_run(world: World) -> None:
    key = await world.start()
    await world.step(key, "a", 1)
    await world.wait(key, a_wait(deadline=NEVER))
    await world.submit(Suspend(key, 0, Status.WAITING, NEVER))
    assert await world.claim(now=10**15) == []
    world.hints.clear()
    await world.submit(a_signal())
    assert world.hints == [Hint(HintKind.READY, key.run_id)]
    claimed = await world.claim_one(now=1_500)
    assert [(step.key, step.seq) for step in claimed.steps] == [("a", 1), ("w", 2)]
    assert (claimed.mail, claimed.next_seq, claimed.waits) == (1, 3, ())


async def test_a_signal_is_delivered_once_and_played_again_gives_the_first_answer(world: World) -> None:
    key = await world.start()
    await world.wait(key, a_wait())
    assert await world.submit(a_signal()) == Delivered(key.run_id)
    assert await world.submit(a_signal()) == Delivered(key.run_id)
    assert await world.submit(a_signal("s2")) == NobodyWaits()
    assert len((await world.submit(Adopt(key, 1, 1_600))).steps) == 1


async def test_of_signal_and_timeout_exactly_one_wins(world: World) -> None:
    key = await world.start()
    await world.wait(key, a_wait("w", deadline=2_000))
    assert await world.submit(a_signal(now=2_000)) == NobodyWaits()  # its time was over
    [step] = (await world.submit(Adopt(key, 1, 2_500))).steps
    assert (step.output, step.ended_at) == ("null", 2_000)

    await world.wait(key, a_wait("v", deadline=3_000))
    assert await world.submit(a_signal("s2", now=2_999)) == Delivered(key.run_id)
    [step] = (await world.submit(Adopt(key, 2, 9_999))).steps
    assert (step.key, step.output) == ("v", GOT)


async def test_a_claim_ends_the_waits_that_are_due_with_their_own_outcome_in_order(world: World) -> None:
    key = await world.start()
    await world.step(key, "a", 1)
    late = a_wait("late", "sleep", None, 5_000)
    error = a_wait(
        "asked", "invoke", "child", 4_000, timeout_ok=False, timeout_output=None, timeout_error='{"e":1}'
    )
    later = a_wait("later", "sleep", None, 8_000)
    for wait in (late, error, later):
        await world.wait(key, wait)
    await world.submit(Suspend(key, 0, Status.WAITING, 4_000))
    claimed = await world.claim_one(now=6_000)
    assert [(step.key, step.seq, step.ok, step.output, step.error) for step in claimed.steps[1:]] == [
        ("asked", 2, False, None, '{"e":1}'),
        ("late", 3, True, "null", None),
    ]
    assert claimed.waits == (later,)
    assert claimed.next_seq == 4


async def test_a_claim_of_many_ends_the_waits_of_each(world: World) -> None:
    keys = [await world.start() for _ in range(3)]
    for key in keys:
        await world.wait(key, a_wait("nap", "sleep", None, 5_000))
        await world.submit(Suspend(key, 0, Status.SLEEPING, 5_000))
    claimed = await world.claim(now=6_000)
    assert {run.key.run_id for run in claimed} == {key.run_id for key in keys}
    assert [[step.key for step in run.steps] for run in claimed] == [["nap"]] * 3


async def test_a_past_deadline_ends_when_it_is_adopted(world: World) -> None:
    key = await world.start()
    await world.wait(key, a_wait("w", "sleep", None, 500))
    [step] = (await world.submit(Adopt(key, 1, 1_400))).steps
    assert (step.started_at, step.ended_at) == (1_300, 1_300)


async def test_one_live_wait_has_a_signal_s_name(world: World) -> None:
    first, second = await world.start(), await world.start()
    await world.wait(first, a_wait())
    assert await world.wait(second, a_wait()) == SignalTaken(first.run_id)
    assert await world.wait(first, a_wait("again")) == SignalTaken(first.run_id)
    # Its time is over: the name is free, whoever notices.
    assert await world.wait(second, a_wait(deadline=20_000), now=9_000) == Waits(20_000)
    assert [step.output for step in (await world.submit(Adopt(first, 1, 9_500))).steps] == ["null"]


async def test_a_wait_that_replaces_another_ends_it_with_its_timeout(world: World) -> None:
    first, second = await world.start(), await world.start()
    await world.wait(first, a_wait())
    await world.submit(Suspend(first, 0, Status.WAITING, 9_000))
    assert await world.wait(second, a_wait(), replace=True) == Waits(9_000)
    [step] = (await world.claim_one(now=1_400)).steps
    assert (step.ok, step.output) == (True, "null")
    assert await world.submit(a_signal()) == Delivered(second.run_id)


async def test_a_buffered_signal_waits_for_its_wait_until_its_time_is_over(world: World) -> None:
    assert await world.submit(a_signal(buffer_until=2_000)) == Delivered(None)
    assert await world.submit(a_signal(buffer_until=2_000)) == Delivered(None)  # played again
    assert await world.submit(a_signal("s2", buffer_until=2_000)) == AlreadyBuffered()
    key = await world.start()
    taken = await world.wait(key, a_wait(), seq=3, now=1_999)
    assert taken == Exists(a_step("w", 3, GOT, kind="signal", name="go", started_at=1_300, ended_at=1_999))
    assert await world.submit(a_signal(buffer_until=2_000)) == Delivered(None)  # its first answer
    assert await world.wait(key, a_wait("v")) == Waits(9_000)  # it was taken once


async def test_a_buffered_signal_that_expired_is_not_given(world: World) -> None:
    await world.submit(a_signal(buffer_until=2_000))
    assert await world.submit(a_signal("s2", now=2_000, buffer_until=3_000)) == Delivered(None)
    key = await world.start()
    assert await world.wait(key, a_wait(), now=3_000) == Waits(9_000)


async def test_the_owner_s_own_outcome_stands_unless_somebody_was_first(world: World) -> None:
    key = await world.start()
    await world.wait(key, a_wait("w"))
    await world.wait(key, a_wait("v", topic="other"))
    own = a_step("w", 1, '"mine"', kind="signal")
    assert await world.submit(ResolveWait(key, own)) == Done()
    assert await world.submit(ResolveWait(key, own)) == Exists(own)
    assert await world.submit(a_signal()) == NobodyWaits()
    await world.submit(SendSignal("o", "other", "5", 1_500))
    lost = await world.submit(ResolveWait(key, a_step("v", 2, '"mine"', kind="signal")))
    assert (lost.step.seq, lost.step.output) == (2, '{"name":"other","data":5}')


async def test_a_withdrawn_wait_is_forgotten(world: World) -> None:
    key = await world.start()
    await world.wait(key, a_wait())
    assert await world.submit(WithdrawWait(key, "w", 1_400)) == Done()
    assert await world.submit(WithdrawWait(key, "w", 1_400)) == Done()
    assert await world.submit(a_signal()) == NobodyWaits()
    assert await world.store.queries.get_step(key.run_id, "w") is None


async def test_a_child_is_made_once_and_an_ended_one_answers_at_once(world: World) -> None:
    parent = await world.start()
    child = a_run(parent_id=parent.run_id, parent_key="call", root_id=parent.run_id)
    wait = a_wait("call", "invoke", child.id)
    await world.wait(parent, wait, child=child)
    await world.wait(parent, wait, child=child)
    claimed = await world.claim()
    assert len(claimed) == 1
    await world.submit(WithdrawWait(parent, "call", 1_500))
    await world.submit(Finish(claimed[0].key, Status.COMPLETED, "42", None, None, 2_000))
    again = await world.wait(parent, wait, child=child, seq=5, now=2_500)
    assert isinstance(again, Exists)
    assert (again.step.seq, again.step.output) == (5, "42")


async def test_an_event_wakes_every_wait_it_matches(world: World) -> None:
    keys = [await world.start() for _ in range(3)]
    seven, eight = correlation("data.user", 7), correlation("data.user", 8)
    await world.wait(keys[0], a_wait("w", "event", "paid", correlation=seven))
    await world.wait(keys[1], a_wait("w", "event", "paid", correlation=eight))
    await world.wait(keys[2], a_wait("w", "event", "paid"))
    event = an_event(correlations=(seven, correlation("name", "paid")))
    assert await world.submit(SendEvents((event,), 1_500)) == Sent((event.id,), ())
    woken = [len((await world.submit(Adopt(key, 1, 1_600))).steps) for key in keys]
    assert woken == [1, 0, 1]


async def test_an_event_with_too_much_in_it_is_compared_wait_by_wait(world: World) -> None:
    first, second = await world.start(), await world.start()
    await world.wait(first, a_wait("w", "event", "paid", correlation=correlation("data.user", 7)))
    await world.wait(second, a_wait("w", "event", "paid", correlation=correlation("data.user", 8)))
    await world.submit(SendEvents((an_event(correlations=None),), 1_500))
    assert len((await world.submit(Adopt(first, 1, 1_600))).steps) == 1
    assert len((await world.submit(Adopt(second, 1, 1_600))).steps) == 0


async def test_what_an_event_gives_reads_back_as_the_event(world: World) -> None:
    from agentflow.clock import to_datetime
    from agentflow.events import Event

    key = await world.start()
    await world.wait(key, a_wait("w", "event", 'quo"te/ü'))
    event = an_event('quo"te/ü', "e-1", data='{"n":[1,null]}')
    await world.submit(SendEvents((event,), 1_500))
    [step] = (await world.submit(Adopt(key, 1, 1_600))).steps
    assert Event.model_validate_json(step.output) == Event(
        name='quo"te/ü', data={"n": [1, None]}, id="e-1", ts=to_datetime(1_400)
    )


async def test_a_wait_that_looks_back_takes_the_earliest_match_but_not_its_own_trigger(world: World) -> None:
    seven = correlation("data.user", 7)
    for n, received_at in enumerate((1_000, 1_200, 1_300)):
        data = '{"user":7}' if n != 1 else '{"user":8}'
        await world.submit(
            SendEvents((an_event(event_id=f"e{n}", received_at=received_at, data=data),), 1_500)
        )
    key = await world.start(event_id="e0")
    wait = a_wait("w", "event", "paid", correlation=seven)
    outcome = await world.wait(key, wait, seq=2, lookback_from=900)
    assert isinstance(outcome, Exists)
    assert '"e2"' in (outcome.step.output or "")
    assert await world.wait(key, a_wait("v", "event", "paid"), lookback_from=1_301) == Waits(9_000)


async def test_wait_and_send_of_one_batch_find_each_other(world: World) -> None:
    key = await world.start()
    wait = asyncio.ensure_future(world.wait(key, a_wait("w", "event", "paid")))
    await asyncio.sleep(0)
    send = world.store.submit(SendEvents((an_event(),), 1_400, key))
    assert await wait == Waits(9_000)
    await send
    assert len((await world.submit(Adopt(key, 1, 1_600))).steps) == 1


async def test_wait_with_a_condition_and_send_of_one_batch_find_each_other(world: World) -> None:
    key = await world.start()  # its input is {"n": 1}
    waits = [
        a_wait(f"w{n}", "event", "paid", condition=f"async.data.user == event.data.n + {n}") for n in (6, 7)
    ]
    registered = [asyncio.ensure_future(world.wait(key, wait)) for wait in waits]
    await asyncio.sleep(0)
    await world.store.submit(SendEvents((an_event(),), 1_400, key))  # its data is {"user": 7}
    assert [await answer for answer in registered] == [Waits(9_000), Waits(9_000)]
    assert [step.key for step in (await world.submit(Adopt(key, 1, 1_600))).steps] == ["w6"]


async def test_an_event_that_meets_a_condition_where_there_is_no_cel_fails_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await world.start()
    await world.wait(key, a_wait("w", "event", "paid", condition="async.data.user == 7"))
    monkeypatch.setitem(sys.modules, "cel_expr_python", None)
    expressions._compiled.cache_clear()
    names = ("before", "paid", "after")
    sent = [
        world.store.submit(SendEvents((an_event(name, f"{key.run_id}-{name}"),), 1_400)) for name in names
    ]
    answers = await asyncio.gather(*sent, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Sent, ConfigurationError, Sent]
    assert await world.store.queries.get_event(f"{key.run_id}-paid") is None
    assert await world.store.queries.get_event(f"{key.run_id}-after") is not None


async def test_a_cancelled_run_s_waits_are_gone(world: World) -> None:
    key = await world.start()
    await world.wait(key, a_wait())
    await world.submit(Suspend(key, 0, Status.WAITING, 9_000))
    await world.submit(CancelRun(key.run_id, None, 1_400))
    assert await world.submit(a_signal()) == NobodyWaits()


async def test_no_signal_is_lost_between_many_waits_and_suspends(world: World) -> None:
    """Senders race runs that register, look and suspend; every run gets its one signal."""

    async def receive(n: int) -> str:
        key = await world.start()
        await world.wait(key, a_wait(topic=f"go-{n}", deadline=NEVER))
        await world.submit(Suspend(key, 0, Status.WAITING, NEVER))
        return key.run_id

    async def send(n: int) -> None:
        async def is_delivered() -> bool:
            answer = await world.submit(SendSignal(f"s-{n}", f"go-{n}", "1", 1_500))
            return isinstance(answer, Delivered)

        await until(is_delivered)

    count = 40
    runs = await asyncio.gather(*(receive(n) for n in range(count)), *(send(n) for n in range(count)))
    ended = set()
    for run_id in runs[:count]:
        status = await world.store.queries.get_status(run_id)
        ended.add(status)
        assert status in ("queued", "running")
    claimed = await world.claim(limit=count)
    taken = {run.key.run_id for run in claimed if [step.key for step in run.steps] == ["w"]}
    running = {run_id for run_id, mail, _ in await world.store.list_mail(world.worker) if mail == 1}
    assert taken | running == set(runs[:count])
