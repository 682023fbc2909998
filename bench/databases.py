"""Empty databases for the contestants: SQLite files in one folder, PostgreSQL where there is one.

PostgreSQL is the server of AGENTFLOW_TEST_DATABASE_URL (its user may create databases), or one that is started from the
binaries of the extra [dev], as the tests do it, with its data on the same disk as the SQLite files: in memory a commit
would cost nothing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from bench.plan import POSTGRESQL


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """The URL of a server."""
    if given := os.environ.get("AGENTFLOW_TEST_DATABASE_URL"):
        yield given
        return
    from tests.postgres_server import PostgresServer

    server = PostgresServer(data_in=folder)
    try:
        server.start()
        yield server.url()
    finally:
        server.close()


@contextlib.asynccontextmanager
async def empty_database(kind: str, folder: Path, server: str | None) -> AsyncIterator[tuple[Path, str]]:
    """A folder of its own and the URL of a database in it, or in the server."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as own:
        if kind != POSTGRESQL:
            yield Path(own), f"sqlite:///{own}/bench.db"
            return
        assert server is not None
        name = f"bench_{secrets.token_hex(6)}"
        await _execute(server, f'CREATE DATABASE "{name}"')
        try:
            yield Path(own), urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
        finally:
            await _execute(server, f'DROP DATABASE "{name}" WITH (FORCE)')


async def _execute(server: str, statement: str) -> None:
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
