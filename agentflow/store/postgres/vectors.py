"""What PostgreSQL does for a whole batch by one statement: starts, steps, finishes; by three, what runs write beside.

One statement must not change one row twice (of two changes one vanishes), so a plan names each run and step once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from agentflow.clock import NEVER
from agentflow.store.hints import HintKind
from agentflow.store.operation_types import (
    AppendStream,
    CommitStep,
    Finish,
    SendSignal,
    StartRun,
    WriteModelCall,
)
from agentflow.store.operations.messages import signal_output
from agentflow.store.outcome_types import Delivered, Done, Started
from agentflow.store.statements.core import INSERT_CHUNK, UPSERT_MODEL_CALL
from agentflow.store.statements.statement import Statement
from agentflow.store.stored_types import Chunk, ModelCall, NewRun, RunKey, Status
from agentflow.store.transaction import Transaction


class Lease(NamedTuple):
    """A worker of this process."""

    epoch: int
    seconds: float


# Rows are found by their keys. A condition on a status is therefore written so that no index has it (`status + 0`): in
# a table that the server still believes to be small, an index of all that runs, or of all that is pending, looks
# cheaper than the key, and would be read from end to end for each run.

# A lease holds by the database's clock. KEY SHARE keeps the reaper, who locks FOR UPDATE, from the row until this
# transaction ends, and lets heartbeats pass, which do not change the key.
FENCE = """
    SELECT w.id FROM agentflow_worker w JOIN unnest($1::text[], $2::bigint[]) AS mine(id, epoch)
    ON w.id = mine.id AND w.epoch = mine.epoch
    WHERE w.reaped_at IS NULL AND w.lease_until > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
    ORDER BY w.id FOR KEY SHARE OF w
"""

_COMMIT_STEPS = f"""
    WITH me AS MATERIALIZED ({FENCE}),
    given AS MATERIALIZED (
        SELECT * FROM unnest(
            $3::text[], $4::text[], $5::bigint[], $6::text[], $7::bigint[], $8::text[], $9::text[], $10::boolean[],
            $11::text[], $12::text[], $13::int[], $14::bigint[], $15::bigint[]
        ) AS g(run_id, worker_id, epoch, key, seq, kind, name, ok, output, error, attempt, started_at, ended_at)
    ),
    owned AS MATERIALIZED (
        SELECT r.id, r.owner, r.epoch, r.mail, r.cancel_at IS NOT NULL AS cancel, r.crash_count
        FROM agentflow_run r
        JOIN (SELECT DISTINCT run_id, worker_id, epoch FROM given) g
        ON r.id = g.run_id AND r.owner = g.worker_id AND r.epoch = g.epoch AND r.status + 0 = 1
        WHERE g.worker_id IN (SELECT id FROM me)
    ),
    added AS (
        INSERT INTO agentflow_step
            (run_id, key, seq, kind, name, ok, output, error, attempt, started_at, ended_at)
        SELECT g.run_id, g.key, g.seq, g.kind, g.name, g.ok, g.output, g.error, g.attempt, g.started_at, g.ended_at
        FROM given g
        JOIN owned ON owned.id = g.run_id AND owned.owner = g.worker_id AND owned.epoch = g.epoch
        ON CONFLICT DO NOTHING
        RETURNING run_id, key
    ),
    reset AS (
        UPDATE agentflow_run SET crash_count = 0
        WHERE id IN (SELECT id FROM owned WHERE crash_count > 0) AND id IN (SELECT run_id FROM added)
    )
    SELECT added.run_id, added.key, owned.mail, owned.cancel FROM added JOIN owned ON owned.id = added.run_id
"""

# The same for one run, which is what a process without much to do commits: the arguments are no lists.
OWN_LEASE = """
    WITH me AS MATERIALIZED (
        SELECT id FROM agentflow_worker
        WHERE id = $1 AND epoch = $2 AND reaped_at IS NULL
        AND lease_until > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
        FOR KEY SHARE
    )"""
# Only where there is nothing to tell of the run: the lists have an answer for the rest.
_COMMIT_STEP = """
    INSERT INTO agentflow_step (run_id, key, seq, kind, name, ok, output, error, attempt, started_at, ended_at)
    SELECT r.id, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15 FROM agentflow_worker w, agentflow_run r
    WHERE w.id = $1 AND w.epoch = $2 AND w.reaped_at IS NULL
    AND w.lease_until > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
    AND r.id = $3 AND r.owner = $1 AND r.epoch = $4 AND r.status + 0 = 1
    AND r.mail = $5 AND r.cancel_at IS NULL AND r.crash_count = 0
    FOR KEY SHARE OF w
    ON CONFLICT DO NOTHING
"""

_OWNED = f"""
    WITH me AS MATERIALIZED ({FENCE})
    SELECT r.id, r.owner, r.epoch, r.mail, r.cancel_at IS NOT NULL
    FROM unnest($3::text[], $4::text[], $5::bigint[]) AS g(run_id, worker_id, epoch)
    JOIN agentflow_run r ON r.id = g.run_id AND r.owner = g.worker_id AND r.epoch = g.epoch AND r.status + 0 = 1
    WHERE g.worker_id IN (SELECT id FROM me)
"""
_CALL_COLUMNS = ", ".join(ModelCall._fields)
_UPDATE_CALL = f"""
        ON CONFLICT (run_id, key, attempt) DO UPDATE
        SET {", ".join(f"{name} = excluded.{name}" for name in ModelCall._fields if name not in ("key", "attempt"))}
"""
_WRITE_CALL = f"""
    WITH own AS MATERIALIZED (
        SELECT r.id, r.mail, r.cancel_at IS NOT NULL AS cancel FROM agentflow_worker w, agentflow_run r
        WHERE w.id = $1 AND w.epoch = $2 AND w.reaped_at IS NULL
        AND w.lease_until > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
        AND r.id = $3 AND r.owner = $1 AND r.epoch = $4 AND r.status + 0 = 1
        FOR KEY SHARE OF w
    ),
    written AS (
        INSERT INTO agentflow_model_call (run_id, {_CALL_COLUMNS})
        SELECT own.id, {", ".join(f"${n}" for n, _ in enumerate(ModelCall._fields, 5))} FROM own
        {_UPDATE_CALL}
    )
    SELECT mail, cancel FROM own
"""
# A model's answer: its step, the end of its row in the ledger, and what of it was told last. Only where there is
# nothing to tell of the run, as with a lone step.
_COMMIT_ANSWER = f"""
    WITH own AS MATERIALIZED (
        SELECT r.id FROM agentflow_worker w, agentflow_run r
        WHERE w.id = $1 AND w.epoch = $2 AND w.reaped_at IS NULL
        AND w.lease_until > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
        AND r.id = $3 AND r.owner = $1 AND r.epoch = $4 AND r.status + 0 = 1
        AND r.mail = $5 AND r.cancel_at IS NULL AND r.crash_count = 0
        FOR KEY SHARE OF w
    ),
    added AS (
        INSERT INTO agentflow_step (run_id, key, seq, kind, name, ok, output, error, attempt, started_at, ended_at)
        SELECT own.id, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15 FROM own
        ON CONFLICT DO NOTHING RETURNING run_id
    ),
    told AS (
        INSERT INTO agentflow_stream_chunk (run_id, seq, kind, step_key, attempt, data)
        SELECT added.run_id, c.*
        FROM added, unnest($16::bigint[], $17::text[], $18::text[], $19::int[], $20::text[]) AS c
        ON CONFLICT DO NOTHING
    ),
    written AS (
        INSERT INTO agentflow_model_call (run_id, {_CALL_COLUMNS})
        SELECT added.run_id, {", ".join(f"${n}" for n, _ in enumerate(ModelCall._fields, 21))} FROM added
        {_UPDATE_CALL}
    )
    SELECT 1 FROM added
"""

# To the wait that is there and in time; all else needs the lock of the name. The run's row is locked before the wait's,
# as everywhere.
_SEND_SIGNAL = """
    WITH target AS MATERIALIZED (
        SELECT w.run_id, w.key FROM agentflow_wait w JOIN agentflow_run r ON r.id = w.run_id
        WHERE w.kind = 'signal' AND w.topic = $2 AND NOT EXISTS (SELECT 1 FROM agentflow_signal WHERE id = $1)
        FOR UPDATE OF r
    ),
    resolved AS (
        DELETE FROM agentflow_wait w USING target t
        WHERE w.run_id = t.run_id AND w.key = t.key AND w.kind = 'signal' AND w.topic = $2 AND w.deadline > $5
        RETURNING w.run_id, w.key, w.kind, w.name, w.since
    ),
    delivered AS (
        INSERT INTO agentflow_step (run_id, key, seq, kind, name, ok, output, error, attempt, started_at, ended_at)
        SELECT run_id, key, NULL, kind, name, true, $4, NULL, 1, since, $5 FROM resolved ON CONFLICT DO NOTHING
    ),
    sent AS (
        INSERT INTO agentflow_signal (id, name, data, state, run_id, until, sent_at)
        SELECT $1, $2, $3, 1, run_id, NULL, $5 FROM resolved ON CONFLICT DO NOTHING
    )
    UPDATE agentflow_run r SET
        mail = mail + 1,
        crash_count = 0,
        status = CASE WHEN status IN (2, 3) THEN 0 ELSE status END,
        ready_at = CASE WHEN status IN (2, 3) THEN least(ready_at, $5) ELSE ready_at END
    FROM resolved WHERE r.id = resolved.run_id AND r.status < 4 RETURNING r.id, r.status
"""

_START_RUN = f"""
    {OWN_LEASE},
    begun AS MATERIALIZED (
        SELECT id FROM me WHERE NOT EXISTS (
            SELECT 1 FROM agentflow_function f WHERE f.app = $4 AND f.id = $5 AND f.paused_at IS NOT NULL
        )
    ),
    added AS (
        INSERT INTO agentflow_run
            (id, app, function, status, ready_at, owner, epoch, mail, crash_count, depth, version, parent_id,
             parent_key, root_id, rerun_of, created_at, started_at)
        SELECT $3, $4, $5, CASE WHEN b.id IS NULL THEN 0 ELSE 1 END, $6::bigint, b.id,
               CASE WHEN b.id IS NULL THEN 0 ELSE 1 END, 0, 0, $7::int, $8, $9, $10, $11, $12, $13::bigint,
               CASE WHEN b.id IS NOT NULL THEN $14::bigint END
        FROM (SELECT 1) AS one LEFT JOIN begun b ON true
        ON CONFLICT (id) DO NOTHING RETURNING id, epoch
    ),
    payload AS (
        INSERT INTO agentflow_run_io (run_id, input, trigger, tags)
        SELECT id, $15, $16, $17 FROM added ON CONFLICT DO NOTHING
    ),
    of_event AS (
        INSERT INTO agentflow_event_run (event_id, run_id)
        SELECT $18::text, id FROM added WHERE $18::text IS NOT NULL ON CONFLICT DO NOTHING
    )
    SELECT epoch FROM added
"""

_FINISH_RUN = f"""
    {OWN_LEASE},
    ended AS (
        UPDATE agentflow_run r
        SET status = $5::int, ready_at = {NEVER}, owner = NULL, blocked_on = NULL, reason = $8, ended_at = $10
        WHERE r.id = $3 AND r.owner = $1 AND r.epoch = $4 AND r.status + 0 = 1 AND EXISTS (SELECT 1 FROM me)
        RETURNING r.id, r.mail, r.cancel_at IS NOT NULL AS cancel
    ),
    result AS (
        UPDATE agentflow_run_io io SET output = $6, error = $7, parent_error = $9
        FROM ended WHERE io.run_id = ended.id AND coalesce($6, $7, $9) IS NOT NULL
    ),
    gone AS (
        DELETE FROM agentflow_wait w USING ended WHERE w.run_id = ended.id RETURNING w.topic, w.kind
    ),
    closed AS (
        UPDATE agentflow_approval a SET status = 'cancelled', decided_at = $10
        FROM gone WHERE gone.kind = 'approval' AND a.id = gone.topic AND a.status || '' = 'pending'
    )
    SELECT mail, cancel FROM ended
"""

_START_RUNS = f"""
    WITH me AS MATERIALIZED ({FENCE}),
    given AS MATERIALIZED (
        SELECT *, owner IN (SELECT id FROM me) AND NOT EXISTS (
            SELECT 1 FROM agentflow_function f
            WHERE f.app = g.app AND f.id = g.function AND f.paused_at IS NOT NULL
        ) AS begins
        FROM unnest(
            $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::int[], $9::text[], $10::text[],
            $11::text[], $12::text[], $13::text[], $14::bigint[], $15::bigint[], $16::text[], $17::text[],
            $18::text[], $19::text[]
        ) AS g(owner, id, app, function, ready_at, depth, version, parent_id, parent_key, root_id, rerun_of,
               created_at, now, input, trigger, tags, event_id)
    ),
    added AS (
        INSERT INTO agentflow_run
            (id, app, function, status, ready_at, owner, epoch, mail, crash_count, depth, version, parent_id,
             parent_key, root_id, rerun_of, created_at, started_at)
        SELECT id, app, function, CASE WHEN begins THEN 1 ELSE 0 END, ready_at, CASE WHEN begins THEN owner END,
               CASE WHEN begins THEN 1 ELSE 0 END, 0, 0, depth, version, parent_id, parent_key, root_id, rerun_of,
               created_at, CASE WHEN begins THEN now END
        FROM given ORDER BY id
        ON CONFLICT (id) DO NOTHING RETURNING id, epoch
    ),
    payload AS (
        INSERT INTO agentflow_run_io (run_id, input, trigger, tags)
        SELECT g.id, g.input, g.trigger, g.tags FROM given g JOIN added ON added.id = g.id
        ON CONFLICT DO NOTHING
    ),
    of_event AS (
        INSERT INTO agentflow_event_run (event_id, run_id)
        SELECT g.event_id, g.id FROM given g JOIN added ON added.id = g.id WHERE g.event_id IS NOT NULL
        ON CONFLICT DO NOTHING
    )
    SELECT id, epoch FROM added
"""

_FINISH_RUNS = f"""
    WITH me AS MATERIALIZED ({FENCE}),
    given AS MATERIALIZED (
        SELECT * FROM unnest(
            $3::text[], $4::text[], $5::bigint[], $6::int[], $7::text[], $8::text[], $9::text[], $10::text[],
            $11::bigint[]
        ) AS g(run_id, worker_id, epoch, status, output, error, reason, parent_error, now)
        WHERE worker_id IN (SELECT id FROM me)
    ),
    ended AS (
        UPDATE agentflow_run r
        SET status = g.status, ready_at = {NEVER}, owner = NULL, blocked_on = NULL, reason = g.reason, ended_at = g.now
        FROM given g
        WHERE r.id = g.run_id AND r.owner = g.worker_id AND r.epoch = g.epoch AND r.status + 0 = 1
        RETURNING r.id, r.parent_id, r.parent_key, r.mail, r.cancel_at IS NOT NULL AS cancel
    ),
    result AS (
        UPDATE agentflow_run_io io SET output = g.output, error = g.error, parent_error = g.parent_error
        FROM given g JOIN ended ON ended.id = g.run_id
        WHERE io.run_id = g.run_id AND coalesce(g.output, g.error, g.parent_error) IS NOT NULL
    ),
    gone AS (
        DELETE FROM agentflow_wait w USING ended WHERE w.run_id = ended.id RETURNING w.run_id, w.topic, w.kind
    ),
    closed AS (
        UPDATE agentflow_approval a SET status = 'cancelled', decided_at = g.now
        FROM gone JOIN given g ON g.run_id = gone.run_id
        WHERE gone.kind = 'approval' AND a.id = gone.topic AND a.status || '' = 'pending'
    )
    SELECT id, parent_id, parent_key, mail, cancel FROM ended
"""


async def start_runs(
    connection: Any,
    tx: Transaction,
    operations: Sequence[Any],
    which: list[int],
    leases: Mapping[str, Lease],
    outcomes: list[Any],
) -> None:
    """Insert these runs, fence included; outcomes of those that were there already stay `None`."""
    starts: list[StartRun] = [operations[index] for index in which]
    owners = [start.owner for start in starts]
    columns = zip(*(_stored(start.run, start.now) for start in starts), strict=True)
    fences = _fences((owner for owner in owners if owner is not None), leases)
    added = dict(await connection.fetch(_START_RUNS, *fences, owners, *columns))
    for index, start in zip(which, starts, strict=True):
        epoch = added.get(start.run.id)
        if epoch is not None:
            outcomes[index] = Started(start.run.id, created=True, epoch=epoch)
            if epoch == 0:
                tx.tell(HintKind.READY)


async def start_run(
    connection: Any, tx: Transaction, operation: StartRun, leases: Mapping[str, Lease]
) -> Started | None:
    """Insert one run, fence included; `None` when it was there already."""
    run, now, owner = operation
    lease = None if owner is None else leases.get(owner)
    rows = await connection.fetch(
        _START_RUN,
        owner,
        None if lease is None else lease.epoch,
        *_stored(run, now),
    )
    if not rows:
        return None
    if rows[0][0] == 0:
        tx.tell(HintKind.READY)
    return Started(run.id, created=True, epoch=rows[0][0])


async def finish_run(
    connection: Any, tx: Transaction, operation: Finish, leases: Mapping[str, Lease]
) -> Done | None:
    """End one run that nobody waits for, fence included; `None` when it is not ours."""
    run, lease = operation.run, leases.get(operation.run.worker_id)
    if lease is None:
        return None
    rows = await connection.fetch(
        _FINISH_RUN,
        run.worker_id,
        lease.epoch,
        run.run_id,
        run.epoch,
        int(operation.status),
        operation.output,
        operation.error,
        operation.reason,
        operation.parent_error,
        operation.now,
    )
    if not rows:
        return None
    tx.tell(HintKind.ENDED, run.run_id)
    return Done(*rows[0])


async def send_signal(connection: Any, tx: Transaction, operation: SendSignal) -> Delivered | None:
    """Give a signal to the run that waits for it; `None` when none does, or nothing is certain without a lock."""
    op, now = operation, operation.now
    rows = await connection.fetch(_SEND_SIGNAL, op.id, op.name, op.data, signal_output(op.name, op.data), now)
    if not rows:
        return None
    run_id, status = rows[0]
    tx.tell(HintKind.MAIL if status == Status.RUNNING else HintKind.READY, run_id)
    return Delivered(run_id)


async def write_call(connection: Any, operation: WriteModelCall, leases: Mapping[str, Lease]) -> Done | None:
    """Write one row of the ledger, fence included; `None` when the run is not ours."""
    run, lease = operation.run, leases.get(operation.run.worker_id)
    if lease is None:
        return None
    rows = await connection.fetch(
        _WRITE_CALL, run.worker_id, lease.epoch, run.run_id, run.epoch, *operation.call
    )
    return Done(*rows[0]) if rows else None


async def write_asides(
    connection: Any,
    tx: Transaction,
    operations: Sequence[Any],
    which: list[int],
    leases: Mapping[str, Lease],
    outcomes: list[Any],
) -> None:
    """Write these rows of the ledger and pieces of streams, in a transaction that was begun; outcomes of those of runs
    that are not ours stay `None`."""
    asides: list[WriteModelCall | AppendStream] = [operations[index] for index in which]
    keys = {operation.run for operation in asides}
    rows = await connection.fetch(
        _OWNED,
        *_fences((key.worker_id for key in keys), leases),
        [key.run_id for key in keys],
        [key.worker_id for key in keys],
        [key.epoch for key in keys],
    )
    states = {RunKey(*key): Done(mail, cancel) for *key, mail, cancel in rows}
    calls: list[dict[str, Any]] = []
    chunks: list[dict[str, Any]] = []
    for index, operation in zip(which, asides, strict=True):
        run_id = operation.run.run_id
        outcomes[index] = states.get(operation.run)
        if outcomes[index] is None:
            continue
        if isinstance(operation, WriteModelCall):
            calls.append({"run_id": run_id, **operation.call._asdict()})
        else:
            chunks += [{"run_id": run_id, **chunk._asdict()} for chunk in operation.chunks]
            tx.tell(HintKind.STREAM, run_id)
    await _write_each(connection, UPSERT_MODEL_CALL, calls)
    await _write_each(connection, INSERT_CHUNK, chunks)


async def commit_step(connection: Any, operation: CommitStep, leases: Mapping[str, Lease]) -> Done | None:
    """Insert one step, fence included; `None` when it was not inserted."""
    run, lease = operation.run, leases.get(operation.run.worker_id)
    if lease is None:
        return None
    fence = (run.worker_id, lease.epoch, run.run_id, run.epoch, operation.mail)
    inserted = await connection.execute(_COMMIT_STEP, *fence, *operation.step)
    return Done(operation.mail) if inserted == "INSERT 0 1" else None


async def commit_answer(
    connection: Any, tx: Transaction, operations: Sequence[Any], leases: Mapping[str, Lease]
) -> Done | None:
    """Insert the step that is the last operation, the end of its model call, and the pieces of the run's stream before
    it, fence included; `None` when nothing was written."""
    *told, step = operations
    run, lease = step.run, leases.get(step.run.worker_id)
    if lease is None:
        return None
    chunks = [chunk for each in told for chunk in each.chunks]
    rows = await connection.fetch(
        _COMMIT_ANSWER,
        *(run.worker_id, lease.epoch, run.run_id, run.epoch, step.mail),
        *step.step,
        *([list(column) for column in zip(*chunks, strict=True)] if chunks else [[]] * len(Chunk._fields)),
        *step.model_call,
    )
    if not rows:
        return None
    if told:
        tx.tell(HintKind.STREAM, run.run_id)
    return Done(step.mail)


async def commit_steps(
    connection: Any,
    operations: Sequence[Any],
    which: list[int],
    leases: Mapping[str, Lease],
    outcomes: list[Any],
) -> None:
    """Insert these steps, fence included; outcomes of those that were not inserted stay `None`. How their model calls
    have ended is written too, which takes a transaction that was begun."""
    steps: list[CommitStep] = [operations[index] for index in which]
    keys = [operation.run for operation in steps]
    rows = await connection.fetch(
        _COMMIT_STEPS,
        *_fences((key.worker_id for key in keys), leases),
        [key.run_id for key in keys],
        [key.worker_id for key in keys],
        [key.epoch for key in keys],
        *zip(*(operation.step for operation in steps), strict=True),
    )
    added = {(run_id, key): Done(mail, cancel) for run_id, key, mail, cancel in rows}
    calls: list[dict[str, Any]] = []
    for index, operation in zip(which, steps, strict=True):
        outcomes[index] = added.get((operation.run.run_id, operation.step.key))
        if outcomes[index] is not None and operation.model_call is not None:
            calls.append({"run_id": operation.run.run_id, **operation.model_call._asdict()})
    await _write_each(connection, UPSERT_MODEL_CALL, calls)


async def finish_runs(
    connection: Any,
    tx: Transaction,
    operations: Sequence[Any],
    which: list[int],
    leases: Mapping[str, Lease],
    outcomes: list[Any],
) -> list[Any]:
    """End these runs, fence included; outcomes of those that are not ours stay `None`. Gives who waits for an end:
    (parent_id, parent_key, operation) in order of their ids."""
    finishes: dict[str, int] = {operations[index].run.run_id: index for index in which}
    ops: list[Finish] = [operations[index] for index in finishes.values()]
    rows = await connection.fetch(
        _FINISH_RUNS,
        *_fences((op.run.worker_id for op in ops), leases),
        [op.run.run_id for op in ops],
        [op.run.worker_id for op in ops],
        [op.run.epoch for op in ops],
        [int(op.status) for op in ops],
        [op.output for op in ops],
        [op.error for op in ops],
        [op.reason for op in ops],
        [op.parent_error for op in ops],
        [op.now for op in ops],
    )
    parents = []
    for run_id, parent_id, parent_key, mail, cancel in sorted(rows, key=lambda row: (row[1] or "", row[0])):
        outcomes[finishes[run_id]] = Done(mail, cancel)
        tx.tell(HintKind.ENDED, run_id)
        if parent_id is not None and parent_key is not None:
            parents.append((parent_id, parent_key, operations[finishes[run_id]]))
    return parents


async def _write_each(connection: Any, statement: Statement, params: Sequence[Mapping[str, Any]]) -> None:
    if params:
        text, arguments = statement.postgres
        await connection.executemany(text, [arguments(each) for each in params])


def _stored(run: NewRun, now: int) -> tuple[Any, ...]:
    """What is stored of a run, in the order of `_START_RUN` and `_START_RUNS`."""
    return (
        run.id,
        run.app,
        run.function,
        run.ready_at,
        run.depth,
        run.version,
        run.parent_id,
        run.parent_key,
        run.root_id,
        run.rerun_of,
        run.created_at,
        now,
        run.input,
        run.trigger,
        json.dumps(run.tags, ensure_ascii=False) if run.tags else None,
        run.event_id,
    )


def _fences(worker_ids: Iterable[str], leases: Mapping[str, Lease]) -> tuple[list[str], list[int]]:
    """The arguments of `FENCE`. A lease may be gone meanwhile: whoever had it is fenced then."""
    held = {worker_id: leases.get(worker_id) for worker_id in set(worker_ids)}
    known = sorted((worker_id, lease.epoch) for worker_id, lease in held.items() if lease is not None)
    return [worker_id for worker_id, _ in known], [epoch for _, epoch in known]
