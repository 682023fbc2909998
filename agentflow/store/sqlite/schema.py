"""The tables in a SQLite file: made and brought up to date at open, by one process at a time."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from agentflow.errors import ConfigurationError
from agentflow.store.migrations import VERSION_TABLE, is_current, needs_upgrade, upgrade
from agentflow.store.sqlite.backend import connect
from agentflow.store.sqlite.files import LockFolder

WAIT_SECONDS = 60.0


def prepare(path: Path, locks: LockFolder, *, migrate: bool) -> None:
    """See that the file can be used and has the newest tables."""
    if not path.parent.is_dir():
        raise ConfigurationError(
            f"the database {path} cannot be made: there is no folder {path.parent}; create it, or set "
            "AGENTFLOW_DATABASE_URL to another place"
        )
    try:
        connection = connect(path)
        try:
            if is_current(_revision(connection), str(path)):
                return
            if not migrate:
                raise needs_upgrade(_revision(connection), str(path))
            with locks.only_one("migrate", wait_seconds=WAIT_SECONDS):
                if not is_current(_revision(connection), str(path)):
                    _upgrade(path)
        finally:
            connection.close()
    except (sqlite3.Error, OSError) as error:
        raise ConfigurationError(
            f"the database {path} cannot be used: {error}; see that the file and its folder are readable and "
            "writable and that it is a SQLite database"
        ) from error


def _revision(connection: sqlite3.Connection) -> str | None:
    try:
        rows = connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    return rows[0][0] if rows else None


def _upgrade(path: Path) -> None:
    from sqlalchemy import NullPool, create_engine, event

    engine = create_engine("sqlite://", creator=lambda: connect(path), poolclass=NullPool)

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        # The driver begins a transaction only at the first INSERT, too late for the tables before it.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        with engine.begin() as connection:
            upgrade(connection)
    finally:
        engine.dispose()
