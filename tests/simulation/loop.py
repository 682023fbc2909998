"""An event loop of virtual time whose order a seed decides, and which can kill or stop what runs in it.

Time stands still while something is ready and jumps to the next timer when nothing is. The seed decides the order of
timers that are due together, and between processes; within one process callbacks keep the order that asyncio promises.
Every callback belongs to the process in whose context it was made. Those of a stopped process are kept until it goes
on; a dead one never does, so its code ends where it stands, without a `finally`.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import random
from asyncio import Handle
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

EPOCH_MICROS = 1_700_000_035_000_000
"""What the wall clock shows when the loop's time is 0: a minute begins five seconds later."""


class Fate(Protocol):
    """What the loop has to know of a process."""

    kept: list[Handle] | None
    """Where the callbacks of a stopped or dead process go; `None` while it runs."""


current_process: contextvars.ContextVar[Fate | None] = contextvars.ContextVar("process", default=None)


class Stuck(AssertionError):
    """Nothing is ready and no timer is set."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """See the module."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self._instant = 0.0
        self._serials = itertools.count()
        self.unhandled: list[dict[str, Any]] = []
        """What would have been logged."""
        self.tasks: list[asyncio.Task[Any]] = []
        """All of them: what a dead process was about is not to be ended by the garbage collector, at some time."""
        self.set_exception_handler(lambda _, context: self.unhandled.append(context))
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        return self._instant

    def next_serial(self) -> int:
        return next(self._serials)

    def create_future(self) -> asyncio.Future[Any]:
        return NumberedFuture(loop=self)

    def _make_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any) -> asyncio.Task[Any]:
        return NumberedTask(coroutine, loop=loop, **kwargs)

    def _write_to_self(self) -> None:
        """There is no selector to be woken."""

    def _run_once(self) -> None:
        scheduled: list[Any] = self._scheduled  # type: ignore[attr-defined]
        ready: Any = self._ready  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                raise Stuck("nothing is ready and no timer is set")
            self._instant = max(self._instant, scheduled[0]._when)
        due = []
        while scheduled and scheduled[0]._when <= self._instant:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            due.append(handle)
        if len(due) > 1:
            self._rng.shuffle(due)
        ready.extend(due)
        turn = list(ready)
        ready.clear()
        for handle, process in self._in_some_order(turn) if len(turn) > 1 else self._of_processes(turn):
            if handle._cancelled:
                continue
            if process is not None and process.kept is not None:
                process.kept.append(handle)
            else:
                handle._run()

    def _in_some_order(self, turn: list[Handle]) -> Iterator[tuple[Handle, Fate | None]]:
        queues: dict[Fate | None, deque[Handle]] = {}
        for handle, process in self._of_processes(turn):
            queues.setdefault(process, deque()).append(handle)
        while len(queues) > 1:
            process = self._rng.choice(list(queues))
            yield queues[process].popleft(), process
            if not queues[process]:
                del queues[process]
        for process, queue in queues.items():
            for handle in queue:
                yield handle, process

    def _of_processes(self, turn: list[Handle]) -> Iterator[tuple[Handle, Fate | None]]:
        for handle in turn:
            yield handle, handle._context.get(current_process)  # type: ignore[attr-defined]

    def resume(self, handles: list[Handle]) -> None:
        """What a stopped process has not run yet is ready."""
        self._ready.extend(handles)  # type: ignore[attr-defined]


class NumberedFuture(asyncio.Future[Any]):
    """A set of futures goes by their hash: by address it would differ from run to run."""

    def __init__(self, *, loop: SimulatedLoop) -> None:
        super().__init__(loop=loop)
        self._serial = loop.next_serial()

    def __hash__(self) -> int:
        return self._serial

    def __eq__(self, other: object) -> bool:
        return self is other


class NumberedTask(asyncio.Task[Any]):
    """The same for tasks."""

    def __init__(self, coroutine: Any, *, loop: Any, **kwargs: Any) -> None:
        self._serial: int = loop.next_serial()
        loop.tasks.append(self)
        super().__init__(coroutine, loop=loop, **kwargs)

    def __hash__(self) -> int:
        return self._serial

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualTime:
    """Stands for the module `time`: monotonic and wall clock are the loop's."""

    CLOCK_MONOTONIC = 1

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.time()

    def monotonic_ns(self) -> int:
        return round(self._loop.time() * 1e6) * 1000

    def clock_gettime_ns(self, _: int) -> int:
        return self.monotonic_ns()

    def time_ns(self) -> int:
        return EPOCH_MICROS * 1000 + self.monotonic_ns()

    def time(self) -> float:
        return self.time_ns() / 1e9

    def sleep(self, _: float) -> None:
        raise AssertionError("something sleeps in the loop's thread")


class LoopClock:
    """Domain time is the loop's too."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def now(self) -> int:
        return EPOCH_MICROS + round(self._loop.time() * 1e6)
