"""Statements compiled before anybody waits for them.

SQLAlchemy takes about a millisecond for each, so that the first signal, wait or claim of a run in a process would take
ten times as long as the next.
"""

from __future__ import annotations

import threading
import time
from typing import Final, Literal

from agentflow.store.statement import every_statement

PAUSE_SECONDS: Final = 0.002
"""Between two, so that the event loop has its turn: the thread takes a quarter of a core, for half a second."""

_begun: set[str] = set()


def compile_ahead(database: Literal["sqlite", "postgres"]) -> None:
    """Compile all statements in a thread, once in a process."""
    if database not in _begun:
        _begun.add(database)
        threading.Thread(
            target=_compile_all, args=(database,), name="agentflow-statements", daemon=True
        ).start()


def _compile_all(database: str) -> None:
    for each in every_statement():
        if database == "postgres" or not each.only_postgres:
            getattr(each, database)
            time.sleep(PAUSE_SECONDS)
