"""How much is measured, and a look at the tables past agentflow's own code."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
from pathlib import Path
from typing import Any

IS_FULL = os.environ.get("AGENTFLOW_TEST_FULL") == "1"
"""Whether everything that is claimed is done, and the figures printed; else what an ordinary run has time for."""

FIRST_SEED = int(os.environ.get("AGENTFLOW_TEST_SEED", "1"))
SECONDS = 3600 if IS_FULL else 120


async def read_rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    """What a statement without parameters reads, by a connection of its own."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=5)
        # Else closing the last connection would write the log back under the app's feet.
        connection.execute("PRAGMA wal_autocheckpoint=0")
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()
    import asyncpg

    database = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await database.fetch(statement)]
    finally:
        await database.close()


def resident_mb(pid: int | None = None) -> float:
    """What a process, by default this one, holds in memory; where /proc is not there, the most that this one held."""
    try:
        pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def cpu_seconds(pid: int) -> float:
    """The time that a process has used so far, of its own and of the system's (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ignore_what_the_driver_forgot() -> None:
    """asyncpg leaves a future behind when a connection is lost in the instant in which its own time limit is over."""
    loop = asyncio.get_running_loop()
    others = loop.get_exception_handler()
    assert others is not None, "the test runner's"

    def hear(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if str(context.get("exception")) != "unexpected connection_lost() call":
            others(loop, context)

    loop.set_exception_handler(hear)
