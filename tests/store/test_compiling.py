"""Statements are compiled ahead, once in a process."""

from __future__ import annotations

import threading
from typing import Literal

import pytest

from agentflow.store import compiling
from agentflow.store.postgres import PostgresStore
from agentflow.store.sqlite import SqliteStore
from agentflow.store.statement import every_statement

STORES = (SqliteStore, PostgresStore)
"""Their modules load all that write statements."""


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_all_statements_are_compiled_once(
    database: Literal["sqlite", "postgres"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_begun", set())
    statements = [each for each in every_statement() if database == "postgres" or not each.only_postgres]
    for each in statements:
        each.__dict__.pop(database, None)
    before = set(threading.enumerate())
    compiling.compile_ahead(database)
    compiling.compile_ahead(database)
    begun = set(threading.enumerate()) - before
    assert len(begun) <= 1
    for thread in begun:
        thread.join(30)
    assert len(statements) > 100, STORES
    assert all(database in vars(each) for each in statements)
