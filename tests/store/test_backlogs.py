"""What a claim looks at: what it takes, and nothing of what it may not take, however much that is."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from agentflow.store.claim_types import FunctionInfo
from agentflow.store.operation_types import PauseFunction, RegisterFunctions
from agentflow.store.postgres import connection as postgres_connection
from agentflow.store.statements import workers as worker_sql
from tests.store.support import APP, FUNCTION, NEVER, World, make_store, with_worker

OTHERS = tuple(f"function-{n}" for n in range(30))
MANY = 3_000


async def test_claims_go_by_ready_time_then_id_across_functions(world: World) -> None:
    chance = random.Random(7)
    functions = (FUNCTION, *OTHERS[:11], "paused")
    due = [(chance.randrange(40), f"r{n:03d}", chance.choice(functions)) for n in range(240)]
    await _pause(world, "paused")
    await asyncio.gather(*(world.queue(id, function=of, ready_at=1_000 + at) for at, id, of in due))
    await world.queue("later", ready_at=2_001)
    expected = [id for _, id, of in sorted(due) if of != "paused"]
    claimed: list[str] = []
    for limit in (1, 7, 100, 3, 100, 100):
        runs = await world.claim(functions=functions, limit=limit)
        claimed += [run.key.run_id for run in runs]
        assert claimed == expected[: len(claimed)]
    assert claimed == expected


async def test_a_function_s_long_queue_that_came_first_is_claimed_first(world: World) -> None:
    """Also where there are more functions than a claim takes runs."""
    await asyncio.gather(
        *(world.queue(f"old-{n:02d}", function=OTHERS[0], ready_at=1_000) for n in range(12))
    )
    await asyncio.gather(*(world.queue(f"new-{of}", function=of, ready_at=1_500) for of in OTHERS))
    runs = await world.claim(functions=OTHERS, limit=5)
    assert [run.key.run_id for run in runs] == [f"old-{n:02d}" for n in range(5)]
    runs = await world.claim(functions=OTHERS, limit=9)
    assert [run.key.run_id for run in runs] == [
        *(f"old-{n:02d}" for n in range(5, 12)),
        *sorted(f"new-{of}" for of in OTHERS)[:2],
    ]


async def test_a_negative_ready_time_is_claimed_too(world: World) -> None:
    """It has priority before the clock's beginning."""
    await world.queue("early", ready_at=-(10**15))
    assert await world.store.next_ready_at(app=APP, functions=[FUNCTION]) == -(10**15)
    assert (await world.claim_one()).key.run_id == "early"


async def test_when_the_next_run_is_due_leaves_out_what_cannot_be_claimed(world: World) -> None:
    await _pause(world, "paused")
    for function, ready_at in (("paused", 1_100), ("unknown", 1_200), (FUNCTION, 1_400), (OTHERS[0], 1_300)):
        await world.queue(function=function, ready_at=ready_at)
    functions = ["paused", FUNCTION, OTHERS[0]]
    assert await world.store.next_ready_at(app=APP, functions=functions) == 1_300
    assert await world.store.next_ready_at(app=APP, functions=["paused"]) is None
    assert await world.store.next_ready_at(app=APP, functions=[]) is None


# ---------------------------------------------------------------------------------------- what it looks at


@pytest.mark.parametrize("statement", ["CLAIM_RUNS", "NEXT_READY"])
async def test_on_sqlite_a_backlog_that_may_not_be_claimed_costs_nothing(
    sqlite_ready: str, statement: str
) -> None:
    """Counted in steps of SQLite's machine."""
    store = make_store(sqlite_ready)
    await store.open()
    world = await with_worker(store)
    await _pause(world, "paused")
    await _execute_a_suspect(world)
    connection = sqlite3.connect(sqlite_ready.removeprefix("sqlite:///"), isolation_level=None)
    try:
        for n in range(3):
            _fill(connection, FUNCTION, 1, crash_count=0, prefix=f"due-{n}", ready_at=10**6 + n)
        text, arguments = getattr(worker_sql, statement).sqlite
        before = _steps(connection, text, arguments(_claiming(world)))
        for function, crash_count in (("paused", 0), ("unknown", 0), (FUNCTION, 2)):
            _fill(connection, function, MANY, crash_count=crash_count, prefix=f"backlog-{function}")
        after = _steps(connection, text, arguments(_claiming(world)))
    finally:
        connection.close()
        await store.close()
    # That there are suspects is worth one look in each function; that a function is paused, one in that.
    assert after < before + 400


@pytest.mark.parametrize("planned", ["never analysed", "analysed while small", "analysed"])
async def test_on_postgresql_a_backlog_that_may_not_be_claimed_costs_nothing(
    pooled: Pooled, planned: str
) -> None:
    """Counted in rows that are looked at, whatever the plan was made for."""
    world, connection = pooled
    await _pause(world, "paused")
    await _execute_a_suspect(world)
    for n in range(3):
        await _fill_postgres(connection, FUNCTION, 1, prefix=f"due-{n}", ready_at=10**6 + n)
    if planned == "analysed while small":
        await connection.execute("VACUUM ANALYZE agentflow_run")
    claims = [await _prepare(connection, name, world) for name in ("CLAIM_RUNS", "NEXT_READY")]
    before = [_rows_seen(await _explain(connection, claim)) for claim in claims]
    for function, crash_count in (("paused", 0), ("unknown", 0), (FUNCTION, 2)):
        await _fill_postgres(
            connection, function, MANY, crash_count=crash_count, prefix=f"backlog-{function}"
        )
    if planned == "analysed":
        await connection.execute("VACUUM ANALYZE agentflow_run")
    plans = [await _explain(connection, claim) for claim in claims]
    assert plans[0]["Plan"]["Actual Rows"] == 3
    for seen, plan in zip(before, plans, strict=True):
        assert _rows_seen(plan) <= seen + 6, plan


async def test_a_plan_that_was_made_for_a_small_table_is_not_kept(
    postgres_ready: str, by_hand: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "PLANNED_FOR_SECONDS", 0.0)
    store: Any = make_store(postgres_ready)
    await store.open()
    world = await with_worker(store)
    await by_hand.execute("VACUUM FULL ANALYZE agentflow_run")
    costs = []
    for count in (1, MANY):
        await _fill_postgres(by_hand, FUNCTION, count, prefix=f"of-{count}", ready_at=NEVER)
        assert await world.claim() == []
        async with store._pool.acquire() as pooled:
            text, arguments = worker_sql.CLAIM_RUNS.postgres
            prepared = "SELECT name FROM pg_prepared_statements WHERE statement = $1"
            call = f"{await pooled.fetchval(prepared, text)}({_values(arguments(_claiming(world)))})"
            costs.append((await _explain(pooled, call))["Plan"]["Total Cost"])
    await store.close()
    assert costs[1] != costs[0], "the second plan was made for the table that has grown"


# ------------------------------------------------------------------------------------------- two at once


async def test_two_that_claim_at_once_get_full_batches_and_lock_nothing_else(
    pooled: Pooled, postgres_ready: str
) -> None:
    world, connection = pooled
    other = await world.other_worker()
    for limit, functions in ((8, OTHERS[:3]), (8, OTHERS[:20])):
        await connection.execute("DELETE FROM agentflow_run")
        ids = [f"r{n:03d}" for n in range(100)]
        for n, id in enumerate(ids):
            await _fill_postgres(
                connection, functions[n * 7 % len(functions)], 1, prefix=id, ready_at=1_000 + n
            )
        text, arguments = worker_sql.CLAIM_RUNS.postgres
        transaction = connection.transaction()
        await transaction.start()
        claiming = _claiming(world, functions=functions, limit=limit)
        held = [row["id"].partition("/")[0] for row in await connection.fetch(text, *arguments(claiming))]
        free = await _free(postgres_ready)
        got = [run.key.run_id for run in await other.claim(functions=functions, limit=limit)]
        rest = [run.key.run_id for run in await other.claim(functions=functions, limit=100)]
        await transaction.rollback()
        assert sorted(held) == ids[:limit]
        assert free == 100 - limit, "what it does not take it does not lock"
        assert [id.partition("/")[0] for id in got] == ids[limit : 2 * limit]
        assert [id.partition("/")[0] for id in rest] == ids[2 * limit :]
        left = [run.key.run_id.partition("/")[0] for run in await world.claim(functions=functions, limit=100)]
        assert left == ids[:limit], "what was passed over is there afterwards"


# --------------------------------------------------------------------------------------------- by hand


Pooled = tuple[World, asyncpg.Connection]


@pytest.fixture
async def pooled(postgres_ready: str) -> AsyncIterator[Pooled]:
    """A worker, and one of the connections by which it claims."""
    store: Any = make_store(postgres_ready)
    await store.open()
    async with store._pool.acquire() as connection:
        yield await with_worker(store), connection
    await store.close()


@pytest.fixture
async def by_hand(postgres_ready: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_ready)
    yield connection
    await connection.close()


async def _pause(world: World, function: str) -> None:
    await world.submit(RegisterFunctions((FunctionInfo(APP, function, "1", "[]", "{}", "{}"),), 1_000))
    await world.submit(PauseFunction(APP, function, 1_100))


async def _execute_a_suspect(world: World) -> None:
    await world.start("suspect")
    path = getattr(world.store, "_path", None)
    statement = "UPDATE agentflow_run SET crash_count = 2 WHERE id = 'suspect'"
    if path is not None:
        connection = sqlite3.connect(path, isolation_level=None, timeout=5)
        connection.execute(statement)
        connection.close()
    else:
        database = await asyncpg.connect(world.store._dsn)  # type: ignore[attr-defined]
        await database.execute(statement)
        await database.close()


def _claiming(
    world: World, *, functions: tuple[str, ...] = (FUNCTION, "paused"), limit: int = 5
) -> dict[str, Any]:
    return {
        "by": world.worker,
        "app": APP,
        "functions": functions,
        "gated": (),
        "now": 10**9,
        "limit": limit,
    }


_INSERT = """
    INSERT INTO agentflow_run
        (id, app, function, status, ready_at, epoch, mail, crash_count, depth, root_id, created_at)
    VALUES ({})
"""


def _fill(
    connection: sqlite3.Connection,
    function: str,
    count: int,
    *,
    crash_count: int,
    prefix: str,
    ready_at: int = 1_000,
) -> None:
    rows = [
        (f"{prefix}/{n:06d}", APP, function, 0, ready_at, 0, 0, crash_count, 0, "root", n)
        for n in range(count)
    ]
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(_INSERT.format(", ".join("?" * 11)), rows)
    connection.execute("COMMIT")


async def _fill_postgres(
    connection: asyncpg.Connection[Any],
    function: str,
    count: int,
    *,
    prefix: str,
    crash_count: int = 0,
    ready_at: int = 1_000,
) -> None:
    rows = [
        (f"{prefix}/{n:06d}", APP, function, 0, ready_at, 0, 0, crash_count, 0, "root", n)
        for n in range(count)
    ]
    await connection.executemany(_INSERT.format(", ".join(f"${n}" for n in range(1, 12))), rows)
    io = "INSERT INTO agentflow_run_io (run_id, input) VALUES ($1, 'null') ON CONFLICT DO NOTHING"
    await connection.executemany(io, [(row[0],) for row in rows])


def _steps(connection: sqlite3.Connection, text: str, arguments: list[Any]) -> int:
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    connection.execute("BEGIN IMMEDIATE")
    connection.set_progress_handler(count, 1)
    connection.execute(text, arguments).fetchall()
    connection.set_progress_handler(None, 0)
    connection.execute("ROLLBACK")
    return steps


async def _prepare(connection: asyncpg.Connection[Any], name: str, world: World) -> str:
    """Plan a statement now; how to execute it later."""
    text, arguments = getattr(worker_sql, name).postgres
    await connection.execute(f"PREPARE {name} AS {text}")
    call = f"{name}({_values(arguments(_claiming(world)))})"
    await _explain(connection, call)
    return call


async def _explain(connection: asyncpg.Connection[Any], call: str) -> Any:
    transaction = connection.transaction()
    await transaction.start()
    answer = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE {call}")
    await transaction.rollback()
    return json.loads(answer)[0]


def _values(arguments: list[Any]) -> str:
    return ", ".join(map(_literal, arguments))


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        return f"ARRAY[{', '.join(map(_literal, value))}]::text[]"
    return str(value) if isinstance(value, int) else f"'{value}'"


def _scans(plan: Any) -> Iterator[Any]:
    """The parts of a plan that read runs."""
    pending = [plan["Plan"]]
    while pending:
        node = pending.pop()
        pending += node.get("Plans", ())
        assert node["Node Type"] != "Seq Scan", node
        if node.get("Index Name", "").startswith("agentflow_run_"):
            yield node


def _rows_seen(plan: Any) -> float:
    return sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in _scans(plan)
    )


async def _free(url: str) -> int:
    """How many claimable runs nobody has locked."""
    connection = await asyncpg.connect(url)
    free = await connection.fetch(
        "SELECT 1 FROM agentflow_run WHERE status IN (0, 2, 3) FOR UPDATE SKIP LOCKED"
    )
    await connection.close()
    return len(free)
