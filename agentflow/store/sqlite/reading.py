"""How a SQLite file is read: by SQLAlchemy's engine, or by the driver itself; the writer has set the file up."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agentflow.store.statements.statement import Params, Statement

_PRAGMAS = ("wal_autocheckpoint=0", "mmap_size=0", "query_only=ON")
LONG_SECONDS, LEFT_SECONDS = 0.001, 10.0
"""What took so long, of the processor's time, is left to a thread for so long."""
MOST_LEFT = 1000
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY, sqlite3.SQLITE_BUSY_SNAPSHOT)


def make_engine(path: Path) -> AsyncEngine:
    """Short readers."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", pool_size=2, max_overflow=2)

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("busy_timeout=5000", *_PRAGMAS):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


class SqliteDirect:
    """One connection, used right in the loop: going to a thread and back costs ten times as much as what is found by a
    key. What takes long is left to a thread: SQLite reads all of a run's steps, outputs included, to find the last one.
    Implements `Direct`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._left_until: OrderedDict[tuple[str, str | None], float] = OrderedDict()
        """A statement and the run of which it was asked."""

    async def fetch(self, statement: Statement, parameters: Params) -> Sequence[Sequence[Any]] | None:
        sql, arguments = statement.sqlite
        which = sql, parameters.get("run")
        if self._left_until.get(which, 0.0) > time.monotonic():
            return None
        try:
            if self._connection is None:
                self._connection = _connect(self._path)
            began = time.thread_time()
            rows = self._connection.execute(sql, arguments(parameters)).fetchall()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) in _BUSY:
                return None  # who reads in a thread has time to wait
            raise
        if time.thread_time() - began > LONG_SECONDS:
            self._left_until[which] = time.monotonic() + LEFT_SECONDS
            if len(self._left_until) > MOST_LEFT:
                self._left_until.popitem(last=False)
        await asyncio.sleep(0)  # who asks again and again without a pause would let nobody else come to it
        return rows

    def drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def close(self) -> None:
        self.drop()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=0, cached_statements=16
    )
    try:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        # What tables there are is read with the first statement, which would seem to take long.
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection
