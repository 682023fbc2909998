"""SQLite: one connection in the writer's thread, `BEGIN IMMEDIATE`, WAL."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agentflow.crashpoints import point
from agentflow.store.batches import Fault
from agentflow.store.hints import Hint, HintKind
from agentflow.store.operation_types import CommitStep
from agentflow.store.operations.dispatch import apply, is_read, is_strict, workers_of
from agentflow.store.operations.functions import read_paused
from agentflow.store.operations.runs import wake_parents
from agentflow.store.outcome_types import Done
from agentflow.store.plan import Plan
from agentflow.store.sqlite.files import LockFolder
from agentflow.store.sqlite.vectors import (
    STEP_COLUMNS,
    commit_steps,
    finish_runs,
    start_runs,
    write_asides,
    write_each,
)
from agentflow.store.statements import workers as worker_sql
from agentflow.store.statements.statement import Bundle, Statement
from agentflow.store.transaction import Transaction, Work

logger = logging.getLogger("agentflow.store")

BUSY_SECONDS = 5.0
SETUP_SECONDS = 15.0
POLL_BUSY_SECONDS = 0.05
POLL_IDLE_SECONDS = 0.2
IDLE_AFTER_SECONDS = 5.0
CHECKPOINT_BYTES = 8 * 1024 * 1024
CHECKPOINT_PAUSE_SECONDS = 1.0
CHECKPOINT_SECONDS = 0.05
LARGE_BYTES = 8 * CHECKPOINT_BYTES
LARGE_SECONDS = 2.0
"""How long all writers may wait for readers to let go of a WAL of `LARGE_BYTES`; up to twice that."""
LARGE_SHARE = 0.2
"""The part of the time that may go by so."""

_OUTAGES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}


class Lease(NamedTuple):
    """A worker of this process."""

    epoch: int
    micros: int


class SqliteBackend:
    """The writer's connection."""

    def __init__(self, path: Path, *, strict: bool, leases: dict[str, Lease], locks: LockFolder) -> None:
        self._path = path
        self._wal = path.with_name(f"{path.name}-wal")
        self._strict = strict
        self._leases = leases
        self._locks = locks
        self._connection: sqlite3.Connection
        self._is_full_sync = True
        self._is_patient = True
        self._renew_at: dict[str, int] = {}
        """When a worker's lease is to be renewed on the way, as far as this connection has seen it."""
        self._data_version = 0
        self._active_at = 0.0
        self._checkpoint_at = 0.0
        self._has_told = False

    def connect(self) -> None:
        self._connection = connect(self._path)
        self._data_version = self._read_data_version()

    def disconnect(self) -> None:
        self._connection.close()

    def commit(self, operations: Sequence[Any], *, is_patient: bool = True) -> tuple[list[Any], list[Hint]]:
        point("before_commit")
        connection = self._connection
        self._wait_for_others(is_patient)
        self._active_at = time.monotonic()
        self._sync_fully(any(is_strict(operation, by_default=self._strict) for operation in operations))
        if len(operations) == 1 and type(operations[0]) is CommitStep and operations[0].model_call is None:
            done = self._commit_step(operations[0])
            if done is not None:
                point("after_commit")
                return [done], []
        connection.execute("BEGIN" if all(map(is_read, operations)) else "BEGIN IMMEDIATE")
        try:
            tx = Transaction(self._alive(workers_of(operations)))
            outcomes = self._carry_out(tx, operations)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        point("after_commit")
        return outcomes, tx.hints

    def diagnose(self, error: Exception) -> Fault:
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in _OUTAGES:
            return Fault.OUTAGE
        return Fault.POISON

    def recover(self) -> None:
        """SQLite's connection outlives a full or locked disk."""

    def poll(self) -> tuple[float, list[Hint]]:
        """See whether another connection wrote, and keep the WAL short."""
        now = time.monotonic()
        hints: list[Hint] = []
        version = self._read_data_version()
        if version != self._data_version:
            self._data_version = version
            self._active_at = now
            hints.append(Hint(HintKind.ANY))
        if now >= self._checkpoint_at:
            self._checkpoint_at = now + CHECKPOINT_PAUSE_SECONDS
            self._checkpoint()
        return (POLL_BUSY_SECONDS if now - self._active_at < IDLE_AFTER_SECONDS else POLL_IDLE_SECONDS), hints

    # ------------------------------------------------------------------------------------------- a batch

    def _carry_out(self, tx: Transaction, operations: Sequence[Any]) -> list[Any]:
        """What goes together by a few statements, the rest one by one."""
        connection, plan = self._connection, Plan.of(operations)
        outcomes: list[Any] = [None] * len(operations)
        if plan.starts:
            paused = self._drive(read_paused(tx))
            _put(outcomes, plan.starts, start_runs(connection, tx, _pick(operations, plan.starts), paused))
        if plan.asides:
            _put(outcomes, plan.asides, write_asides(connection, tx, _pick(operations, plan.asides)))
        if plan.steps:
            _put(outcomes, plan.steps, commit_steps(connection, tx, _pick(operations, plan.steps)))
        if plan.finishes:
            ended, parents = finish_runs(connection, tx, _pick(operations, plan.finishes))
            _put(outcomes, plan.finishes, ended)
            self._drive(wake_parents(tx, parents))
        for index, operation in enumerate(operations):
            if outcomes[index] is None:
                outcomes[index] = self._drive(apply(tx, operation))
        return outcomes

    def _drive(self, work: Work[Any]) -> Any:
        execute = self._connection.execute
        rows: list[Any]
        try:
            statement, params = next(work)
            while True:
                if statement.only_postgres:
                    rows = []
                elif not isinstance(params, Mapping):
                    assert isinstance(statement, Statement), "reads are asked for once"
                    write_each(self._connection, statement, params)
                    rows = []
                elif isinstance(statement, Bundle):
                    reads = [each.sqlite for each in statement.reads]
                    rows = [execute(text, arguments(params)).fetchall() for text, arguments in reads]
                else:
                    text, arguments = statement.sqlite
                    rows = execute(text, arguments(params)).fetchall()
                statement, params = work.send(rows)
        except StopIteration as stop:
            return stop.value

    def _commit_step(self, operation: CommitStep) -> Done | None:
        """One step by one statement, which is its own transaction; `None`: look closely, nothing was written."""
        run, lease, instant = operation.run, self._leases.get(operation.run.worker_id), monotonic_micros()
        if lease is None or instant >= self._renew_at.get(run.worker_id, 0):
            return None
        fence = (run.run_id, run.worker_id, run.epoch, operation.mail, run.worker_id, lease.epoch, instant)
        inserted = self._connection.execute(_COMMIT_STEP, (*operation.step, *fence)).rowcount
        return Done(operation.mail) if inserted else None

    def _alive(self, worker_ids: list[str]) -> frozenset[str]:
        """Those of the workers whose lease holds; their leases are renewed on the way."""
        if not worker_ids:
            return frozenset()
        alive = set()
        instant = monotonic_micros()
        for worker_id, epoch, lease_until in self._read_leases(worker_ids):
            lease = self._leases.get(worker_id)
            if lease is None or lease.epoch != epoch or lease_until <= instant:
                continue
            alive.add(worker_id)
            self._renew_at[worker_id] = max(lease_until, instant + lease.micros) - int(lease.micros * 0.8)
            if lease_until - instant < lease.micros * 0.8:
                renew, renew_arguments = worker_sql.RENEW_LEASE.sqlite
                params = {
                    "until": instant + lease.micros,
                    "worker": worker_id,
                    "at_epoch": epoch,
                    "instant": instant,
                }
                self._connection.execute(renew, renew_arguments(params)).fetchall()
        return frozenset(alive)

    def _read_leases(self, worker_ids: list[str]) -> list[Any]:
        if len(worker_ids) == 1:
            return self._connection.execute(_READ_LEASE, worker_ids).fetchall()
        text, arguments = worker_sql.READ_LEASES.sqlite
        return self._connection.execute(text, arguments({"ids": worker_ids})).fetchall()

    # ------------------------------------------------------------------------------------------ the file

    def _sync_fully(self, is_full: bool) -> None:
        """FULL waits for the disk at each commit, NORMAL does not; either way a killed process loses nothing."""
        if is_full != self._is_full_sync:
            self._connection.execute(f"PRAGMA synchronous={'FULL' if is_full else 'NORMAL'}")
            self._is_full_sync = is_full

    def _wait_for_others(self, is_patient: bool) -> None:
        """While another process writes: wait for it, or (in the loop) fail at once."""
        if is_patient != self._is_patient:
            self._connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000) if is_patient else 0}")
            self._is_patient = is_patient

    def _read_data_version(self) -> int:
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def _checkpoint(self) -> None:
        """Bring the WAL into the file once it has grown.

        Never automatically: below SQLite 3.51.3, several connections that checkpoint at once can corrupt the file.
        """
        try:
            size = os.stat(self._wal).st_size
        except FileNotFoundError:
            return
        if size < CHECKPOINT_BYTES:
            self._has_told = False
            return
        with self._locks.only_one("checkpoint") as alone:
            if not alone:
                return
            self._sync_fully(True)
            patience = self._patience(size)
            self._connection.execute(f"PRAGMA busy_timeout={int(patience * 1000)}")
            self._is_patient = True
            try:
                [(is_busy, *_)] = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                if is_busy and patience > CHECKPOINT_SECONDS and not self._has_told:
                    self._has_told = True
                    logger.warning(
                        "%s has grown to %d MB: another process reads the database in one long transaction after the "
                        "other; let it pause between them",
                        self._wal,
                        size // 1_000_000,
                    )
            except sqlite3.OperationalError:
                pass  # a reader or the disk: tried again in a second
            finally:
                self._connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")

    def _patience(self, size: int) -> float:
        """How long a checkpoint waits for readers, and all writers for it.

        A moment: the next try will find them gone. Only where one long reader always follows the other there is no
        such moment. A reader that comes while there is something to bring in needs the WAL as well, so it takes as
        long as two of them; but no worker may lose its lease by it.
        """
        if size < LARGE_BYTES or not self._leases:
            return CHECKPOINT_SECONDS
        shortest = min(lease.micros for lease in self._leases.values()) / 1_000_000
        patience = min(LARGE_SECONDS * size / LARGE_BYTES, 2 * LARGE_SECONDS, 0.4 * shortest)
        is_time = self._locks.is_time("checkpoint-patience", pause_seconds=patience / LARGE_SHARE)
        return patience if is_time else CHECKPOINT_SECONDS


_COMMIT_STEP = f"""
    INSERT INTO agentflow_step ({", ".join(STEP_COLUMNS)})
    SELECT r.id, {", ".join("?" * (len(STEP_COLUMNS) - 1))} FROM agentflow_run r, agentflow_worker w
    WHERE r.id = ? AND r.owner = ? AND r.epoch = ? AND r.status = 1
    AND r.mail = ? AND r.cancel_at IS NULL AND r.crash_count = 0
    AND w.id = ? AND w.epoch = ? AND w.reaped_at IS NULL AND w.lease_until > ?
    ON CONFLICT DO NOTHING
"""
"""The fence of the worker and of the run, and the step, in one statement; where there is nothing to tell of the run."""
_READ_LEASE = "SELECT id, epoch, lease_until FROM agentflow_worker WHERE id = ? AND reaped_at IS NULL"
"""As `READ_LEASES` for one worker, which is what nearly every batch needs."""


def connect(path: Path, *, sync: str = "FULL") -> sqlite3.Connection:
    """A connection as agentflow needs it: in autocommit, the file in WAL mode, never checkpointing by itself."""
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS, cached_statements=256
    )
    try:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute(f"PRAGMA synchronous={sync}")
        connection.execute("PRAGMA mmap_size=0")
        connection.execute("PRAGMA temp_store=MEMORY")
        _set_wal(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def monotonic_micros() -> int:
    """The clock of leases: the same in every process of this machine, and nobody sets it."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def _set_wal(connection: sqlite3.Connection) -> None:
    give_up_at = time.monotonic() + SETUP_SECONDS
    while True:
        # Going over to WAL wants the file alone, and does not wait for it by itself.
        try:
            [(mode,)] = connection.execute("PRAGMA journal_mode=WAL").fetchall()
            if mode == "wal":
                return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
        if time.monotonic() > give_up_at:
            raise sqlite3.OperationalError("the file stays locked by another process")
        time.sleep(0.01)


def _pick(operations: Sequence[Any], which: Sequence[int]) -> Sequence[Any]:
    return operations if len(which) == len(operations) else [operations[index] for index in which]


def _put(outcomes: list[Any], which: Sequence[int], found: Sequence[Any]) -> None:
    for index, outcome in zip(which, found, strict=True):
        outcomes[index] = outcome


__all__ = ["Lease", "SqliteBackend", "connect", "monotonic_micros"]
