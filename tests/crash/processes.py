"""Worker processes for the crash tests: started, killed, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FLOW = "tests.crash.flow"
ROOT = Path(__file__).resolve().parents[2]


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
    ) -> None:
        environment = os.environ | ({"AGENTFLOW_CRASH_AT": crash_at} if crash_at else {})
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, database_url, str(log), *arguments],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
        )
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    async def started(self) -> WorkerProcess:
        """Wait until it works."""
        while f"started {self.pid}" not in lines(self.log):
            if self.process.poll() is not None:
                raise AssertionError(f"the worker ended with {self.process.returncode}: {self._errors()}")
            await asyncio.sleep(0.01)
        return self

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def pause(self) -> None:
        """Stop it; on a busy machine its threads go on for a while after the signal."""
        self.process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"it has ended instead: {status}"

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()


@contextmanager
def workers(database_url: str, log: Path, *, module: str = FLOW) -> Iterator[Workers]:
    """Start workers in this block; all of them are gone after it."""
    group = Workers(database_url, log, module=module)
    try:
        yield group
    finally:
        for worker in group.all:
            worker.close()


class Workers:
    """Worker processes on one database."""

    def __init__(self, database_url: str, log: Path, *, module: str = FLOW) -> None:
        self._module = module
        self._database_url = database_url
        self._log = log
        self.all: list[WorkerProcess] = []

    async def start(self, *arguments: str, crash_at: str | None = None) -> WorkerProcess:
        return await self.begin(*arguments, crash_at=crash_at).started()

    def begin(self, *arguments: str, crash_at: str | None = None) -> WorkerProcess:
        """Start one without waiting until it works."""
        worker = WorkerProcess(
            self._database_url, self._log, module=self._module, crash_at=crash_at, arguments=arguments
        )
        self.all.append(worker)
        return worker


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
