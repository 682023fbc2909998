"""How a PostgreSQL database is read: by SQLAlchemy's engine, or by the driver itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import event, exc
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agentflow.store.postgres.connection import abandon, connect, is_outage
from agentflow.store.statements.statement import Params, Statement

READERS, MORE_READERS, DIRECT_READERS = 2, 1, 2
IS_THERE_SECONDS, SURELY_THERE_SECONDS = 2.0, 1.0
FREE_SECONDS = 30.0
"""After so long a read gives up waiting for others to be done, as in SQLAlchemy's pool."""
CLOSE_SECONDS = 2.0


def make_engine(dsn: str) -> AsyncEngine:
    """SQLAlchemy's engine on agentflow's own connections, so that any URL asyncpg knows will do."""

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: connect(dsn),
        pool_size=READERS,
        max_overflow=MORE_READERS,
    )
    event.listen(engine.sync_engine, "checkout", _see_that_it_is_there)
    return engine


def is_query_outage(error: BaseException) -> bool:
    """Whether SQLAlchemy, or asyncpg below it, says that the server cannot be reached now."""
    if isinstance(error, exc.DBAPIError):
        found = error.orig.__cause__ if error.orig is not None else None
        return error.connection_invalidated or (found is not None and is_outage(found))
    return is_outage(error) or isinstance(error, exc.TimeoutError)  # all connections are in use


def _see_that_it_is_there(connection: Any, record: Any, proxy: object) -> None:
    """What `pool_pre_ping` does, but in one round trip, only after a pause, and not with a query's patience."""
    last_used, now = record.info.get("used_at"), time.monotonic()
    record.info["used_at"] = now
    if last_used is None or now - last_used < SURELY_THERE_SECONDS:
        return
    try:
        connection.run_async(lambda ours: ours.execute("SELECT 1", timeout=IS_THERE_SECONDS))
    except Exception as error:
        connection.run_async(_terminate)
        # The others are as old; what the pool connects now is not asked again.
        raise exc.InvalidatePoolError(f"the connection is dead: {error or type(error).__name__}") from error


async def _terminate(connection: asyncpg.Connection) -> None:
    connection.terminate()


class PostgresDirect:
    """A few connections, made when they are wanted and then kept. Implements `Direct`."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._idle: list[_Idle] = []
        self._free = asyncio.Semaphore(DIRECT_READERS)

    async def fetch(self, statement: Statement, parameters: Params) -> Sequence[Sequence[Any]] | None:
        sql, arguments = statement.postgres
        # Not for ever, where each of those before this one waits for a server that does not answer.
        async with asyncio.timeout(FREE_SECONDS):
            await self._free.acquire()
        try:
            return await self._fetch(sql, arguments(parameters))
        finally:
            self._free.release()

    async def _fetch(self, sql: str, arguments: list[Any]) -> Sequence[Sequence[Any]] | None:
        idle = self._idle
        try:
            connection, used_at = idle.pop() if idle else _Idle(await connect(self._dsn), time.monotonic())
        except asyncpg.TooManyConnectionsError:
            return None
        try:
            if time.monotonic() - used_at > SURELY_THERE_SECONDS:
                await connection.execute("SELECT 1", timeout=IS_THERE_SECONDS)
            rows: Sequence[Sequence[Any]] = await connection.fetch(sql, *arguments)
        except BaseException as error:
            await abandon(connection, error)
            if is_outage(error):
                self.drop()  # what has befallen one has most often befallen the others too
            raise
        finally:
            if idle is not self._idle:  # let go meanwhile
                connection.terminate()
            elif not connection.is_closed():
                idle.append(_Idle(connection, time.monotonic()))
        return rows

    def drop(self) -> None:
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.terminate()

    async def close(self) -> None:
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            with suppress(Exception):  # it is cut off then
                await connection.close(timeout=CLOSE_SECONDS)


class _Idle(NamedTuple):
    connection: asyncpg.Connection[Any]
    used_at: float
