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


@pytest.fixture(scope="session")
def migrated_database(postgres_admin_url: str) -> Iterator[str]:
    name = f"agentflow_template_{secrets.token_hex(6)}"
    asyncio.run(execute(postgres_admin_url, f'CREATE DATABASE "{name}" TEMPLATE template0'))
    asyncio.run(App("t", database_url=url_of(postgres_admin_url, name)).migrate())
    yield name
    asyncio.run(execute(postgres_admin_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


@pytest.fixture
def postgres_url(postgres_admin_url: str, migrated_database: str) -> Iterator[str]:
    name = f"agentflow_test_{secrets.token_hex(6)}"
    asyncio.run(execute(postgres_admin_url, f'CREATE DATABASE "{name}" TEMPLATE "{migrated_database}"'))
    yield url_of(postgres_admin_url, name)
    asyncio.run(execute(postgres_admin_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


def url_of(admin_url: str, name: str) -> str:
    return urlunsplit(urlsplit(admin_url)._replace(path=f"/{name}"))


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
