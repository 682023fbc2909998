"""The raw limit: what the database itself takes for the rows of each workload, with the driver and nothing else."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import asyncpg

from bench.talk import Figures, Work, Workloads, answer, spread

PAYLOAD = '{"n":1}'
BATCH = 500
ROUNDS = 9
TABLE = "CREATE TABLE step (run_id TEXT, key TEXT, seq INTEGER, output TEXT, PRIMARY KEY (run_id, key))"


class SQLite:
    """One connection with the pragmas that agentflow uses."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, work: Work) -> SQLite:
        connection = sqlite3.connect(Path(work.folder) / "raw.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'NORMAL' if work.database == 'process' else 'FULL'}")
        connection.execute(TABLE + " WITHOUT ROWID")
        return cls(connection)

    async def insert(self, rows: Sequence[tuple[str, str, int, str]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        if len(rows) == 1:
            self._connection.execute("INSERT INTO step VALUES (?, ?, ?, ?)", rows[0])
        else:
            self._connection.executemany("INSERT INTO step VALUES (?, ?, ?, ?)", rows)
        self._connection.execute("COMMIT")

    async def read(self, run_id: str) -> list[str]:
        rows = self._connection.execute(
            "SELECT output FROM step WHERE run_id = ? ORDER BY seq", (run_id,)
        ).fetchall()
        return [output for (output,) in rows]

    async def close(self) -> None:
        self._connection.close()


class PostgreSQL:
    """One connection; a single row is a statement of its own, many are one statement of lists."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, work: Work) -> PostgreSQL:
        connection = await asyncpg.connect(work.url)
        await connection.execute(TABLE)
        return cls(connection)

    async def insert(self, rows: Sequence[tuple[str, str, int, str]]) -> None:
        if len(rows) == 1:
            await self._connection.execute("INSERT INTO step VALUES ($1, $2, $3, $4)", *rows[0])
        else:
            await self._connection.execute(
                "INSERT INTO step SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::text[])",
                *[list(column) for column in zip(*rows, strict=True)],
            )

    async def read(self, run_id: str) -> list[str]:
        rows = await self._connection.fetch("SELECT output FROM step WHERE run_id = $1 ORDER BY seq", run_id)
        return [row["output"] for row in rows]

    async def close(self) -> None:
        await self._connection.close()


async def open_database(work: Work) -> SQLite | PostgreSQL:
    kind = PostgreSQL if work.database == "postgresql" else SQLite
    return await kind.open(work)


async def sequence(work: Work) -> Figures:
    """One INSERT and COMMIT for each step."""
    return {"step": median(await _insert_and_commit(work, work.sizes["steps"]))}


async def start(work: Work) -> Figures:
    """One INSERT and COMMIT for each run."""
    return spread(await _insert_and_commit(work, work.sizes["starts"]))


async def signal(work: Work) -> Figures:
    """One INSERT and COMMIT for each signal."""
    return spread(await _insert_and_commit(work, work.sizes["signals"]))


async def agent(work: Work) -> Figures:
    """One INSERT and COMMIT for each thing a turn keeps: that the model is asked, its answer, a tool's result."""
    count = work.sizes["agent_runs"] * work.sizes["turns"]
    return {"turn": 3 * median(await _insert_and_commit(work, count))}


async def throughput(work: Work) -> Figures:
    """Bulk insert of as many rows as there are steps, 500 in a transaction; seconds a row, the median of rounds."""
    database = await open_database(work)
    count = work.sizes["runs"] * work.sizes["steps_a_run"]
    took = []
    for n in range(ROUNDS):
        began = work.now()
        for first in range(0, count, BATCH):
            await database.insert(_rows(f"run-{n}", first, min(first + BATCH, count)))
        took.append(work.now() - began)
    await database.close()
    return {"step": median(took) / count}


async def parallel(work: Work) -> Figures:
    """All steps of a run in one transaction; the median of some runs."""
    database = await open_database(work)
    took = []
    for n in range(ROUNDS):
        began = work.now()
        await database.insert(_rows(f"run-{n}", 0, work.sizes["branches"]))
        took.append(work.now() - began)
    await database.close()
    return {"run": median(took)}


async def replay(work: Work) -> Figures:
    """Read the steps of a run back and decode them; the median of some times."""
    database = await open_database(work)
    await database.insert(_rows("run", 0, work.sizes["steps"]))
    took = []
    for _ in range(ROUNDS):
        began = work.now()
        outputs = [json.loads(output) for output in await database.read("run")]
        took.append(work.now() - began)
        assert len(outputs) == work.sizes["steps"]
    await database.close()
    return {"resume": median(took)}


async def _insert_and_commit(work: Work, count: int) -> list[float]:
    database = await open_database(work)
    took = []
    for n in range(count):
        began = work.now()
        await database.insert(_rows("run", n, n + 1))
        took.append(work.now() - began)
    await database.close()
    return took


def _rows(run: str, first: int, end: int) -> list[tuple[str, str, int, str]]:
    return [(run, f"step:{n}", n, PAYLOAD) for n in range(first, end)]


WORKLOADS: Workloads = {
    work.__name__: work for work in (sequence, start, signal, agent, throughput, parallel, replay)
}

if __name__ == "__main__":
    answer(WORKLOADS)
