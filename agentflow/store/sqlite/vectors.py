"""What SQLite does for a whole batch by a few statements: starts, steps, finishes, and what runs write beside them.

Every statement gives the GIL away and may have to wait for it, so there are few, however many operations. Called inside
the writer's transaction: what is read here still holds when it is written.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from agentflow.clock import NEVER
from agentflow.store.hints import HintKind
from agentflow.store.operation_types import AppendStream, CommitStep, Finish, StartRun, WriteModelCall
from agentflow.store.outcome_types import Done, Started
from agentflow.store.rows import StepRow, table_of
from agentflow.store.statements.core import INSERT_CHUNK, UPSERT_MODEL_CALL
from agentflow.store.statements.statement import Statement
from agentflow.store.stored_types import Json, NewRun, RunKey, Status
from agentflow.store.transaction import Transaction

STEP_COLUMNS = tuple(column.key for column in table_of(StepRow).columns)

_LARGEST_CHUNK = 256
_STATE = "owner, epoch, status, mail, cancel_at IS NOT NULL, crash_count, parent_id, parent_key"
_READ_STATE = f"SELECT {_STATE} FROM agentflow_run WHERE id = ?"
# One row, and so one turn of the GIL, however many runs.
_READ_STATES = f"""
    SELECT json_group_object(id, json_array({_STATE})) FROM agentflow_run WHERE id IN (SELECT value FROM json_each(?))
"""
_RESET_CRASHES = "UPDATE agentflow_run SET crash_count = 0 WHERE id = ?"
_INSERT_RUN = (
    """
    INSERT INTO agentflow_run
        (id, app, function, status, ready_at, owner, epoch, mail, crash_count, depth, version, parent_id, parent_key,
         root_id, rerun_of, created_at, started_at)
    VALUES """,
    "(?, ?, ?, ?, ?, ?, ?, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?)",
)
_INSERT_PAYLOAD = ("INSERT INTO agentflow_run_io (run_id, input, trigger, tags) VALUES ", "(?, ?, ?, ?)")
_INSERT_STEP = (
    f"INSERT INTO agentflow_step ({', '.join(STEP_COLUMNS)}) VALUES ",
    f"({', '.join('?' * len(STEP_COLUMNS))})",
)
_INSERT_EVENT = "INSERT INTO agentflow_event_run (event_id, run_id) VALUES (?, ?) ON CONFLICT DO NOTHING"
_END_RUN = f"""
    UPDATE agentflow_run
    SET status = ?, ready_at = {NEVER}, owner = NULL, blocked_on = NULL, reason = ?, ended_at = ? WHERE id = ?
"""
_SET_RESULT = "UPDATE agentflow_run_io SET output = ?, error = ?, parent_error = ? WHERE run_id = ?"
_READ_WAITS = "SELECT run_id, kind FROM agentflow_wait WHERE run_id IN (SELECT value FROM json_each(?))"
_READ_WAITS_OF_ONE = "SELECT run_id, kind FROM agentflow_wait WHERE run_id = ?"
_DELETE_WAITS = "DELETE FROM agentflow_wait WHERE run_id = ?"
_CLOSE_APPROVALS = """
    UPDATE agentflow_approval SET status = 'cancelled', decided_at = ? WHERE run_id = ? AND status = 'pending'
"""


class State(NamedTuple):
    """What the fence reads of a run."""

    owner: str | None
    epoch: int
    status: int
    mail: int
    cancel: int
    crash_count: int
    parent_id: str | None
    parent_key: str | None


def start_runs(
    connection: sqlite3.Connection,
    tx: Transaction,
    starts: Sequence[StartRun],
    paused: frozenset[tuple[str, str]],
) -> list[Started | None]:
    """Insert these runs; `None` for those of a chunk with one that is there already."""
    outcomes: list[Started | None] = []
    for chunk in _chunks(starts):
        runs: list[Any] = []
        payloads: list[Any] = []
        started: list[Started | None] = []
        for run, now, owner in chunk:
            if owner not in tx.alive or (run.app, run.function) in paused:
                owner = None
            epoch = 0 if owner is None else 1
            runs += _stored_run(run, owner, epoch, now)
            payloads += (run.id, run.input, run.trigger, _stored_tags(run.tags))
            started.append(Started(run.id, created=True, epoch=epoch))
        try:
            connection.execute(_rows(_INSERT_RUN, len(chunk)), runs)
        except sqlite3.IntegrityError:
            outcomes += [None] * len(chunk)  # the statement undid itself
            continue
        connection.execute(_rows(_INSERT_PAYLOAD, len(chunk)), payloads)
        events = [(start.run.event_id, start.run.id) for start in chunk if start.run.event_id is not None]
        if events:
            connection.executemany(_INSERT_EVENT, events)
        if any(each is not None and each.epoch == 0 for each in started):
            tx.tell(HintKind.READY)
        outcomes += started
    return outcomes


def write_asides(
    connection: sqlite3.Connection, tx: Transaction, operations: Sequence[WriteModelCall | AppendStream]
) -> list[Done | None]:
    """Write these rows of the ledger and pieces of streams; `None` for those of runs that are not ours."""
    states = _read_states(connection, [operation.run.run_id for operation in operations])
    outcomes: list[Done | None] = []
    calls: list[dict[str, Any]] = []
    chunks: list[dict[str, Any]] = []
    for operation in operations:
        run_id = operation.run.run_id
        state = states.get(run_id)
        if state is None or not _may_write(tx, operation.run, state):
            outcomes.append(None)
            continue
        outcomes.append(Done(state.mail, bool(state.cancel)))
        if isinstance(operation, WriteModelCall):
            calls.append({"run_id": run_id, **operation.call._asdict()})
        else:
            chunks += [{"run_id": run_id, **chunk._asdict()} for chunk in operation.chunks]
            tx.tell(HintKind.STREAM, run_id)
    write_each(connection, UPSERT_MODEL_CALL, calls)
    write_each(connection, INSERT_CHUNK, chunks)
    return outcomes


def commit_steps(
    connection: sqlite3.Connection, tx: Transaction, operations: Sequence[CommitStep]
) -> list[Done | None]:
    """Insert these steps, and how their model calls have ended; `None` for those that are not ours, and of a chunk with
    one that is there already."""
    states = _read_states(connection, [operation.run.run_id for operation in operations])
    outcomes: list[Done | None] = [None] * len(operations)
    passed = []
    for index, operation in enumerate(operations):
        state = states.get(operation.run.run_id)
        if state is not None and _may_write(tx, operation.run, state):
            passed.append(index)
    crashed: set[str] = set()
    calls: list[dict[str, Any]] = []
    for chunk in _chunks(passed):
        values: list[Any] = []
        for index in chunk:
            values.append(operations[index].run.run_id)
            values += operations[index].step
        try:
            connection.execute(_rows(_INSERT_STEP, len(chunk)), values)
        except sqlite3.IntegrityError:
            continue  # the statement undid itself
        for index in chunk:
            run_id = operations[index].run.run_id
            state = states[run_id]
            outcomes[index] = Done(state.mail, bool(state.cancel))
            if state.crash_count > 0:
                crashed.add(run_id)
            call = operations[index].model_call
            if call is not None:
                calls.append({"run_id": run_id, **call._asdict()})
    write_each(connection, UPSERT_MODEL_CALL, calls)
    connection.executemany(_RESET_CRASHES, [(run_id,) for run_id in crashed])
    return outcomes


def finish_runs(
    connection: sqlite3.Connection, tx: Transaction, operations: Sequence[Finish]
) -> tuple[list[Done | None], list[tuple[str, str, Finish]]]:
    """End these runs, `None` for those that are not ours; and who waits for an end: (parent_id, parent_key, whose)."""
    states = _read_states(connection, [operation.run.run_id for operation in operations])
    outcomes: list[Done | None] = [None] * len(operations)
    ended: dict[str, Finish] = {}
    parents: list[tuple[str, str, Finish]] = []
    for index, operation in enumerate(operations):
        state = states.get(operation.run.run_id)
        if state is None or not _may_write(tx, operation.run, state):
            continue
        outcomes[index] = Done(state.mail, bool(state.cancel))
        ended[operation.run.run_id] = operation
        if state.parent_id is not None and state.parent_key is not None:
            parents.append((state.parent_id, state.parent_key, operation))
    if not ended:
        return outcomes, []
    connection.executemany(
        _END_RUN, [(int(op.status), op.reason, op.now, run_id) for run_id, op in ended.items()]
    )
    results = [(op.output, op.error, op.parent_error, run_id) for run_id, op in ended.items()]
    connection.executemany(_SET_RESULT, [result for result in results if result[:3] != (None, None, None)])
    _end_waits(connection, ended)
    for run_id in ended:
        tx.tell(HintKind.ENDED, run_id)
    return outcomes, parents


def write_each(
    connection: sqlite3.Connection, statement: Statement, params: Iterable[Mapping[str, Any]]
) -> None:
    """Carry a statement out once for each of the params; nobody asks for what it gives."""
    text, arguments = statement.sqlite
    if "RETURNING" not in text:
        connection.executemany(text, map(arguments, params))
        return
    # From Python 3.12 on, `executemany` stumbles over the rows that it would have to drop.
    for each in params:
        connection.execute(text, arguments(each)).fetchall()


def _may_write(tx: Transaction, key: RunKey, state: State) -> bool:
    return (
        state.owner == key.worker_id
        and state.epoch == key.epoch
        and state.status == Status.RUNNING
        and key.worker_id in tx.alive
    )


def _end_waits(connection: sqlite3.Connection, ended: Mapping[str, Finish]) -> None:
    # Hardly a run that has returned still waits.
    if len(ended) == 1:
        waits = connection.execute(_READ_WAITS_OF_ONE, [*ended]).fetchall()
    else:
        waits = connection.execute(_READ_WAITS, [json.dumps(list(ended))]).fetchall()
    for run_id in {run_id for run_id, _ in waits}:
        connection.execute(_DELETE_WAITS, [run_id])
    for run_id in {run_id for run_id, kind in waits if kind == "approval"}:
        connection.execute(_CLOSE_APPROVALS, (ended[run_id].now, run_id))


def _read_states(connection: sqlite3.Connection, run_ids: Sequence[str]) -> Mapping[str, State]:
    if len(run_ids) == 1:
        rows = connection.execute(_READ_STATE, run_ids).fetchall()
        return {run_ids[0]: State(*rows[0])} if rows else {}
    [(text,)] = connection.execute(_READ_STATES, [json.dumps(list(set(run_ids)))]).fetchall()
    return {run_id: State(*state) for run_id, state in json.loads(text).items()}


def _stored_run(run: NewRun, owner: str | None, epoch: int, now: int) -> tuple[Any, ...]:
    status = Status.QUEUED if owner is None else Status.RUNNING
    parent = (run.parent_id, run.parent_key, run.root_id)
    begun_at = None if owner is None else now
    own = (run.id, run.app, run.function, int(status), run.ready_at, owner, epoch, run.depth, run.version)
    return (*own, *parent, run.rerun_of, run.created_at, begun_at)


def _stored_tags(tags: Sequence[str]) -> Json | None:
    return json.dumps(tags, ensure_ascii=False) if tags else None


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Parts whose sizes are powers of two, so that there are few different statements."""
    first = 0
    while left := len(items) - first:
        size = min(_LARGEST_CHUNK, 1 << (left.bit_length() - 1))
        yield items[first : first + size]
        first += size


@cache
def _rows(insert: tuple[str, str], count: int) -> str:
    """An INSERT of that many rows."""
    begin, row = insert
    return f"{begin}{','.join([row] * count)}"
