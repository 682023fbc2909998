"""Worker processes for the crash tests: forked (tests/forked.py), killed, and never left behind."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.forked import ROOT, Forked

FLOW = "tests.crash.flow"


class WorkerProcess:
    """A module such as `tests.crash.flow` in a process of its own."""

    def __init__(
        self,
        database_url: str,
        log: Path,
        *,
        module: str = FLOW,
        crash_at: str | None = None,
        arguments: Sequence[str] = (),
        is_forked: bool = True,
    ) -> None:
        environment = os.environ | ({"AGENTFLOW_CRASH_AT": crash_at} if crash_at else {})
        self._errors = log.with_name(f"{log.name}-errors")
        words = ["-m", module, database_url, str(log), *arguments]
        with self._errors.open("ab") as errors:
            self.process: Forked | subprocess.Popen[bytes] = (
                Forked(words, env=environment, stderr=errors)
                if is_forked
                else subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stderr=errors)
            )
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    async def started(self) -> WorkerProcess:
        """Wait until it works."""
        while f"started {self.pid}" not in lines(self.log):
            if self.process.poll() is not None:
                told = self._errors.read_text()
                raise AssertionError(f"the worker ended with {self.process.returncode}: {told}")
            await asyncio.sleep(0.01)
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        assert isinstance(self.process, Forked)
        self.process.stop()

    def resume(self) -> None:
        assert isinstance(self.process, Forked)
        self.process.go_on()

    def close(self) -> None:
        self.kill()
        if isinstance(self.process, Forked):
            self.process.close()


@contextmanager
def workers(database_url: str, log: Path, *, module: str = FLOW, is_forked: bool = True) -> Iterator[Workers]:
    """Start workers in this block; all of them are gone after it.

    What changes the interpreter before agentflow is imported cannot be forked from one that has imported it.
    """
    group = Workers(database_url, log, module=module, is_forked=is_forked)
    try:
        yield group
    finally:
        for worker in group.all:
            worker.close()


class Workers:
    """Worker processes on one database."""

    def __init__(self, database_url: str, log: Path, *, module: str = FLOW, is_forked: bool = True) -> None:
        self._module = module
        self._is_forked = is_forked
        self._database_url = database_url
        self._log = log
        self.all: list[WorkerProcess] = []

    async def start(self, *arguments: str, crash_at: str | None = None) -> WorkerProcess:
        return await self.begin(*arguments, crash_at=crash_at).started()

    def begin(self, *arguments: str, crash_at: str | None = None) -> WorkerProcess:
        """Start one without waiting until it works."""
        worker = WorkerProcess(
            self._database_url,
            self._log,
            module=self._module,
            crash_at=crash_at,
            arguments=arguments,
            is_forked=self._is_forked,
        )
        self.all.append(worker)
        return worker


async def end_leases(database_url: str) -> None:
    """Where every worker is dead: let their leases be over, as they would be a while later.

    On SQLite nobody waits for that: the lock of a process goes with it.
    """
    if not database_url.startswith("sqlite"):
        import asyncpg

        database = await asyncpg.connect(database_url)
        try:
            await database.execute("UPDATE agentflow_worker SET lease_until = 0 WHERE reaped_at IS NULL")
        finally:
            await database.close()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def pause_outside_of_a_write(worker: WorkerProcess, database_url: str) -> None:
    """A process stopped inside a write to SQLite keeps its peers out, until the operating system lets go."""
    worker.pause()
    while database_url.startswith("sqlite") and not _can_be_written(database_url.removeprefix("sqlite:///")):
        worker.resume()
        await asyncio.sleep(0.01)
        worker.pause()


def _can_be_written(path: str) -> bool:
    connection = sqlite3.connect(path, isolation_level=None, timeout=0.5)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return False
    else:
        return True
    finally:
        connection.close()
