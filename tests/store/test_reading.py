"""Reads by the driver itself: their connections are kept as long as nothing has befallen them, and give way."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest

from agentflow.store.operation_types import StartRun
from agentflow.store.postgres.connection import is_outage
from agentflow.store.postgres.reading import PostgresDirect
from agentflow.store.sqlite import reading as sqlite_reading
from agentflow.store.sqlite.reading import SqliteDirect
from agentflow.store.statements.statement import Compiled, Statement
from tests.store.support import a_run, make_store


class Asks:
    """A statement as it is written here."""

    def __init__(self, sql: str) -> None:
        self.sqlite = self.postgres = Compiled(sql, lambda _: [])


async def ask(direct: PostgresDirect | SqliteDirect, sql: str, run: str = "r") -> Any:
    rows = await direct.fetch(cast(Statement, Asks(sql)), {"run": run})
    return None if rows is None else rows[0][0]


OWN_PID = "SELECT pg_backend_pid()"
TWICE = "SELECT pg_backend_pid() FROM pg_sleep(0.05)"


@pytest.fixture
async def direct(postgres_url: str) -> AsyncIterator[PostgresDirect]:
    direct = PostgresDirect(postgres_url)
    yield direct
    await direct.close()


async def test_a_read_that_is_given_up_leaves_others_their_connections(
    direct: PostgresDirect, postgres_url: str
) -> None:
    """Somebody who reads a stream may leave in the middle of a read."""
    before = set(await asyncio.gather(ask(direct, TWICE), ask(direct, TWICE)))
    assert len(before) == 2
    leaving = asyncio.create_task(ask(direct, "SELECT pg_sleep(60)"))
    admin = await asyncpg.connect(postgres_url)
    while not await admin.fetch("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(60)'"):
        await asyncio.sleep(0.01)
    await admin.close()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    after = set(await asyncio.gather(ask(direct, TWICE), ask(direct, TWICE)))
    assert (len(after), len(after & before)) == (2, 1)


async def test_an_error_of_the_server_costs_no_connection(direct: PostgresDirect) -> None:
    before = await ask(direct, OWN_PID)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await ask(direct, "SELECT 1/0")
    assert await ask(direct, OWN_PID) == before


async def test_what_was_let_go_is_not_used_again(direct: PostgresDirect) -> None:
    before = await ask(direct, OWN_PID)
    under_way = asyncio.create_task(ask(direct, TWICE))
    await asyncio.sleep(0)
    direct.drop()
    assert await under_way == before  # what is under way goes on to its end
    assert await ask(direct, OWN_PID) != before


async def test_a_dead_connection_costs_one_read(direct: PostgresDirect, postgres_url: str) -> None:
    pids = await asyncio.gather(ask(direct, TWICE), ask(direct, TWICE))
    admin = await asyncpg.connect(postgres_url)
    for pid in pids:
        await admin.execute("SELECT pg_terminate_backend($1)", pid)
    await admin.close()
    with pytest.raises(Exception) as caught:  # which one depends on how far the server's farewell has come
        await ask(direct, OWN_PID)
    assert is_outage(caught.value)
    assert await ask(direct, OWN_PID) not in pids


async def test_a_file_that_is_busy_is_left_to_who_can_wait(tmp_path: Path) -> None:
    path = tmp_path / "busy.db"
    sqlite3.connect(path).execute("CREATE TABLE t (n)").connection.close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    direct = SqliteDirect(path)
    assert await ask(direct, "SELECT count(*) FROM t") is None
    holder.execute("COMMIT")
    holder.close()
    assert await ask(direct, "SELECT count(*) FROM t") == 0
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await ask(direct, "INSERT INTO t VALUES (1) RETURNING n")
    await direct.close()


async def test_a_text_that_is_none_is_an_error_of_the_database(tmp_path: Path) -> None:
    """Of a row that somebody changed by hand; the driver finds that out, not SQLite, and gives it no number."""
    direct = SqliteDirect(tmp_path / "empty.db")
    with pytest.raises(sqlite3.OperationalError, match="UTF-8"):
        await ask(direct, "SELECT CAST(x'ff' AS TEXT)")
    assert await ask(direct, "SELECT 1") == 1
    await direct.close()


async def test_who_asks_without_a_pause_lets_others_go_on(sqlite_ready: str) -> None:
    """`while not (await run.status()).is_final: pass` is told of the end, and a time limit around it holds."""
    store = make_store(sqlite_ready)
    await store.open()
    others: list[int] = []
    asyncio.get_running_loop().call_later(0.02, others.append, 1)
    for _ in range(20_000):
        assert await store.queries.get_status("nobody") is None
        if others:
            break
    assert others
    await store.close()


LONG = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000) SELECT count(*) FROM n"
)


async def test_what_takes_long_is_left_to_a_thread_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with many megabytes of steps would hold up the whole loop at each look; others are read as before."""
    direct = SqliteDirect(tmp_path / "empty.db")
    assert await ask(direct, LONG) == 200_000
    assert await ask(direct, LONG) is None
    assert await ask(direct, LONG, run="another") == 200_000
    assert await ask(direct, "SELECT 1") == 1
    monkeypatch.setattr(sqlite_reading, "LEFT_SECONDS", 0.0)
    assert await ask(direct, LONG, run="one more") == 200_000
    assert await ask(direct, LONG, run="one more") == 200_000
    await direct.close()


async def test_a_long_read_is_told_by_a_thread(sqlite_ready: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_reading, "LONG_SECONDS", -1.0)
    store = make_store(sqlite_ready)
    await store.open()
    await store.submit(StartRun(a_run("r"), 1_000))
    for _ in range(2):
        assert await store.queries.get_status("r") == "queued"
    await store.close()
