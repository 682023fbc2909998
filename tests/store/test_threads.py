"""Turns on a thread and marks of effects, as operations: once each, whoever plays them again or beside each other."""

from __future__ import annotations

import asyncio

from agentflow.store.operation_types import (
    BeginTurn,
    CancelRun,
    EndTurn,
    Finish,
    ForgetThread,
    MarkEffect,
    Suspend,
    TurnEnd,
    UnmarkEffect,
)
from agentflow.store.outcome_types import (
    AlreadyMarked,
    Done,
    Exists,
    Fenced,
    Forgotten,
    ThreadTaken,
    TurnBegun,
)
from agentflow.store.stored_types import RunKey, Status
from tests.store.support import APP, World, a_step, make_store, with_worker

KEY = "chat#0/thread"


def begin(run: RunKey, *, key: str = KEY, now: int = 1_000, thread: str = "t") -> BeginTurn:
    return BeginTurn(run, APP, thread, key, now)


def end(run: RunKey, *said: str, key: str = KEY, seq: int = 5, **changes: object) -> EndTurn:
    messages = tuple(("user", f'"{text}"') for text in said)
    turn = TurnEnd(APP, "t", key, messages)._replace(**changes)  # type: ignore[arg-type]
    return EndTurn(run, a_step(f"{key}/end", seq), turn)


async def said(world: World) -> list[tuple[int, int, str]]:
    page = await world.store.queries.list_messages(APP, "t")
    return [] if page is None else [(each.n, each.turn, each.data) for each in page.data]


async def test_a_turn_that_is_played_again_is_there_once(world: World) -> None:
    run = await world.start()
    for _ in range(2):
        assert await world.submit(begin(run)) == TurnBegun(0, 0, None, ())
    assert type(await world.submit(end(run, "a", "b"))) is Done
    assert type(await world.submit(end(run, "a", "b"))) is Exists
    assert await said(world) == [(0, 0, '"a"'), (1, 0, '"b"')]
    other = await world.start()
    assert await world.submit(begin(other)) == TurnBegun(2, 0, None, ('"a"', '"b"'))


async def test_of_many_at_once_one_has_the_thread_and_the_others_know_whose_it_is(
    world: World, ready_url: str
) -> None:
    stores = [world]
    try:
        for _ in range(2):
            store = make_store(ready_url)
            await store.open()
            stores.append(await with_worker(store))
        runs = [(each, await each.start()) for each in stores for _ in range(8)]
        left = dict(enumerate(runs))
        turns: list[int] = []
        while left:
            answers = await asyncio.gather(*(each.submit(begin(run)) for each, run in left.values()))
            begun = [place for place, answer in zip(left, answers, strict=True) if type(answer) is TurnBegun]
            [first] = begun
            owner = left[first][1].run_id
            taken = [answer for answer in answers if isinstance(answer, ThreadTaken)]
            assert len(taken) == len(left) - 1
            assert {answer.run_id for answer in taken} <= {owner}
            each, run = left.pop(first)
            turns.append(first)
            assert type(await each.submit(end(run, f"{first}"))) is Done
        assert sorted(turns) == list(range(len(runs)))
        assert [text for _, _, text in await said(world)] == [f'"{place}"' for place in turns]
    finally:
        for each in stores[1:]:
            await each.store.close()


async def test_who_waits_is_woken_by_the_end_and_asks_later_each_time(world: World) -> None:
    first, second = await world.start(), await world.start()
    await world.submit(begin(first))
    asked = [await world.submit(begin(second, now=1_000 + now)) for now in (0, 5_000_000, 90_000_000)]
    assert [answer.at - 1_000 for answer in asked] == [1_000_000, 10_000_000, 120_000_000]
    await world.submit(Suspend(second, 0, Status.SLEEPING, 99_000_000))
    assert await world.claim(now=2_000) == []
    await world.submit(end(first, "a"))
    claimed = await world.claim_one(now=2_000)
    assert claimed.key.run_id == second.run_id
    assert type(await world.submit(begin(claimed.key))) is TurnBegun


async def test_the_thread_is_free_when_the_run_that_has_it_has_ended(world: World) -> None:
    runs = [await world.start() for _ in range(4)]
    for run in runs:
        await world.submit(begin(run))
    failed = Finish(runs[0], Status.FAILED, None, "{}", None, 2_000, has_parent=False)
    assert type(await world.submit(failed)) is Done
    await world.submit(Suspend(runs[1], 0, Status.SLEEPING, 99_000_000))
    await world.submit(CancelRun(runs[1].run_id, None, 2_000))
    assert isinstance(await world.submit(begin(runs[3])), ThreadTaken)
    assert isinstance(await world.submit(begin(runs[2])), TurnBegun)


async def test_a_worker_that_has_lost_the_run_can_neither_begin_nor_end(world: World) -> None:
    run = await world.start()
    await world.submit(begin(run))
    stale = run._replace(epoch=run.epoch - 1)
    for operation in (begin(stale), end(stale, "a"), MarkEffect(stale, "a", 0, 1), UnmarkEffect(stale, "a")):
        assert isinstance(await world.submit(operation), Fenced)
    assert await said(world) == []


async def test_a_summary_counts_from_what_the_turn_began_with(world: World) -> None:
    runs = [await world.start() for _ in range(3)]
    await world.submit(begin(runs[0]))
    await world.submit(end(runs[0], "a", "b", "c", summary="ab", summary_upto=2))
    assert await world.submit(begin(runs[1])) == TurnBegun(3, 2, "ab", ('"c"',))
    # Of a turn that began before somebody else wrote (a rerun) it is not taken, nor one that says less.
    for run, changes in (
        (runs[1], {"expected_n": 1, "summary": "abc", "summary_upto": 3}),
        (runs[2], {"expected_n": 4, "summary": "a", "summary_upto": 1}),
    ):
        await world.submit(end(run, "d", **changes))
    last = await world.start()
    assert await world.submit(begin(last)) == TurnBegun(5, 2, "ab", ('"c"', '"d"', '"d"'))


async def test_a_turn_within_a_turn_is_told_so_and_one_beside_it_is_not(world: World) -> None:
    run = await world.start()
    await world.submit(begin(run))
    child = await world.start(parent_id=run.run_id, parent_key="chat#0/turn0/0:ask", root_id=run.run_id)
    cases = {
        (run, "chat#0/turn0/0:ask/helper#0/thread"): True,
        (run, "chat#1/thread"): False,
        (run, "chat#0/thread@0"): False,
        (child, "helper#0/thread"): True,
        (await world.start(), "chat#0/turn0/0:ask/helper#0/thread"): False,
    }
    for (asker, key), expected in cases.items():
        assert (await world.submit(begin(asker, key=key))).is_deadlock is expected, key


async def test_in_tasks_beside_each_other_only_what_is_of_the_same_task_is_within(world: World) -> None:
    run = await world.start()
    await world.submit(begin(run, key="chat#0/thread@0"))
    for path, expected in (("@0", True), ("@0.1", True), ("@1", False), ("@01", False)):
        key = f"chat#0/turn0/0:ask/helper#0/thread{path}"
        assert (await world.submit(begin(run, key=key))).is_deadlock is expected, key


async def test_a_forgotten_thread_begins_anew(world: World) -> None:
    first, second = await world.start(), await world.start()
    await world.submit(begin(first))
    await world.submit(end(first, "a"))
    await world.submit(begin(second))
    assert await world.submit(ForgetThread(APP, "t")) == Forgotten(1)
    assert await world.submit(ForgetThread(APP, "t")) == Forgotten(None)
    await world.submit(end(second, "b", expected_n=1))
    assert [(n, text) for n, _, text in await said(world)] == [(0, '"b"')]


async def test_an_effect_is_marked_by_one_attempt(world: World) -> None:
    run = await world.start()
    for _ in range(2):
        assert type(await world.submit(MarkEffect(run, "pay", 0, 1_000))) is Done
    assert await world.submit(MarkEffect(run, "pay", 1, 2_000)) == AlreadyMarked(1_000)
    assert type(await world.submit(MarkEffect(run, "pay/again", 0, 2_000))) is Done
    await world.submit(UnmarkEffect(run, "pay"))
    assert type(await world.submit(MarkEffect(run, "pay", 1, 3_000))) is Done
    # The same attempt in another life of the run is another one.
    await world.submit(Suspend(run, 0, Status.SLEEPING, 2_000))
    claimed = await world.claim_one(now=3_000)
    assert await world.submit(MarkEffect(claimed.key, "pay", 1, 4_000)) == AlreadyMarked(3_000)
