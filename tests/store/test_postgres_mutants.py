"""Each of PostgreSQL's protections taken out once: the hand-stepped test of it has to fail then.

The simulation runs on SQLite, whose writers exclude each other, and cannot see these.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from agentflow.store.operation_types import Adopt
from agentflow.store.operations import dispatch as operations
from agentflow.store.operations.delivery import adopt_unread
from agentflow.store.operations.workers import Claim, claim
from agentflow.store.outcome_types import Adopted, Fenced
from agentflow.store.postgres import vectors as postgres_vectors
from agentflow.store.statements import core as sql
from agentflow.store.statements import workers as worker_sql
from agentflow.store.statements.statement import Compiled
from agentflow.store.transaction import Transaction, Work, fence, stored_step
from tests.store import test_postgres as races
from tests.store.support import World

Connections = tuple[races.Connection, races.Connection]

world = races.world
by_hand = races.by_hand


def changed(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


async def test_a_fence_without_key_share_is_caught_by_the_reaper_s_test(
    world: World, by_hand: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(races, "FENCE", changed(races.FENCE, ("FOR KEY SHARE OF w", "")))
    with pytest.raises(AssertionError, match="UPDATE 1"):
        await races.test_the_reaper_leaves_a_worker_whose_batch_is_under_way(world, by_hand)


async def test_a_batch_without_key_share_is_caught_by_the_test_of_the_fenced_batch(
    world: World, by_hand: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_COMMIT_STEPS", "_COMMIT_STEP"):
        unlocked = changed(getattr(postgres_vectors, name), ("FOR KEY SHARE OF w", ""))
        monkeypatch.setattr(postgres_vectors, name, unlocked)
    waited: list[bool] = []

    async def until_it_is_committed(watcher: races.Connection) -> None:
        # It waits for nobody: its step is there while the reaper still holds the row.
        for _ in range(2_000):
            waited.append(bool(await watcher.fetchval("SELECT count(*) FROM agentflow_step")))
            if waited[-1]:
                return
            await asyncio.sleep(0.005)

    monkeypatch.setattr(races, "_until_someone_waits", until_it_is_committed)
    with pytest.raises(AssertionError, match="Fenced"):
        await races.test_a_batch_that_waited_for_the_reaper_is_fenced(world, by_hand)
    assert waited[-1], "the mutant waited too"


@pytest.mark.parametrize("lock", ["", "FOR SHARE", "FOR NO KEY UPDATE SKIP LOCKED"])
async def test_a_reaper_without_for_update_is_caught_by_its_test(
    world: World, by_hand: Connections, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    """A plain UPDATE goes past KEY SHARE, and so does every weaker lock."""
    monkeypatch.setattr(races, "_REAP", changed(races._REAP, ("FOR UPDATE SKIP LOCKED", lock)))
    with pytest.raises(AssertionError, match="UPDATE 1"):
        await races.test_the_reaper_leaves_a_worker_whose_batch_is_under_way(world, by_hand)


async def test_a_journal_read_in_the_claim_s_statement_is_caught_by_the_claim_s_test(
    world: World, by_hand: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = ", ".join(f"s.{column.key}" for column in sql.STEP_COLUMNS)
    steps = (
        f"(SELECT json_agg(json_build_array(s.run_id, {columns})) FROM agentflow_step s "
        "WHERE s.run_id = agentflow_run.id) AS journal"
    )
    text, arguments = worker_sql.CLAIM_RUNS.postgres
    with_journal = changed(text, ("agentflow_run.blocked_on", f"agentflow_run.blocked_on, {steps}"))

    class OneStatement:
        only_postgres = False
        postgres = Compiled(with_journal, arguments)

    def claim_at_once(tx: Transaction, op: Claim) -> Work[Any]:
        work = claim(tx, op)
        journal: list[Any] = []
        statement, params = next(work)
        try:
            while True:
                rows = yield statement, params
                if statement is worker_sql.READ_JOURNALS_OF:
                    rows = [*rows[:-1], journal]
                if isinstance(statement, OneStatement):
                    journal += [step for row in rows for step in json.loads(row[-1] or "[]")]
                    rows = [tuple(row)[:-1] for row in rows]
                statement, params = work.send(rows)
        except StopIteration as stop:
            return stop.value

    monkeypatch.setattr(worker_sql, "CLAIM_RUNS", OneStatement())
    monkeypatch.setitem(operations._LOGIC, Claim, claim_at_once)
    with pytest.raises(AssertionError, match=r"\[\] == \['w'\]"):
        await races.test_a_signal_delivered_while_a_claim_ran_is_in_its_journal(world, by_hand)


async def test_mail_read_last_is_caught_by_the_adoption_s_test(
    world: World, by_hand: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    def adopt_mail_last(tx: Transaction, op: Adopt) -> Work[Adopted | Fenced]:
        unread = yield sql.READ_UNREAD, {"run": op.run.run_id, "first": 0, "beyond": 0}
        state = yield from fence(tx, op.run)
        if isinstance(state, Fenced):
            return state
        steps = yield from adopt_unread(op.run.run_id, [stored_step(row) for row in unread], op.next_seq)
        return Adopted(steps, state.mail, state.cancel)

    monkeypatch.setitem(operations._LOGIC, Adopt, adopt_mail_last)
    with pytest.raises(AssertionError, match=r"\(\(\), 1\) == \(\(\), 0\)"):
        await races.test_mail_is_read_before_the_outcomes_it_counts(world, by_hand)
