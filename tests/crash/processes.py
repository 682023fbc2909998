"""Worker processes for the crash tests: started, killed, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FLOW = "tests.crash.flow"
ROOT = Path(__file__).resolve().parents[2]


class WorkerProcess:
    """A module such as `tests.crash.flow` in a process of its own."""

    def __init__(
        self, database_url: str, log: Path, *, module: str = FLOW, crash_at: str | None = None
    ) -> None:
        environment = os.environ | ({"AGENTFLOW_CRASH_AT": crash_at} if crash_at else {})
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, database_url, str(log)],
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
        self.process.send_signal(signal.SIGSTOP)

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

    async def start(self, *, crash_at: str | None = None) -> WorkerProcess:
        worker = WorkerProcess(self._database_url, self._log, module=self._module, crash_at=crash_at)
        self.all.append(worker)
        return await worker.started()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
