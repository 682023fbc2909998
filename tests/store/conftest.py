"""An open, empty store with a worker, on each database.

Tables are made once; each test gets a copy of the SQLite file, or the PostgreSQL database emptied.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from agentflow.store.protocol import Store
from tests.migrated import Emptying, url_of
from tests.store.support import World, make_store, with_worker


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "agentflow.db"
    asyncio.run(_migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_admin_url: str) -> Iterator[Emptying]:
    name = "agentflow_store_tests"
    asyncio.run(
        _execute(
            postgres_admin_url,
            f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)',
            f'CREATE DATABASE "{name}" TEMPLATE template0',
        )
    )
    emptying = Emptying(url_of(postgres_admin_url, name))
    asyncio.run(_migrate(emptying.url))
    yield emptying
    emptying.close()
    asyncio.run(_execute(postgres_admin_url, f'DROP DATABASE "{name}" WITH (FORCE)'))


@pytest.fixture
def sqlite_ready(tmp_path: Path, migrated_sqlite: Path) -> str:
    shutil.copy(migrated_sqlite, tmp_path / "agentflow.db")
    return f"sqlite:///{tmp_path / 'agentflow.db'}"


@pytest.fixture
def postgres_ready(migrated_postgres: Emptying) -> str:
    migrated_postgres.empty()
    return migrated_postgres.url


@pytest.fixture(params=["sqlite", "postgres"])
def ready_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_ready")
    return url


@pytest.fixture
async def store(ready_url: str) -> AsyncIterator[Store]:
    store = make_store(ready_url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def world(store: Store) -> World:
    return await with_worker(store)


async def _migrate(url: str) -> None:
    await make_store(url).migrate()


async def _execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()
