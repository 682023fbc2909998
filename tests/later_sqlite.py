"""What later versions of Python refuse of `sqlite3`, refused here too: the tests run on the first supported one."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest


class _Connection(sqlite3.Connection):
    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        if "RETURNING" in sql:
            raise sqlite3.InterfaceError(f"from Python 3.12 on it stumbles over the rows: {sql}")
        return super().executemany(sql, parameters)


@pytest.fixture(scope="session", autouse=sys.version_info < (3, 12))
def refuses_what_later_ones_refuse() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=_Connection))
        yield
