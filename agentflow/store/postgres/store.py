"""The store on PostgreSQL: steps by the writer, claims and the care of workers by a small pool."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Callable, Iterable
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from agentflow.errors import ConfigurationError, DatabaseUnavailable
from agentflow.store.claim_types import Reclaimed
from agentflow.store.claiming import Claiming
from agentflow.store.compiling import CompilingAhead
from agentflow.store.hints import Hint, HintListener, Hints
from agentflow.store.loop_writer import LoopWriter
from agentflow.store.operation_types import Operation
from agentflow.store.operations.dispatch import apply, workers_of
from agentflow.store.operations.reclaim import Reclaim
from agentflow.store.operations.workers import (
    RegisterWorker,
    RetireWorker,
    TakeOwnerless,
)
from agentflow.store.postgres.backend import PostgresBackend, alive, drive
from agentflow.store.postgres.connection import (
    APPLICATION_NAME,
    COMMAND_SECONDS,
    CONNECT_SECONDS,
    IDLE_IN_TRANSACTION,
    abandon,
    connect,
    is_conflict,
    is_outage,
)
from agentflow.store.postgres.notices import Notices
from agentflow.store.postgres.reading import PostgresDirect, is_query_outage, make_engine
from agentflow.store.postgres.reclaim import reclaim_run
from agentflow.store.postgres.schema import check, migrate
from agentflow.store.postgres.vectors import Lease
from agentflow.store.protocol import Queries
from agentflow.store.queries import SqlQueries
from agentflow.store.reader import Reader
from agentflow.store.stored_types import Micros
from agentflow.store.transaction import Transaction

POOL_SIZE = 2
"""For claims and the care of workers: that need not reach the disk, after a power loss it is done again. Few, so that
what a process has left over does not keep its own heartbeat out."""
LONGEST_PAUSE = 1.0
CLOSE_SECONDS = 2.0
ANSWER_WITHIN = 0.2
"""The part of a lease within which the server has to answer a heartbeat."""

_NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_RENEW = f"""
    UPDATE agentflow_worker SET lease_until = {_NOW} + $3
    WHERE id = $1 AND epoch = $2 AND reaped_at IS NULL AND lease_until > {_NOW} RETURNING id
"""
_EXPIRE = f"UPDATE agentflow_worker SET lease_until = {_NOW} WHERE id = $1"
# A plain UPDATE would not wait for the fence of a batch, which holds KEY SHARE; FOR UPDATE does, and skips the row.
_REAP = f"""
    WITH dead AS (
        SELECT id FROM agentflow_worker WHERE reaped_at IS NULL AND lease_until <= {_NOW}
        ORDER BY id FOR UPDATE SKIP LOCKED
    )
    UPDATE agentflow_worker w SET epoch = w.epoch + 1, reaped_at = $1 FROM dead WHERE w.id = dead.id
"""
# A process stopped in a transaction keeps its locks, the fence of its lease among them. The server's own limit ends one
# that is idle in it, but not one that stands between the two messages of a statement that is new to its connection
# (ClientRead), nor one that does not fetch its rows (ClientWrite).
_END_STUCK = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND application_name = $1 AND state = 'active'
        AND pid <> pg_backend_pid() AND wait_event_type = 'Client' AND (
            (wait_event = 'ClientRead' AND state_change < clock_timestamp() - $2::text::interval)
            OR (wait_event = 'ClientWrite' AND state_change < clock_timestamp() - $3::text::interval)
        )
"""


class PostgresStore(Claiming[Lease]):
    """A `Store` on one PostgreSQL database."""

    def __init__(self, dsn: str, *, durability: str = "strict") -> None:
        super().__init__()
        self._dsn = dsn
        self._strict = durability == "strict"
        self._hints = Hints()
        self._writer: LoopWriter | None = None
        self._compiling = CompilingAhead("postgres")
        self._notices: Notices | None = None
        self._pool: asyncpg.Pool[Any] | None = None
        self._queries = SqlQueries(
            Reader(lambda: make_engine(dsn), PostgresDirect(dsn), is_outage=is_query_outage)
        )
        self.queries: Queries = self._queries

    # ------------------------------------------------------------------------------------- open and close

    async def open(self, *, migrate: bool | None = None) -> None:
        """Connect; the tables have to be there, unless `migrate=True`."""
        backend = PostgresBackend(self._dsn, strict=self._strict, leases=self._leases)
        writer = LoopWriter(backend, listener=self._tell_all, name="agentflow-writer")
        try:
            await check(self._dsn, migrates=bool(migrate))
            await writer.start()
        except Exception as error:
            if not (isinstance(error, ValueError | asyncpg.PostgresError) or is_query_outage(error)):
                raise
            raise _unusable(error) from error
        self._writer = writer
        self._pool = await asyncpg.create_pool(
            connect=lambda *_, **__: connect(self._dsn, waits_for_disk=False, plans_once=True, in_order=True),
            reset=_keep,
            min_size=0,
            max_size=POOL_SIZE,
        )
        self._notices = Notices(self._dsn, listener=self._hints.tell)
        self._notices.start()
        self._compiling.start()

    async def close(self) -> None:
        """Commit what is queued, then disconnect."""
        self._compiling.stop()
        if self._writer is not None:
            await self._writer.close()
        if self._notices is not None:
            await self._notices.stop()
        if self._pool is not None:
            try:
                await asyncio.wait_for(self._pool.close(), CLOSE_SECONDS)
            except Exception:
                self._pool.terminate()
        await self._queries.close()

    async def migrate(self) -> None:
        """Make the tables, or bring them up to date."""
        try:
            await migrate(self._dsn)
        except Exception as error:
            if not is_query_outage(error):
                raise
            raise _unusable(error) from error

    async def database_now(self) -> Micros:
        now: Micros = await self._on_connection(lambda connection: connection.fetchval(f"SELECT {_NOW}"))
        return now

    # --------------------------------------------------------------------------------------------- writes

    def submit(self, operation: Operation) -> asyncio.Future[Any]:
        if self._writer is None:
            raise ConfigurationError("the store on PostgreSQL is not open: `await store.open()` first")
        return self._writer.submit(operation)

    def subscribe(self, listener: HintListener) -> Callable[[], None]:
        return self._hints.subscribe(listener)

    def _tell_all(self, hints: Iterable[Hint]) -> None:
        """Tell this process at once and the others soon."""
        hints = list(hints)
        self._hints.tell(hints)
        if self._notices is not None:
            self._notices.send(hints)

    # -------------------------------------------------------------------------------------------- workers

    async def register_worker(self, worker_id: str, *, lease_seconds: float, version: str) -> int:
        """Make the worker known; its lease is counted by the database's clock."""
        now = await self.database_now()
        until = now + int(lease_seconds * 1_000_000)
        operation = RegisterWorker(worker_id, until, socket.gethostname(), os.getpid(), version, now=now)

        async def register(connection: asyncpg.Connection[Any]) -> int:
            registered: int = await drive(connection, apply(Transaction(frozenset()), operation))
            return registered

        epoch: int = await self._on_connection(register)
        if epoch == 0:
            raise ConfigurationError(f"worker {worker_id} was there before: give each worker a fresh id")
        self._leases[worker_id] = Lease(epoch, lease_seconds)
        return epoch

    async def retire_worker(self, worker_id: str) -> None:
        await self._transact(RetireWorker(worker_id, now=await self.database_now()))
        self._forget(worker_id)

    async def abandon_worker(self, worker_id: str) -> None:
        self._forget(worker_id)
        await self._on_connection(lambda connection: connection.execute(_EXPIRE, worker_id))

    def heartbeat(self) -> PostgresHeartbeat:
        return PostgresHeartbeat(self._dsn)

    async def reap(self, *, now: Micros) -> list[str]:
        """Reap workers whose lease is over; then, by a statement of its own, take the runs of the reaped.

        In one statement, a run that a dying worker's batch started meanwhile would be missed.
        """
        await self._on_connection(
            lambda connection: connection.execute(
                _END_STUCK, APPLICATION_NAME, IDLE_IN_TRANSACTION, f"{COMMAND_SECONDS}s"
            )
        )
        await self._on_connection(lambda connection: connection.execute(_REAP, now))
        taken: list[str] = await self._transact(TakeOwnerless(now))
        return taken

    # --------------------------------------------------------------------------------------------- the pool

    async def _reclaim(self, operation: Reclaim, epoch: int) -> Reclaimed | None:
        return await self._on_connection(lambda connection: reclaim_run(connection, operation, epoch))  # type: ignore[no-any-return]

    async def _transact(self, operation: Any) -> Any:
        async def carry_out(connection: asyncpg.Connection[Any]) -> Any:
            fresh = "DISCARD PLANS; " if connection.is_to_plan_again() else ""
            await connection.execute(f"{fresh}BEGIN")
            tx = Transaction(await alive(connection, workers_of([operation]), self._leases))
            outcome = await drive(connection, apply(tx, operation))
            await connection.execute("COMMIT")
            self._tell_all(tx.hints)
            return outcome

        return await self._on_connection(carry_out)

    async def _on_connection(self, work: Callable[[asyncpg.Connection[Any]], Any]) -> Any:
        """Do it on a connection of the pool; again when it was in another's way or the server was away."""
        if self._pool is None:
            raise ConfigurationError("the store on PostgreSQL is not open: `await store.open()` first")
        pause = 0.01
        while True:
            try:
                async with self._pool.acquire() as connection:
                    try:
                        return await work(connection)
                    except BaseException as error:
                        await abandon(connection, error)
                        raise
            except Exception as error:
                if not (is_conflict(error) or is_outage(error)):
                    raise
                if self._pool.is_closing():
                    raise DatabaseUnavailable(
                        f"the store was closed while PostgreSQL could not be used: {error or type(error).__name__}"
                    ) from error
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(pause * 2, LONGEST_PAUSE)


async def _keep(connection: Any) -> None:
    """Nothing is to be reset between two uses of a connection: each transaction sets only what ends with it."""


def _unusable(error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"the PostgreSQL database cannot be used: {error or type(error).__name__}; see that the server runs and that "
        "host, database, user and password in the URL are right"
    )


class PostgresHeartbeat:
    """A worker's heartbeat: a connection and a little loop for the thread that calls it."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: asyncpg.Connection[Any] | None = None

    def renew(self, worker_id: str, epoch: int, lease_seconds: float) -> bool:
        """Renew the lease, unless it is over or the worker was reaped."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(self._renew(worker_id, epoch, lease_seconds))

    async def _renew(self, worker_id: str, epoch: int, lease_seconds: float) -> bool:
        if self._connection is None or self._connection.is_closed():
            # All of it within the part of the lease that lets one attempt more be in time.
            seconds = min(CONNECT_SECONDS, max(0.25, lease_seconds * ANSWER_WITHIN))
            self._connection = await connect(self._dsn, seconds=seconds, waits_for_disk=False)
        try:
            rows = await self._connection.fetch(_RENEW, worker_id, epoch, int(lease_seconds * 1_000_000))
        except BaseException:
            self._connection.terminate()
            raise
        return bool(rows)

    def close(self) -> None:
        if self._loop is not None:
            if self._connection is not None:
                self._connection.terminate()
                self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()
            self._loop = None
