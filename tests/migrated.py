"""Databases that have their tables already: made once and copied for each of the hundreds of tests.

A folder takes these fixtures instead of the empty databases of tests/conftest.py by importing them in its conftest.
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

from agentflow import App


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("migrated") / "agentflow.db"
    asyncio.run(App("t", database_url=f"sqlite:///{file}").migrate())
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
        self._execute(f'CREATE DATABASE "{self._name}" TEMPLATE template0')
        asyncio.run(App("t", database_url=url_of(admin_url, self._name)).migrate())

    def fresh(self) -> str:
        """The URL of a database that has its tables, and nothing in them."""
        url = url_of(self._admin_url, self._copy)
        if self._uses % self.MOST_USES == 0:
            self._drop(self._copy)
            self._execute(f'CREATE DATABASE "{self._copy}" TEMPLATE "{self._name}"')
        else:
            asyncio.run(empty(url))
        self._uses += 1
        return url

    def close(self) -> None:
        self._drop(self._copy)
        self._drop(self._name)

    def _drop(self, name: str) -> None:
        self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _execute(self, statement: str) -> None:
        asyncio.run(execute(self._admin_url, statement))


@pytest.fixture(scope="session")
def migrated_database(postgres_admin_url: str) -> Iterator[Template]:
    template = Template(postgres_admin_url)
    yield template
    template.close()


@pytest.fixture
def postgres_url(migrated_database: Template) -> str:
    return migrated_database.fresh()


def url_of(admin_url: str, name: str) -> str:
    return urlunsplit(urlsplit(admin_url)._replace(path=f"/{name}"))


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def empty(url: str) -> None:
    """Delete all rows; whoever is still connected is cut off first."""
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        tables = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE tablename LIKE 'agentflow_%' AND tablename <> 'agentflow_version'"
        )
        await connection.execute("".join(f"DELETE FROM {table[0]};" for table in tables))
    finally:
        await connection.close()
