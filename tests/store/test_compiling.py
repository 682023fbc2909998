"""Statements are compiled ahead, and the thread that does it ends with its store."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from agentflow.store import compiling
from agentflow.store.compiling import CompilingAhead
from agentflow.store.postgres.store import PostgresStore
from agentflow.store.sqlite.store import SqliteStore
from agentflow.store.statements.statement import every_statement

STORES = (SqliteStore, PostgresStore)
"""Their modules load all that write statements."""


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    before = [(each, dict(vars(each))) for each in every_statement()]
    for each in every_statement():
        each.__dict__.pop("sqlite", None)
        each.__dict__.pop("postgres", None)
    yield
    for each, compiled in before:
        each.__dict__.update(compiled)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "agentflow-statements"]


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_all_statements_are_compiled_once(database: Literal["sqlite", "postgres"]) -> None:
    statements = [each for each in every_statement() if database == "postgres" or not each.only_postgres]
    CompilingAhead(database).start()
    for thread in threads():
        thread.join(30)
    assert len(statements) > 100, STORES
    assert all(database in vars(each) for each in statements)
    again = CompilingAhead(database)
    again.start()
    assert threads() == []
    again.stop()


async def test_the_thread_ends_with_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "PAUSE_SECONDS", 60.0)
    store = SqliteStore(tmp_path / "agentflow.db")
    await store.open()
    assert len(threads()) == 1
    await store.close()
    assert threads() == []
    assert not all("sqlite" in vars(each) for each in every_statement())
