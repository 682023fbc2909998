"""The tables in PostgreSQL: migrated on request, by one process at a time."""

from __future__ import annotations

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import Connection, NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from agentflow.store.migrations import VERSION_TABLE, is_current, needs_upgrade, upgrade
from agentflow.store.postgres.connection import connect

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


def _migrate(connection: Connection) -> None:
    found = connection.scalar(text("SELECT to_regclass(:name)"), {"name": VERSION_TABLE})
    revision = None if found is None else connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
    if not is_current(revision, "the PostgreSQL database"):
        upgrade(connection)
