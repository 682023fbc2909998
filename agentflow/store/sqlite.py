"""The store on a SQLite file: all writes and claims go through the one writer; pages have connections of their own."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentflow.crashpoints import point
from agentflow.errors import ConfigurationError
from agentflow.store import statements_workers as worker_sql
from agentflow.store.claim_types import ClaimedRun, Reclaimed
from agentflow.store.compiling import CompilingAhead
from agentflow.store.hints import Hint, HintListener, Hints
from agentflow.store.operation_types import Operation
from agentflow.store.operations_gates import TendLanes
from agentflow.store.operations_reclaim import Reclaim
from agentflow.store.operations_workers import (
    Claim,
    ListMail,
    ListWorkers,
    NextReady,
    Reap,
    RegisterWorker,
    ReleaseOrphans,
    RetireWorker,
    Suspects,
)
from agentflow.store.protocol import NO_GATES, Queries
from agentflow.store.queries import SqlQueries, sqlite_engine
from agentflow.store.sqlite_backend import Lease, SqliteBackend, connect, monotonic_micros
from agentflow.store.sqlite_files import LockFolder
from agentflow.store.sqlite_schema import prepare
from agentflow.store.stored_types import GateLimits, Micros, RunKey
from agentflow.store.writer import Writer


class SqliteStore:
    """A `Store` on one file. Several processes may have it open."""

    def __init__(self, path: Path, *, durability: str = "strict") -> None:
        self._path = Path(os.path.realpath(path))
        self._locks = LockFolder(self._path)
        self._leases: dict[str, Lease] = {}
        self._suspects: dict[str, Suspects] = {}
        self._hints = Hints()
        self._strict = durability == "strict"
        self._writer: Writer | None = None
        self._compiling = CompilingAhead("sqlite")
        self._queries = SqlQueries(lambda: sqlite_engine(self._path))
        self.queries: Queries = self._queries

    # ------------------------------------------------------------------------------------- open and close

    async def open(self, *, migrate: bool | None = None) -> None:
        """Open the file; its tables are made and brought up to date unless `migrate=False`."""
        await _in_thread(lambda: prepare(self._path, self._locks, migrate=migrate is not False))
        backend = SqliteBackend(self._path, strict=self._strict, leases=self._leases, locks=self._locks)
        writer = Writer(backend, listener=self._tell, name="agentflow-writer")
        await writer.start()
        self._writer = writer
        self._compiling.start()

    async def close(self) -> None:
        """Commit what is queued, then let go of the file."""
        self._compiling.stop()
        if self._writer is not None:
            await self._writer.close()
        await self._queries.close()
        self._locks.drop_all()

    async def migrate(self) -> None:
        """Make the tables, or bring them up to date."""
        await _in_thread(lambda: prepare(self._path, self._locks, migrate=True))

    async def database_now(self) -> Micros:
        """The system's time: the file has no clock."""
        return time.time_ns() // 1000

    # --------------------------------------------------------------------------------------------- writes

    def submit(self, operation: Operation) -> asyncio.Future[Any]:
        return self._submit(operation)

    def subscribe(self, listener: HintListener) -> Callable[[], None]:
        return self._hints.subscribe(listener)

    def _tell(self, hints: Iterable[Hint]) -> None:
        point("before_notify")
        self._hints.tell(hints)

    def _submit(self, operation: Any) -> asyncio.Future[Any]:
        if self._writer is None:
            raise ConfigurationError(f"the store on {self._path} is not open: `await store.open()` first")
        return self._writer.submit(operation)

    # -------------------------------------------------------------------------------------------- workers

    async def register_worker(self, worker_id: str, *, lease_seconds: float, version: str) -> int:
        """Take the worker's file lock, then make it known."""
        self._locks.hold(worker_id)
        micros = int(lease_seconds * 1_000_000)
        operation = RegisterWorker(
            worker_id,
            lease_until=monotonic_micros() + micros,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=version,
            now=time.time_ns() // 1000,
        )
        epoch: int = await self._submit(operation)
        if epoch == 0:
            self._locks.drop(worker_id)
            raise ConfigurationError(f"worker {worker_id} was there before: give each worker a fresh id")
        self._leases[worker_id] = Lease(epoch, micros)
        return epoch

    async def retire_worker(self, worker_id: str) -> None:
        await self._submit(RetireWorker(worker_id, now=time.time_ns() // 1000))
        self._leases.pop(worker_id, None)
        self._suspects.pop(worker_id, None)
        self._locks.drop(worker_id)
        self._locks.remove(worker_id)

    def disown_worker(self, worker_id: str) -> None:
        self._leases.pop(worker_id, None)

    async def abandon_worker(self, worker_id: str) -> None:
        self._leases.pop(worker_id, None)
        self._suspects.pop(worker_id, None)
        self._locks.drop(worker_id)

    def heartbeat(self) -> SqliteHeartbeat:
        return SqliteHeartbeat(self._path, self._leases)

    async def reclaim(
        self, worker_id: str, *, epoch: int, last: RunKey, next_seq: int, now: Micros
    ) -> Reclaimed | None:
        point("before_claim")
        lease = self._leases.get(worker_id)
        if lease is None or lease.epoch != epoch:
            return None
        found: Reclaimed | None = await self._submit(Reclaim(last, worker_id, next_seq, now))
        point("after_claim")
        return found

    async def claim(
        self,
        worker_id: str,
        *,
        epoch: int,
        app: str,
        functions: Sequence[str],
        limit: int,
        now: Micros,
        gates: Mapping[str, GateLimits] = NO_GATES,
    ) -> list[ClaimedRun]:
        point("before_claim")
        lease = self._leases.get(worker_id)
        if lease is None or lease.epoch != epoch:
            return []
        operation = Claim(worker_id, app, tuple(functions), limit, now, gates)
        claimed: list[ClaimedRun] = await self._submit(operation)
        point("after_claim")
        return claimed

    async def tend_lanes(
        self, *, app: str, functions: Sequence[str], now: Micros, gates: Mapping[str, GateLimits]
    ) -> int:
        let_through: int = await self._submit(TendLanes(app, tuple(functions), now, gates))
        return let_through

    async def next_ready_at(self, *, app: str, functions: Sequence[str]) -> Micros | None:
        due: Micros | None = await self._submit(NextReady(app, tuple(functions)))
        return due

    async def list_mail(self, worker_id: str) -> list[tuple[str, int, bool]]:
        mail: list[tuple[str, int, bool]] = await self._submit(ListMail(worker_id))
        return mail

    async def reap(self, *, now: Micros) -> list[str]:
        """Take the runs of workers whose file lock is free (they are dead) or whose lease is over (they hang)."""
        workers: list[str] = await self._submit(ListWorkers())
        dead = tuple(worker_id for worker_id in workers if self._locks.is_dead(worker_id))
        reaped: list[str] = await self._submit(Reap(dead, monotonic_micros(), now))
        for worker_id in dead:
            self._locks.remove(worker_id)
        return reaped

    async def release_orphans(self, worker_id: str, held: Collection[str], *, now: Micros) -> list[str]:
        suspects = self._suspects.get(worker_id, frozenset())
        operation = ReleaseOrphans(worker_id, frozenset(held), suspects, now)
        released, self._suspects[worker_id] = await self._submit(operation)
        return list(released)


class SqliteHeartbeat:
    """A worker's heartbeat, on a connection that never waits for the disk."""

    def __init__(self, path: Path, leases: dict[str, Lease]) -> None:
        self._path = path
        self._leases = leases
        self._connection: sqlite3.Connection | None = None

    def renew(self, worker_id: str, epoch: int, lease_seconds: float) -> bool:
        """Renew the lease, unless it is over or the worker was reaped."""
        if self._connection is None:
            self._connection = connect(self._path, sync="NORMAL")
        text, arguments = worker_sql.RENEW_LEASE.sqlite
        instant = monotonic_micros()
        params = {
            "until": instant + int(lease_seconds * 1_000_000),
            "worker": worker_id,
            "at_epoch": epoch,
            "instant": instant,
        }
        return bool(self._connection.execute(text, arguments(params)).fetchall())

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


async def _in_thread(function: Callable[[], None]) -> None:
    """Run it in a thread of its own: the loop's executor would keep its threads."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            function()
        except BaseException as raised:
            error = raised
        loop.call_soon_threadsafe(settle, error)

    thread = threading.Thread(target=run, name="agentflow-open", daemon=True)
    thread.start()
    await done
    thread.join()
