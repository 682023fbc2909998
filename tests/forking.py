"""The process that forks others, for tests/forked.py: `python -m tests.forking [MODULE]`, its jobs on standard input.

It imports what agentflow's processes import, forks a child for each job and tells what becomes of it. With a module of
its own the words of a job are for that module's `main`. It ends, with its children, when nobody can ask any more.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TextIO

from agentflow import crashpoints

IMPORTED = (
    "agentflow.testing",
    "agentflow.auth",
    "agentflow.cli.demo.session",
    "agentflow.http.router",
    "agentflow.agents.loop",
    "agentflow.engine.worker",
    "agentflow.store.opening",
    "agentflow.store.postgres.store",
    "agentflow.store.sqlite.store",
    "agentflow_scripted",
    "aiosqlite",
    "alembic.command",
    "alembic.config",
    "alembic.context",
    "genai_prices.data",
    "genai_prices.data_units",
    "pydantic.v1",
    "rich.console",
    "rich.table",
    "typer._adapters",
    "uvicorn.lifespan.on",
    "uvicorn.loops.asyncio",
    "uvicorn.loops.auto",
    "uvicorn.main",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
)
"""What takes long, and what is only imported when it is needed."""

READ_AT_THE_START = ("PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONWARNINGS", "LANG", "LC_ALL")
"""What an interpreter reads when it starts, and a forked process therefore cannot be given."""

LENGTH = struct.Struct("!I")

Main = Callable[..., Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Job:
    """What a process is to do."""

    words: tuple[str, ...]
    cwd: str
    env: dict[str, str]
    is_warm_up: bool = False

    @property
    def is_to_fork(self) -> bool:
        return self.words[:2] == ("-m", "tests.forking")


def main(module: str | None = None) -> None:
    """Fork until nobody asks any more; each child returns from here only when its own work is done."""
    for name in IMPORTED:
        importlib.import_module(name)
    its_main = importlib.import_module(module).main if module else None
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    gc.freeze()  # what is here stays: a child's collector need not look at it, nor copy it
    job = Forking(control, its_main).serve()
    if job is None:
        return
    if its_main:
        asyncio.run(its_main(*job.words))
    else:
        _run_as_python_does(job)


def _run_as_python_does(job: Job) -> None:
    words = list(job.words)
    usual = [folder for folder in sys.path[1:] if folder not in _PYTHONPATH]
    given = [folder for folder in job.env.get("PYTHONPATH", "").split(os.pathsep) if folder]
    is_safe = words[0] == "-P"
    if is_safe:
        del words[0]
    is_module = words[0] == "-m"
    if is_module:
        del words[0]
    first = job.cwd if is_module else os.path.dirname(os.path.abspath(words[0]))
    sys.path[:] = [*([] if is_safe else [first]), *given, *usual]
    sys.argv[:] = words
    if is_module:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


_PYTHONPATH = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]


class Forking:
    """Forks a child for each job, and tells what becomes of it; ends when nobody can ask any more."""

    def __init__(self, control: socket.socket, main: Main | None) -> None:
        self._control = control
        self._main = main
        self._children: dict[int, tuple[Job, int]] = {}
        self._woken, self._wakes = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wakes, False)

    def serve(self) -> Job | None:
        """None in this process, when it has to end; in each child its job."""
        self._hear_of_children()
        while True:
            ready, _, _ = select.select([self._control, self._woken], [], [])
            if self._woken in ready:
                self._tell()
            if self._control in ready:
                if (received := _receive(self._control)) is None:
                    self._end_children()
                    return None
                if self._do(*received):
                    return received[0]

    def _do(self, job: Job, files: list[int]) -> bool:
        """Whether this is the child."""
        status = files[-1]
        if job.is_warm_up:
            assert self._main is not None
            asyncio.run(self._main(*job.words))
            self._hear_of_children()  # the loop has heard the signals meanwhile
            os.write(status, f"{os.getpid()}\nended 0\n".encode())
        else:
            threads = (
                len(os.listdir("/proc/self/task")) if sys.platform == "linux" else threading.active_count()
            )
            assert threads == 1, f"a process with {threads} threads must not be forked"
            if (pid := os.fork()) == 0:
                self._become_a_child(job, files)
                return True
            self._children[pid] = (job, os.dup(status))
            os.write(status, f"{pid}\n".encode())
        for file in files:
            os.close(file)
        return False

    def _become_a_child(self, job: Job, files: list[int]) -> None:
        """Leave behind all that is the starter's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Who starts the tests in the background may have them ignore this one.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        self._control.close()
        *standard, status = files
        for file in (status, self._woken, self._wakes, *(file for _, file in self._children.values())):
            os.close(file)
        for number, file in enumerate(standard):
            os.dup2(file, number)
            os.close(file)
        sys.stdin = _open_text(0, sys.stdin)
        sys.stdout = _open_text(1, sys.stdout)
        sys.stderr = _open_text(2, sys.stderr)
        os.chdir(job.cwd)
        for name in READ_AT_THE_START:
            assert job.env.get(name) == os.environ.get(name), f"{name} is read when an interpreter starts"
        os.environ.clear()
        os.environ.update(job.env)
        time.tzset()
        if crash_at := job.env.get(crashpoints.VARIABLE):
            crashpoints.arm_from(crash_at)  # else the import does

    def _hear_of_children(self) -> None:
        signal.set_wakeup_fd(self._wakes)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _tell(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._woken, 4096):
                pass
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                return
            if os.WIFSTOPPED(status):
                os.write(self._children[pid][1], b"stopped\n")
                continue
            _, file = self._children.pop(pid)
            # Nobody listens any more when the test has been given up.
            with suppress(BrokenPipeError):
                os.write(file, f"ended {os.waitstatus_to_exitcode(status)}\n".encode())
            os.close(file)

    def _end_children(self) -> None:
        for pid, (job, _) in self._children.items():
            if not job.is_to_fork:  # that one hears the same, and has children of its own to end
                os.kill(pid, signal.SIGKILL)  # it may not lead its group yet
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)


def _receive(control: socket.socket) -> tuple[Job, list[int]] | None:
    start, files, _, _ = socket.recv_fds(control, LENGTH.size, 4)
    if not start:
        return None
    (length,) = LENGTH.unpack(start)
    text = b""
    while len(text) < length:
        block = control.recv(length - len(text))
        assert block, "a job without its end"
        text += block
    words, *rest = json.loads(text)
    return Job(tuple(words), *rest), files


def _open_text(descriptor: int, like: TextIO) -> TextIO:
    return open(
        descriptor,
        "r" if descriptor == 0 else "w",
        encoding=like.encoding,
        errors=like.errors,
        # As the interpreter has it: errors at once, all else by lines where somebody looks.
        buffering=1 if descriptor == 2 or os.isatty(descriptor) else -1,
        closefd=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
