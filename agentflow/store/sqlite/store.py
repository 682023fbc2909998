"""The store on a SQLite file: all writes and claims go through the one writer; pages have connections of their own."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from agentflow.crashpoints import point
from agentflow.errors import ConfigurationError
from agentflow.store.claiming import Claiming
from agentflow.store.compiling import CompilingAhead
from agentflow.store.hints import Hint, HintListener, Hints
from agentflow.store.operation_types import Operation
from agentflow.store.operations.workers import (
    ListWorkers,
    Reap,
    RegisterWorker,
    RetireWorker,
)
from agentflow.store.protocol import Queries
from agentflow.store.queries import SqlQueries
from agentflow.store.reader import Reader
from agentflow.store.sqlite.backend import Lease, SqliteBackend, connect, monotonic_micros
from agentflow.store.sqlite.files import LockFolder
from agentflow.store.sqlite.reading import SqliteDirect, make_engine
from agentflow.store.sqlite.schema import prepare
from agentflow.store.statements import workers as worker_sql
from agentflow.store.stored_types import Micros
from agentflow.store.writer import Writer


class SqliteStore(Claiming[Lease]):
    """A `Store` on one file. Several processes may have it open."""

    def __init__(self, path: Path, *, durability: str = "strict") -> None:
        super().__init__()
        self._path = Path(os.path.realpath(path))
        self._locks = LockFolder(self._path)
        self._hints = Hints()
        self._strict = durability == "strict"
        self._writer: Writer | None = None
        self._compiling = CompilingAhead("sqlite")
        self._queries = SqlQueries(Reader(lambda: make_engine(self._path), SqliteDirect(self._path)))
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

    async def _transact(self, operation: Any) -> Any:
        return await self._submit(operation)

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
        self._forget(worker_id)
        self._locks.drop(worker_id)
        self._locks.remove(worker_id)

    async def abandon_worker(self, worker_id: str) -> None:
        self._forget(worker_id)
        self._locks.drop(worker_id)

    def heartbeat(self) -> SqliteHeartbeat:
        return SqliteHeartbeat(self._path, self._leases)

    async def reap(self, *, now: Micros) -> list[str]:
        """Take the runs of workers whose file lock is free (they are dead) or whose lease is over (they hang)."""
        workers: list[str] = await self._submit(ListWorkers())
        dead = tuple(worker_id for worker_id in workers if self._locks.is_dead(worker_id))
        reaped: list[str] = await self._submit(Reap(dead, monotonic_micros(), now))
        for worker_id in dead:
            self._locks.remove(worker_id)
        return reaped


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
