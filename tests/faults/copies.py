"""Many runs made of a few real ones: their rows are copied, to what suspending them all would have written."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from agentflow.clock import NEVER
from agentflow.store.rows import Base, RunIoRow, RunRow, StepRow, WaitRow, table_of

TABLES: tuple[type[Base], ...] = (RunRow, RunIoRow, StepRow, WaitRow)
OWN = {"id", "root_id", "run_id", "topic", "correlation"}
"""What is another thing for each run: two that wait for one signal there cannot be."""
DUE = {"ready_at", "deadline"}
CHUNK = 5_000
"""Rows of each table in one transaction: a worker beside it waits for SQLite's one lock, and not for long."""


async def copy_runs(url: str, ids: Sequence[str], times: int, *, due_at: int | None = None) -> int:
    """Copy these runs so many times, with all that is stored of them; how many were made.

    Each copy is due a microsecond after the one before, or all at `due_at`.
    """
    for first in range(1, times + 1, CHUNK):
        last = min(first + CHUNK - 1, times)
        await _execute(url, [_copy(url, row, ids, due_at=due_at) for row in TABLES], first, last)
    return len(ids) * times


async def copy_steps(url: str, run_id: str, rows: int) -> None:
    """Fill the table of steps with so many copies of a run's steps, a hundred for each run that is not there."""
    table = table_of(StepRow)
    names = [column.name for column in table.columns]
    values = [
        {"run_id": f"run_id || '-' || {_padded(url, 'g.n / 100')}", "key": "key || '~' || (g.n % 100)"}.get(
            name, f'"{name}"'
        )
        for name in names
    ]
    statement = _insert(url, table.name, names, values, f"run_id = '{run_id}'")
    for first in range(1, rows + 1, 10 * CHUNK):
        await _execute(url, [statement], first, min(first + 10 * CHUNK - 1, rows))


def _copy(url: str, row: type[Base], ids: Sequence[str], *, due_at: int | None) -> str:
    table = table_of(row)
    names = [column.name for column in table.columns]
    values = []
    for name in names:
        if name in OWN:
            values.append(f"\"{name}\" || '-' || {_padded(url, 'g.n')}")
        elif name in DUE:
            due = f'"{name}" + g.n' if due_at is None else str(due_at)
            values.append(f'CASE WHEN "{name}" < {NEVER} THEN {due} ELSE "{name}" END')
        else:
            values.append(f'"{name}"')
    of_ids = ", ".join(f"'{run_id}'" for run_id in ids)
    key = "id" if row is RunRow else "run_id"
    return _insert(url, table.name, names, values, f"{key} IN ({of_ids})")


def _insert(url: str, table: str, names: list[str], values: list[str], where: str) -> str:
    columns = ", ".join(f'"{name}"' for name in names)
    if url.startswith("sqlite"):
        numbers = "WITH RECURSIVE g(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM g WHERE n < :last) "
        series = "g"
    else:
        numbers, series = "", "generate_series(:first, :last) AS g(n)"
    return (
        f"{numbers}INSERT INTO {table} ({columns}) SELECT {', '.join(values)} FROM {series} CROSS JOIN {table} "
        f"WHERE {where} ORDER BY 1"
    )


def _padded(url: str, number: str) -> str:
    # In the order of the numbers: rows that come in the order of their key are quickly stored.
    return f"printf('%08d', {number})" if url.startswith("sqlite") else f"lpad(({number})::text, 8, '0')"


async def _execute(url: str, statements: Sequence[str], first: int, last: int) -> None:
    texts = [text.replace(":first", str(first)).replace(":last", str(last)) for text in statements]
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30, isolation_level=None)
        try:
            connection.execute("PRAGMA wal_autocheckpoint=0")  # else it would write the log back
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("BEGIN IMMEDIATE")
            for text in texts:
                connection.execute(text)
            connection.execute("COMMIT")
        finally:
            connection.close()
        return
    import asyncpg

    database: Any = await asyncpg.connect(url)
    try:
        async with database.transaction():
            await database.execute("SET LOCAL synchronous_commit = off")
            for text in texts:
                await database.execute(text)
    finally:
        await database.close()
