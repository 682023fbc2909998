"""PostgreSQL finds a run by its id, also while it believes that there are hardly any.

A plan is made for a connection once, perhaps when the tables were empty. An index of what runs now looked cheaper then,
and each step read all of it: with 500 runs in memory a batch of steps took ten times as long.
"""

from __future__ import annotations

from typing import Any

import pytest

from agentflow.store import postgres_reclaim, postgres_vectors
from agentflow.store import statements as sql
from agentflow.store import statements_flow as flow_sql
from agentflow.store import statements_workers as worker_sql
from agentflow.store.postgres_connection import connect

OF_ALL = ("agentflow_run_owner", "agentflow_run_claim", "agentflow_run_blocked", "agentflow_approval_status")
"""Indexes of what may be any number of rows."""

STATEMENTS: dict[str, str] = {
    "a step": postgres_vectors._COMMIT_STEP,
    "steps": postgres_vectors._COMMIT_STEPS,
    "an end": postgres_vectors._FINISH_RUN,
    "ends": postgres_vectors._FINISH_RUNS,
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
}


@pytest.mark.parametrize("what", STATEMENTS)
async def test_an_empty_table_s_plan_goes_by_the_key(postgres_ready: str, what: str) -> None:
    connection = await connect(postgres_ready, plans_once=True)
    try:
        plan = await _plan(connection, STATEMENTS[what])
    finally:
        await connection.close()
    assert not [index for index in OF_ALL if index in plan], plan


async def _plan(connection: Any, statement: str) -> str:
    prepared = await connection.prepare(statement)
    nulls = ", ".join(["NULL"] * len(prepared.get_parameters()))
    await connection.execute(f"PREPARE tried AS {statement}")
    rows = await connection.fetch(f"EXPLAIN EXECUTE tried({nulls})" if nulls else "EXPLAIN EXECUTE tried")
    return "\n".join(row[0] for row in rows)
