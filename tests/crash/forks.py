"""Processes to be killed by the dozen: one that has imported everything forks each of them, in milliseconds.

`python -m tests.crash.forks MODULE` forks a child for each line of JSON words on its standard input. The child runs
`MODULE.main(*words)`; its number and, when it has ended, its return code come back on the standard output.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KILLED = -signal.SIGKILL


class Forks:
    """The process that forks. One child at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def warm_up(self, *words: str) -> None:
        """Run `main` in the process that forks: what it compiles and caches need not be made again by each child."""
        self._send(words, is_child=False)
        assert await self._number() == 0

    async def begin(self, *words: str) -> int:
        """A child's number."""
        self._send(words)
        return await self._number()

    async def ended(self, *, seconds: float = 50) -> int:
        """The child's return code; of one that was killed minus the signal's number."""
        return await asyncio.wait_for(self._number(), seconds)

    async def run(self, *words: str) -> int:
        """A child from its begin to its end."""
        pid = await self.begin(*words)
        try:
            return await self.ended()
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise

    def _send(self, words: Sequence[str], *, is_child: bool = True) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps([is_child, *words])}\n".encode())

    async def _number(self) -> int:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the process that forks has ended"
        return int(line)


@asynccontextmanager
async def forks(module: str) -> AsyncIterator[Forks]:
    """Children of this module, for as long as the block is open."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.crash.forks", module),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield Forks(process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with a child that still runs
        await process.wait()


def _serve(module: str) -> None:
    main = importlib.import_module(module).main
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the children say is no answer
    for line in sys.stdin:
        is_child, *words = json.loads(line)
        if not is_child:
            asyncio.run(main(*words))
            print(0, file=answers)
            continue
        pid = os.fork()
        if pid == 0:
            os._exit(_code_of(main, words))
        print(pid, file=answers)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers)


def _code_of(main: Callable[..., Coroutine[Any, Any, None]], words: list[str]) -> int:
    # No error may leave a child: it would go on as the process that forks.
    try:
        asyncio.run(main(*words))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve(sys.argv[1])
