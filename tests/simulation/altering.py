"""A statement of the engine with other words in it, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from agentflow.store.statements.statement import Compiled, Statement


@contextmanager
def text_changed(statement: Statement, old: str, new: str) -> Iterator[None]:
    compiled = statement.sqlite
    assert old in compiled.sql, compiled.sql
    changed = Compiled(compiled.sql.replace(old, new), compiled.arguments)
    with patch.dict(statement.__dict__, {"sqlite": changed}):
        yield
