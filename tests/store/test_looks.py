"""What somebody who follows a run sees at one look: it changes with all that is told; no more is read than is new."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import asyncpg
import pytest

from agentflow.handles import RunHandle, Watchers
from agentflow.runs import Look, StreamItem
from agentflow.store.operation_types import (
    AppendStream,
    RecordAttempt,
    Release,
    Suspend,
    WithdrawWait,
)
from agentflow.store.statements.reads import FOLLOW
from agentflow.store.stored_types import Chunk, RunKey, Status, StoredAttempt
from tests.store.support import World, a_wait, make_store, with_worker


async def look(world: World, run_id: str, **page: int) -> Look:
    found = await world.store.queries.look(run_id, **page)
    assert found is not None
    return found


async def told(world: World, run_id: str) -> tuple[Any, ...]:
    run = await world.store.queries.get_run(run_id, payloads=False)
    assert run is not None
    return run.status, [(waiting.step_key, waiting.kind) for waiting in run.waiting]


async def test_a_wait_that_takes_the_place_of_another_at_that_instant_is_seen(world: World) -> None:
    """The clock of a test stands still."""
    key = await world.start()
    await world.wait(key, a_wait("first", since=1_300))
    before = await look(world, key.run_id), await told(world, key.run_id)
    await world.submit(WithdrawWait(key, "first", 1_300))
    await world.wait(key, a_wait("second", since=1_300))
    assert await told(world, key.run_id) != before[1]
    assert (await look(world, key.run_id)).standing != before[0].standing


async def test_a_run_that_was_given_back_and_taken_again_is_seen(world: World) -> None:
    """The run is read after the look: it may have been read while it was queued."""
    key = await world.start()
    before = await look(world, key.run_id)
    await world.submit(Release(key, 2_000))
    assert (await world.claim_one(now=2_000)).key.run_id == key.run_id
    after = await look(world, key.run_id)
    assert after.standing != before.standing
    assert (await look(world, key.run_id)).standing == after.standing


async def test_code_that_has_got_further_and_waits_as_it_did_before_is_seen(world: World) -> None:
    """It was to be tried again, and has been: it waits for what it waited for, and for nothing else."""
    key = await world.start()
    await world.wait(key, a_wait("other", deadline=90_000))
    await world.submit(RecordAttempt(key, StoredAttempt("@1", 1, "{}", 5_000, 1_400)))
    await world.submit(Suspend(key, 0, Status.WAITING, 5_000, None))
    before = await look(world, key.run_id), await told(world, key.run_id)
    again = (await world.claim_one(now=6_000)).key
    await world.submit(Suspend(again, 0, Status.WAITING, 90_000, None))
    assert await told(world, key.run_id) != before[1]
    assert (await look(world, key.run_id)).standing != before[0].standing


async def test_what_was_so_for_a_moment_only_is_told_to_be_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait that is registered and withdrawn between two looks leaves no trace in them."""
    key = await world.start()
    queries = world.store.queries
    read = queries.get_run

    async def read_in_between(run_id: str, *, payloads: bool = True) -> Any:
        monkeypatch.setattr(queries, "get_run", read)
        await world.wait(key, a_wait("brief"))
        run = await read(run_id, payloads=payloads)
        await world.submit(WithdrawWait(key, "brief", 1_400))
        return run

    monkeypatch.setattr(queries, "get_run", read_in_between)
    watchers = Watchers(world.store, is_here=lambda run_id: False)
    items = cast(
        AsyncGenerator[StreamItem, None], RunHandle(key.run_id, store=world.store, watchers=watchers).stream()
    )
    async with asyncio.timeout(10):
        told = [(await anext(items)).data["waiting"] for _ in range(2)]
    assert [[waiting["step_key"] for waiting in each] for each in told] == [["brief"], []]
    await items.aclose()


async def say(world: World, key: RunKey, words: int) -> None:
    chunks = [Chunk(seq, "text.delta", "s", 0, '"word"') for seq in range(1, words + 1)]
    await world.submit(AppendStream(key, tuple(chunks)))


async def test_a_look_has_the_first_of_what_is_new(world: World) -> None:
    key = await world.start()
    assert (await look(world, key.run_id)).chunks == []
    await say(world, key, 30)
    found = await look(world, key.run_id, after=7, most=10)
    assert [item.seq for item in found.chunks] == list(range(8, 18))
    assert (found.last_seq, found.is_final) == (30, False)
    assert (await look(world, key.run_id, after=30)).chunks == []
    assert await world.store.queries.look("nobody") is None


async def test_a_look_at_much_text_reads_no_more_than_it_gives(postgres_ready: str) -> None:
    """Each page of a stream begins with one: to read all of it would else take the square of its length."""
    store = make_store(postgres_ready)
    await store.open()
    connection = await asyncpg.connect(postgres_ready)
    try:
        world = await with_worker(store)
        key = await world.start()
        await say(world, key, 3_000)
        await connection.execute("ANALYZE agentflow_stream_chunk")
        await connection.execute("SET enable_seqscan = off")
        sql, arguments = FOLLOW.postgres
        given = arguments({"run": key.run_id, "after": 0, "most": 10})
        told = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", *given)
    finally:
        await connection.close()
        await store.close()

    def most_rows(plan: dict[str, Any]) -> int:
        rows: int = round(plan["Actual Rows"])
        return max(rows, *map(most_rows, plan.get("Plans", [])), 0)

    assert most_rows(json.loads(told)[0]["Plan"]) == 10
