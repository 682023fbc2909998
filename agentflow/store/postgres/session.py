"""A session on the server, and its end: before a batch is played again, nothing of the first try may still happen.

A network may hold back what was sent on a connection that we have given up, and deliver it after the same batch was
committed on the next one. All of it would find itself done; but what somebody has taken back meanwhile (a wait that
was withdrawn) it would do once more. So the server ends the old session first, which also lets go of its locks.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple, Self

import asyncpg  # type: ignore[import-untyped]

END_SECONDS = 5.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.005, 0.2

# The number of a process may be another's after a while; with the instant at which it began it is this one's alone.
_OWN = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start = $2"


class Session(NamedTuple):
    """The server's side of a connection."""

    pid: int
    began_at: datetime

    @classmethod
    async def of(cls, connection: asyncpg.Connection[Any]) -> Self | None:
        """The connection's own; none where a pooler in between hides it."""
        row = await connection.fetchrow(_OWN)
        return None if row is None else cls(*row)


async def end_session(connection: asyncpg.Connection[Any], session: Session | None) -> None:
    """End it and wait until it is gone. Raises `TimeoutError` if it will not end."""
    if session is None:
        return
    pause = SHORTEST_PAUSE
    with suppress(
        asyncpg.InsufficientPrivilegeError
    ):  # a server that does not let us has to end it by itself
        async with asyncio.timeout(END_SECONDS):
            while await connection.fetch(_END, *session):
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
