"""Statements compiled before anybody waits for them.

SQLAlchemy takes about a millisecond for each, so that the first signal, wait or claim of a run in a process would take
ten times as long as the next.
"""

from __future__ import annotations

from threading import Event, Thread
from typing import Final, Literal

from agentflow.store.statements.statement import Statement, every_statement

PAUSE_SECONDS: Final = 0.002
"""Between two, so that the event loop has its turn: the thread takes a quarter of a core, for half a second."""


class CompilingAhead:
    """A thread that compiles all statements for a database that were not compiled in this process before."""

    def __init__(self, database: Literal["sqlite", "postgres"]) -> None:
        self._database = database
        self._is_to_stop = Event()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin, where there is anything to do."""
        if self._left():
            self._thread = Thread(target=self._run, name="agentflow-statements", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Let the statement that it is at be the last."""
        self._is_to_stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        for each in self._left():
            getattr(each, self._database)
            if self._is_to_stop.wait(PAUSE_SECONDS):
                break

    def _left(self) -> list[Statement]:
        return [
            each
            for each in every_statement()
            if self._database not in vars(each) and not (each.only_postgres and self._database == "sqlite")
        ]
