"""PostgreSQL: the writer's connection, in a loop of the writer's thread.

A batch of steps is one statement and one round trip, its fence included. Other batches are a transaction that first
takes its locks (the workers' rows, names, run rows, each in order) and then does its work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import asyncpg  # type: ignore[import-untyped]

from agentflow.crashpoints import point
from agentflow.store import protocol as p
from agentflow.store import statements as sql
from agentflow.store.operations import apply, is_strict, workers_of
from agentflow.store.postgres_connection import connect, is_conflict, is_outage
from agentflow.store.protocol import CommitStep, Done, Hint
from agentflow.store.transaction import Transaction, Work
from agentflow.store.writer import Fault

POLL_SECONDS = 3600.0


class Lease(NamedTuple):
    """A worker of this process."""

    epoch: int
    seconds: float


# A lease holds by the database's clock. KEY SHARE keeps the reaper, who locks FOR UPDATE, from the row until this
# transaction ends, and lets heartbeats pass, which do not change the key.
_FENCE = """
    SELECT w.id FROM agentflow_worker w JOIN unnest($1::text[], $2::bigint[]) AS mine(id, epoch)
    ON w.id = mine.id AND w.epoch = mine.epoch
    WHERE w.reaped_at IS NULL AND w.lease_until > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
    ORDER BY w.id FOR KEY SHARE OF w
"""

_COMMIT_STEPS = f"""
    WITH me AS MATERIALIZED ({_FENCE}),
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
        ON r.id = g.run_id AND r.owner = g.worker_id AND r.epoch = g.epoch AND r.status = 1
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


class PostgresBackend:
    """The writer's connection; every method is called in the writer's thread."""

    def __init__(self, dsn: str, *, strict: bool, leases: dict[str, Lease]) -> None:
        self._dsn = dsn
        self._strict = strict
        self._leases = leases
        self._loop: asyncio.AbstractEventLoop
        self._connection: asyncpg.Connection[Any]

    def connect(self) -> None:
        self._loop = asyncio.new_event_loop()
        try:
            self._connection = self._loop.run_until_complete(connect(self._dsn))
        except BaseException:
            self._loop.close()
            raise

    def disconnect(self) -> None:
        try:
            self._connection.terminate()
            self._loop.run_until_complete(asyncio.sleep(0))
        finally:
            self._loop.close()

    def commit(self, operations: Sequence[Any]) -> tuple[list[Any], list[Hint]]:
        return self._loop.run_until_complete(self._commit(operations))

    def diagnose(self, error: Exception) -> Fault:
        if is_conflict(error):
            return Fault.CONFLICT
        if is_outage(error) or self._connection.is_closed():
            return Fault.OUTAGE
        return Fault.POISON

    def recover(self) -> None:
        """A connection that broke is replaced; what it did is found out by playing the batch again."""
        if self._connection.is_closed():
            self._connection = self._loop.run_until_complete(connect(self._dsn))

    def poll(self) -> tuple[float, list[Hint]]:
        return POLL_SECONDS, []

    # ------------------------------------------------------------------------------------------- a batch

    async def _commit(self, operations: Sequence[Any]) -> tuple[list[Any], list[Hint]]:
        point("before_commit")
        strict = any(is_strict(operation, by_default=self._strict) for operation in operations)
        together = steps_to_commit_first(operations)
        if len(together) == len(operations) and strict:
            outcomes: list[Any] = [None] * len(operations)
            await self._commit_steps(operations, together, outcomes)
            left = [index for index in together if outcomes[index] is None]
            hints: list[Hint] = []
            if left:
                # There already, or fenced: a second transaction says which.
                told, hints = await self._transact(
                    [operations[index] for index in left], strict=strict, vectorise=False
                )
                for index, outcome in zip(left, told, strict=True):
                    outcomes[index] = outcome
        else:
            outcomes, hints = await self._transact(operations, strict=strict, vectorise=True)
        point("after_commit")
        return outcomes, hints

    async def _transact(
        self, operations: Sequence[Any], *, strict: bool, vectorise: bool
    ) -> tuple[list[Any], list[Hint]]:
        connection = self._connection
        await connection.execute("BEGIN" if strict else "BEGIN; SET LOCAL synchronous_commit = off")
        try:
            tx = Transaction(await alive(connection, workers_of(operations), self._leases))
            if len(operations) > 1:
                await drive(connection, _lock_in_order(operations))
            outcomes: list[Any] = [None] * len(operations)
            together = steps_to_commit_first(operations) if vectorise else []
            if len(together) > 1:
                await self._commit_steps(operations, together, outcomes)
            for index, operation in enumerate(operations):
                if outcomes[index] is None:
                    outcomes[index] = await drive(connection, apply(tx, operation))
            await connection.execute("COMMIT")
        except BaseException:
            await rollback(connection)
            raise
        return outcomes, tx.hints

    async def _commit_steps(self, operations: Sequence[Any], which: list[int], outcomes: list[Any]) -> None:
        """Insert these steps by one statement; outcomes of those that were not inserted stay `None`."""
        steps: list[CommitStep] = [operations[index] for index in which]
        keys = [operation.run for operation in steps]
        workers = sorted({key.worker_id for key in keys} & self._leases.keys())
        columns = list(zip(*(operation.step for operation in steps), strict=True))
        rows = await self._connection.fetch(
            _COMMIT_STEPS,
            workers,
            [self._leases[worker_id].epoch for worker_id in workers],
            [key.run_id for key in keys],
            [key.worker_id for key in keys],
            [key.epoch for key in keys],
            *columns,
        )
        added = {(run_id, key): Done(mail, cancel) for run_id, key, mail, cancel in rows}
        for index, operation in zip(which, steps, strict=True):
            outcomes[index] = added.get((operation.run.run_id, operation.step.key))


async def alive(
    connection: asyncpg.Connection[Any], worker_ids: list[str], leases: dict[str, Lease]
) -> frozenset[str]:
    """Those of our workers whose lease holds; it cannot be taken from them before this transaction ends."""
    known = [worker_id for worker_id in worker_ids if worker_id in leases]
    if not known:
        return frozenset()
    rows = await connection.fetch(_FENCE, known, [leases[worker_id].epoch for worker_id in known])
    return frozenset(row[0] for row in rows)


async def drive(connection: asyncpg.Connection[Any], work: Work[Any]) -> Any:
    """Carry out the statements of an operation one by one; gives its outcome."""
    try:
        statement, params = next(work)
        while True:
            text, arguments = statement.postgres
            statement, params = work.send(await connection.fetch(text, *arguments(params)))
    except StopIteration as stop:
        return stop.value


async def rollback(connection: asyncpg.Connection[Any]) -> None:
    if not connection.is_closed():
        try:
            await connection.execute("ROLLBACK", timeout=5)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            connection.terminate()


def steps_to_commit_first(operations: Sequence[Any]) -> list[int]:
    """The steps that may be committed together before all else: nothing before them concerns their run.

    Each (run, key) once, because one statement cannot tell two of its own rows apart.
    """
    together: list[int] = []
    touched: set[str] = set()
    keys: set[tuple[str, str]] = set()
    for index, operation in enumerate(operations):
        if type(operation) is CommitStep and operation.run.run_id not in touched:
            key = (operation.run.run_id, operation.step.key)
            if operation.model_call is None and key not in keys:
                keys.add(key)
                together.append(index)
                continue
        run = getattr(operation, "run", None)
        run_id = (
            getattr(run, "run_id", None) or getattr(run, "id", None) or getattr(operation, "run_id", None)
        )
        if run_id is not None:
            touched.add(run_id)
    return together


def _lock_in_order(operations: Sequence[Any]) -> Work[None]:
    """Take the batch's locks in one order, so that two batches wait for each other instead of both being stuck."""
    names: dict[str, bool] = {}
    changed: set[str] = set()
    ended: set[str] = set()
    for operation in operations:
        if isinstance(operation, p.SendEvents):
            for event in operation.events:
                names.setdefault(f"event:{event.name}", False)
        elif isinstance(operation, p.SendSignal):
            names[f"signal:{operation.name}"] = True
        elif isinstance(operation, p.RegisterWait):
            if operation.wait.kind == "signal":
                names[f"signal:{operation.wait.topic}"] = True
            elif operation.lookback_from is not None:
                names[f"event:{operation.wait.topic}"] = True
        elif isinstance(operation, p.Suspend | p.Release | p.Adopt):
            changed.add(operation.run.run_id)
        elif isinstance(operation, p.Finish):
            changed.add(operation.run.run_id)
            ended.add(operation.run.run_id)
        elif isinstance(operation, p.CancelRun):
            changed.add(operation.run_id)
            ended.add(operation.run_id)
    for name, alone in sorted(names.items()):
        yield sql.LOCK_NAME if alone else sql.SHARE_NAME, {"name": name}
    if changed:
        yield sql.LOCK_RUNS, {"ids": sorted(changed), "ended": sorted(ended)}
