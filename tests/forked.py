"""Processes for tests that start many: each is forked, in milliseconds, from one that has imported everything.

`Forked(["-m", "tests.crash.flow", url, log])` is what `subprocess.Popen([sys.executable, "-m", ...])` is: a process
with a number, a session, files, an environment and a folder of its own, that is killed, stopped and waited for as any
other. Only its imports were done before it began: where a test is about those, or about the interpreter's own start,
the real command stays. What forks is tests/forking.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import IO, Any

from tests.forking import LENGTH, Job

ROOT = Path(__file__).resolve().parents[1]
KILLED = -signal.SIGKILL
FORKING = "tests.forking"


class Forked:
    """A process that runs `-m module words` or `script words`; what `subprocess.Popen` has, this has too."""

    def __init__(
        self,
        words: Sequence[str | Path],
        *,
        cwd: str | Path = ROOT,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[Any] | None = DEVNULL,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        starter: Starter | None = None,
        is_warm_up: bool = False,
    ) -> None:
        self.args = [str(word) for word in words]
        self.returncode: int | None = None
        self._is_stopped = False
        self._told = b""
        self.stdin, its_stdin = _file(stdin, 0)
        self.stdout, its_stdout = _file(stdout, 1)
        self.stderr, its_stderr = (None, os.dup(its_stdout)) if stderr == STDOUT else _file(stderr, 2)
        self._status, its_status = os.pipe()
        os.set_blocking(self._status, False)
        try:
            environment = dict(os.environ if env is None else env)
            (starter or the_starter()).begin(
                Job(tuple(self.args), str(cwd), environment, is_warm_up),
                [its_stdin, its_stdout, its_stderr, its_status],
            )
        finally:
            for end in (its_stdin, its_stdout, its_stderr, its_status):
                os.close(end)
        self.pid = int(self._next_word(time.monotonic() + 60))

    def poll(self) -> int | None:
        """The return code, once it has ended; of what was killed minus the signal's number."""
        while self.returncode is None and (word := self._read_word()):
            self._hear(word)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its return code, when it has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            self._hear(self._next_word(deadline))
        return self.returncode

    async def ended(self, *, seconds: float = 50) -> int:
        """Its return code, when it has ended; the loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            while self.poll() is None:
                is_told = asyncio.Event()
                loop.add_reader(self._status, is_told.set)
                try:
                    await is_told.wait()
                finally:
                    loop.remove_reader(self._status)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[bytes, None]:
        """What it still says on its standard output, until it has ended."""
        assert self.stdout is not None, "its standard output is no pipe"
        assert self.stderr is None, "with a pipe for errors too, one could fill while the other is read"
        deadline = None if timeout is None else time.monotonic() + timeout
        told = b""
        while True:
            _wait_for(self.stdout.fileno(), deadline, self.args)
            if not (block := os.read(self.stdout.fileno(), 65536)):
                break
            told += block
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        self.stdout.close()
        return told, None

    def stop(self) -> None:
        """SIGSTOP; on a busy machine its threads go on for a while after the signal, so wait until they stand."""
        self.send_signal(signal.SIGSTOP)
        while not self._is_stopped:
            self._hear(self._next_word(None))
            assert self.returncode is None, f"it has ended instead: {self.returncode}"

    def go_on(self) -> None:
        """SIGCONT."""
        self.send_signal(signal.SIGCONT)
        self._is_stopped = False

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill it if it is still there; close what was opened for it."""
        self.kill()
        self.wait()
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                file.close()
        if self._status >= 0:
            os.close(self._status)
            self._status = -1

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_status", -1) >= 0:
            os.close(self._status)

    def _hear(self, word: str) -> None:
        kind, _, number = word.partition(" ")
        if kind == "stopped":
            self._is_stopped = True
        else:
            assert kind == "ended", word
            self.returncode = int(number)

    def _next_word(self, deadline: float | None) -> str:
        while not (word := self._read_word()):
            _wait_for(self._status, deadline, self.args)
        return word

    def _read_word(self) -> str:
        """What the starter tells of the process next; nothing when there is nothing yet."""
        if b"\n" not in self._told:
            with suppress(BlockingIOError):
                block = os.read(self._status, 4096)
                assert block, f"the process that starts others has ended, and {self.args} with it"
                self._told += block
        word, found, rest = self._told.partition(b"\n")
        if found:
            self._told = rest
        return word.decode() if found else ""


def run(
    words: Sequence[str | Path],
    *,
    input: str | None = None,
    timeout: float = 50,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of such a process, with all that it says."""
    with (
        tempfile.TemporaryFile() as told,
        tempfile.TemporaryFile() as errors,
        tempfile.TemporaryFile() as said,
    ):
        if input is not None:
            said.write(input.encode())
            said.seek(0)
            options["stdin"] = said
        with Forked(words, stdout=told, stderr=errors, **options) as process:
            code = process.wait(timeout)
        texts = []
        for file in (told, errors):
            file.seek(0)
            texts.append(file.read().decode())
        done = subprocess.CompletedProcess(process.args, code, *texts)
        if check:
            done.check_returncode()
        return done


class Starter:
    """The process that forks.

    One that has imported `module` too is forked from the common one, and may run its `main` beforehand: what that
    compiles and caches need not be made again by each child.
    """

    def __init__(self, module: str | None = None) -> None:
        self._control, its = socket.socketpair()
        words = ["-m", FORKING, *([module] if module else [])]
        try:
            self.process: subprocess.Popen[bytes] | Forked = (
                Forked(words, stdin=its.fileno())
                if module
                else subprocess.Popen(
                    [sys.executable, *words], cwd=ROOT, stdin=its.fileno(), start_new_session=True
                )
            )
        except BaseException:
            self._control.close()
            raise
        finally:
            its.close()

    def begin(self, job: Job, files: Sequence[int]) -> None:
        """Ask for a process; `files` are its three, and where its starter tells what becomes of it."""
        text = json.dumps(astuple(job)).encode()
        socket.send_fds(self._control, [LENGTH.pack(len(text))], files)
        self._control.sendall(text)

    async def warm_up(self, *words: str) -> None:
        """Run the module's `main` in the process that forks."""
        with Forked(words, starter=self, is_warm_up=True) as itself:
            assert await itself.ended() == 0

    async def run(self, *words: str) -> int:
        """The return code of a process that runs the module's `main`."""
        with Forked(words, starter=self) as process:
            return await process.ended()

    def close(self) -> None:
        """End it, and whatever it has forked."""
        self._control.close()
        self.process.wait(30)
        if isinstance(self.process, Forked):
            self.process.close()

    def __enter__(self) -> Starter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_common: list[Starter] = []


def the_starter() -> Starter:
    """The one that all tests of this process share."""
    if not _common:
        _common.append(Starter())
    return _common[0]


def end_the_starter() -> None:
    while _common:
        _common.pop().close()


def _file(given: int | IO[Any] | None, inherited: int) -> tuple[IO[bytes] | None, int]:
    """The test's end of a pipe, and the descriptor that the process gets."""
    if given == PIPE:
        reading, writing = os.pipe()
        ours, its = (writing, reading) if inherited == 0 else (reading, writing)
        return open(ours, "wb" if inherited == 0 else "rb", buffering=0), its
    if given == DEVNULL:
        return None, os.open(os.devnull, os.O_RDWR)
    return None, os.dup(inherited if given is None else given if isinstance(given, int) else given.fileno())


def _wait_for(descriptor: int, deadline: float | None, words: Sequence[str]) -> None:
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    if not select.select([descriptor], [], [], left)[0]:
        raise subprocess.TimeoutExpired(list(words), 0)
