"""The tables in PostgreSQL: migrated on request, by one process at a time."""

from __future__ import annotations

import time
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import Connection, NullPool, event, exc, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agentflow.store.migrations import VERSION_TABLE, is_current, needs_upgrade, upgrade
from agentflow.store.postgres.connection import connect, is_outage

READERS, MORE_READERS = 2, 3
IS_THERE_SECONDS, SURELY_THERE_SECONDS = 2.0, 1.0
MIGRATION_IDLE, MIGRATION_SECONDS = "1min", 300.0
_LOCK = 0x6167656E74666C6F  # "agentflo"


async def check(dsn: str, *, migrates: bool = False) -> None:
    """See that the tables are those of this agentflow, or make them so. Raises `ConfigurationError`."""
    connection = await connect(dsn)
    try:
        try:
            revision = await connection.fetchval(f"SELECT version_num FROM {VERSION_TABLE}")
        except asyncpg.UndefinedTableError:
            revision = None
    finally:
        await connection.close()
    if is_current(revision, "the PostgreSQL database"):
        return
    if not migrates:
        raise needs_upgrade(revision, "the PostgreSQL database")
    await migrate(dsn)


async def migrate(dsn: str) -> None:
    """Make the tables, or bring them up to date, in one transaction."""
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: connect(dsn, seconds=MIGRATION_SECONDS),
        poolclass=NullPool,
    )
    try:
        async with engine.begin() as connection:
            # No run waits for these locks, and a slow machine takes its time between two statements.
            await connection.execute(
                text(f"SET LOCAL idle_in_transaction_session_timeout = '{MIGRATION_IDLE}'")
            )
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            await connection.run_sync(_migrate)
    finally:
        await engine.dispose()


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


def _migrate(connection: Connection) -> None:
    found = connection.scalar(text("SELECT to_regclass(:name)"), {"name": VERSION_TABLE})
    revision = None if found is None else connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
    if not is_current(revision, "the PostgreSQL database"):
        upgrade(connection)
