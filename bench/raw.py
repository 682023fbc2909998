"""The raw limit: what SQLite itself takes for one row, with the driver and nothing else."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from statistics import median

PAYLOAD = '{"n":1}'


def insert_and_commit(folder: Path, *, rows: int, synchronous: str = "FULL") -> float:
    """Seconds for one INSERT and COMMIT of its own: the median of `rows`."""
    connection = _table(folder / f"raw-{synchronous}.db", synchronous)
    took = []
    for n in range(rows):
        began = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO step VALUES (?, ?, ?, ?)", ("run", f"step:{n}", n, PAYLOAD))
        connection.execute("COMMIT")
        took.append(time.perf_counter() - began)
    connection.close()
    return median(took)


def bulk_insert(folder: Path, *, rows: int) -> float:
    """Rows a second with 500 in a transaction."""
    connection = _table(folder / "raw-bulk.db", "FULL")
    began = time.perf_counter()
    for first in range(0, rows, 500):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO step VALUES (?, ?, ?, ?)",
            [("run", f"step:{n}", n, PAYLOAD) for n in range(first, first + 500)],
        )
        connection.execute("COMMIT")
    took = time.perf_counter() - began
    connection.close()
    return rows / took


def _table(path: Path, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute(
        "CREATE TABLE step (run_id TEXT, key TEXT, seq INTEGER, output TEXT, PRIMARY KEY (run_id, key)) WITHOUT ROWID"
    )
    return connection
