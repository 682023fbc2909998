"""PostgreSQL finds a run by its id, also while it believes that there are hardly any.

A plan is made for a connection once, perhaps when the tables were empty. An index of what runs now looked cheaper then,
and each step read all of it: with 500 runs in memory a batch of steps took ten times as long.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from agentflow.store.postgres import connection as postgres_connection
from agentflow.store.postgres import reclaim as postgres_reclaim
from agentflow.store.postgres import vectors as postgres_vectors
from agentflow.store.postgres.connection import connect
from agentflow.store.postgres.schema import migrate
from agentflow.store.statements import budgets as budget_sql
from agentflow.store.statements import core as sql
from agentflow.store.statements import flow as flow_sql
from agentflow.store.statements import workers as worker_sql
from tests.store.support import World, make_store, with_worker

OF_ALL = (
    "agentflow_run_owner",
    "agentflow_run_claim",
    "agentflow_run_blocked",
    "agentflow_approval_status",
    "agentflow_budget_ends",
    "Seq Scan on agentflow_budget",
    "Seq Scan on agentflow_model_call",
)
"""Indexes of what may be any number of rows; and no index at all."""

STATEMENTS: dict[str, str] = {
    "a step": postgres_vectors._COMMIT_STEP,
    "steps": postgres_vectors._COMMIT_STEPS,
    "an end": postgres_vectors._FINISH_RUN,
    "ends": postgres_vectors._FINISH_RUNS,
    "a row of the ledger": postgres_vectors._WRITE_CALL,
    "an answer": postgres_vectors._COMMIT_ANSWER,
    "which runs are ours": postgres_vectors._OWNED,
    "a start": postgres_vectors._START_RUN,
    "starts": postgres_vectors._START_RUNS,
    "a signal": postgres_vectors._SEND_SIGNAL,
    "taken up again": postgres_reclaim._RECLAIM,
    "suspended": sql.SUSPEND_RUN.postgres.sql,
    "released": sql.RELEASE_RUN.postgres.sql,
    "woken": sql.WAKE_RUN.postgres.sql,
    "read": sql.READ_RUN.postgres.sql,
    "an approval is closed": sql.CLOSE_APPROVAL.postgres.sql,
    "a run's approvals are closed": sql.CLOSE_APPROVALS.postgres.sql,
    "taken from its owner": worker_sql.TAKE_FROM_OWNER.postgres.sql,
    "runs begin": flow_sql.BEGIN_RUNS.postgres.sql,
    "what a call counts for": budget_sql.READ_CHARGES.postgres.sql,
    "a budget is read": budget_sql.READ_BUDGET.postgres.sql,
    "a budget is moved": budget_sql.MOVE_BUDGET.postgres.sql,
}


@pytest.fixture
async def world(postgres_ready: str) -> AsyncIterator[World]:
    store = make_store(postgres_ready)
    await store.open()
    yield await with_worker(store)
    await store.close()


async def test_the_plans_of_a_new_database_go_by_the_keys(postgres_url: str) -> None:
    await migrate(postgres_url)
    connection = await connect(postgres_url, plans_once=True)
    try:
        plans = {what: await _plan(connection, statement) for what, statement in STATEMENTS.items()}
    finally:
        await connection.close()
    assert {what: plan for what, plan in plans.items() if any(index in plan for index in OF_ALL)} == {}


async def test_a_connection_that_writes_plans_again_after_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, told = await world.start(), list[str]()
    execute = asyncpg.Connection.execute

    async def recorded(self: Any, query: str, *args: Any, **kwargs: Any) -> Any:
        told.append(query)
        return await execute(self, query, *args, **kwargs)

    monkeypatch.setattr(asyncpg.Connection, "execute", recorded)
    await world.step(key, "a", 1)
    assert "DISCARD PLANS" not in told
    monkeypatch.setattr(postgres_connection, "PLANNED_FOR_SECONDS", 0.0)
    writer: Any = world.store._writer  # type: ignore[attr-defined]
    writer._backend._connection._plan_again_at = 0.0
    await world.step(key, "b", 2)
    await world.step(key, "c", 3)
    assert told.count("DISCARD PLANS") == 2
    assert len((await world.store.queries.list_steps(key.run_id)).data) == 3


async def _plan(connection: Any, statement: str) -> str:
    prepared = await connection.prepare(statement)
    nulls = ", ".join(["NULL"] * len(prepared.get_parameters()))
    await connection.execute(f"PREPARE tried AS {statement}")
    rows = await connection.fetch(f"EXPLAIN EXECUTE tried({nulls})" if nulls else "EXPLAIN EXECUTE tried")
    await connection.execute("DEALLOCATE tried")
    return "\n".join(row[0] for row in rows)
