"""Databases that have their tables already: made once and copied for each of the hundreds of tests.

A folder takes `sqlite_url` and `postgres_url` from here, instead of the empty databases of tests/conftest.py, by
importing them in its conftest. What they are copied from belongs to the whole run.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("migrated") / "agentflow.db"
    _migrate(f"sqlite:///{file}")
    return file


@pytest.fixture
def sqlite_url(tmp_path: Path, migrated_file: Path) -> str:
    for file in migrated_file.parent.glob(f"{migrated_file.name}*"):
        shutil.copy(file, tmp_path / file.name) if file.is_file() else shutil.copytree(
            file, tmp_path / file.name
        )
    return f"sqlite:///{tmp_path / migrated_file.name}"


class Template:
    """A database with tables, and the one copy of it that is in use: emptied for each test, and now and then new."""

    MOST_USES = 50

    def __init__(self, admin_url: str) -> None:
        self._admin_url = admin_url
        self._name = f"agentflow_template_{secrets.token_hex(6)}"
        self._copy = f"{self._name}_copy"
        self._uses = 0
        self._emptying = Emptying(url_of(admin_url, self._copy))
        self._execute(f'CREATE DATABASE "{self._name}" TEMPLATE template0')
        _migrate(url_of(admin_url, self._name))

    def fresh(self) -> str:
        """The URL of a database that has its tables, and nothing in them."""
        if self._uses % self.MOST_USES == 0:
            self._drop_copy()
            self._execute(f'CREATE DATABASE "{self._copy}" TEMPLATE "{self._name}"')
        else:
            self._emptying.empty()
        self._uses += 1
        return self._emptying.url

    def close(self) -> None:
        self._drop_copy()
        self._execute(f'DROP DATABASE "{self._name}" WITH (FORCE)')
        self._emptying.close()

    def _drop_copy(self) -> None:
        self._emptying.disconnect()
        self._execute(f'DROP DATABASE IF EXISTS "{self._copy}" WITH (FORCE)')

    def _execute(self, statement: str) -> None:
        asyncio.run(execute(self._admin_url, statement))


class Emptying:
    """Empties one database for one test after the other.

    By a connection that stays: what a new one has to learn first takes ten times as long as to delete the rows.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._loop = asyncio.new_event_loop()
        self._connection: asyncpg.Connection | None = None
        self._statement = ""

    def empty(self) -> None:
        """Delete all rows; whoever else is still connected is cut off first."""
        try:
            self._loop.run_until_complete(self._empty())
        except (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, asyncpg.InterfaceError):
            # A test has ended all sessions.
            self.disconnect()
            self._loop.run_until_complete(self._empty())

    def disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
            self._loop.run_until_complete(asyncio.sleep(0))

    def close(self) -> None:
        self.disconnect()
        self._loop.close()

    async def _empty(self) -> None:
        if self._connection is None:
            self._connection = await asyncpg.connect(self.url, statement_cache_size=0)
            tables = await self._connection.fetch(
                "SELECT tablename FROM pg_tables "
                "WHERE tablename LIKE 'agentflow_%' AND tablename <> 'agentflow_version'"
            )
            self._statement = "".join(f"DELETE FROM {table[0]};" for table in tables)
        await self._connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await self._connection.execute(self._statement)


@pytest.fixture(scope="session")
def migrated_database(postgres_admin_url: str) -> Iterator[Template]:
    template = Template(postgres_admin_url)
    yield template
    template.close()


@pytest.fixture
def postgres_url(migrated_database: Template) -> str:
    return migrated_database.fresh()


def _migrate(url: str) -> None:
    from agentflow import App  # not for every run that has this conftest

    asyncio.run(App("t", database_url=url).migrate())


def url_of(admin_url: str, name: str) -> str:
    return urlunsplit(urlsplit(admin_url)._replace(path=f"/{name}"))


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
