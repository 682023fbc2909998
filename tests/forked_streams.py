"""A forked process (tests/forked.py) whose pipes are asyncio's streams, for code that starts processes in a loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import IO, Any

from tests.forked import ROOT, Forked


class Talking:
    """What `asyncio.subprocess.Process` is, as far as bench and MCP's clients use one."""

    def __init__(self, process: Forked) -> None:
        self._process = process
        self.pid = process.pid
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    async def wait(self) -> int:
        return await self._process.ended(seconds=3600)

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    async def connect(self) -> None:
        """Make streams of its pipes; each closes its pipe."""
        if (pipe := self._process.stdin) is not None:
            self.stdin, self._process.stdin = await _writer(pipe), None
        if (pipe := self._process.stdout) is not None:
            self.stdout, self._process.stdout = await _reader(pipe), None
        if (pipe := self._process.stderr) is not None:
            self.stderr, self._process.stderr = await _reader(pipe), None


async def start(
    program: str | Path,
    *words: str | Path,
    cwd: str | Path = ROOT,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[Any] | None = DEVNULL,
    stdout: int | IO[Any] | None = PIPE,
    stderr: int | IO[Any] | None = None,
) -> Talking:
    """What `asyncio.create_subprocess_exec` does, where the program is this Python."""
    assert str(program) == sys.executable, f"only what Python runs is forked, and not {program}"
    process = Talking(Forked(words, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr))
    await process.connect()
    return process


async def _reader(pipe: IO[bytes]) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader


async def _writer(pipe: IO[bytes]) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe)
    return asyncio.StreamWriter(transport, protocol, None, loop)
