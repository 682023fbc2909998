"""Group commit by a task of the loop, for a database whose driver is asynchronous itself.

While a commit is in flight new operations form the next batch, so batches grow with the load and nothing waits on a
timer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from agentflow.crashpoints import point
from agentflow.errors import AgentflowError
from agentflow.store.batches import (
    Commit,
    Fault,
    Submission,
    acknowledge,
    carry_out,
    how_many_fit,
)
from agentflow.store.hints import Hint

logger = logging.getLogger("agentflow.store")

MOST_TOGETHER = 96
"""Fewer than the thread takes: while the server works on one batch, the runs of the batch before go on."""
CLOSE_PATIENCE = 10.0


class AsyncBackend(Protocol):
    """A database's own way to carry out a batch."""

    async def connect(self) -> None: ...

    async def commit(self, operations: Sequence[Any]) -> tuple[list[Any], list[Hint]]:
        """Carry out the operations; their outcomes, and what to tell. May be called again with the same operations
        after an error, whether they were committed or not."""
        ...

    def diagnose(self, error: Exception) -> Fault: ...

    async def recover(self) -> None:
        """Get ready for another try after an outage; may raise."""
        ...

    async def disconnect(self) -> None: ...


class LoopWriter:
    """The queue, and the task that empties it."""

    def __init__(
        self, backend: AsyncBackend, *, listener: Callable[[Iterable[Hint]], None], name: str
    ) -> None:
        self._backend = backend
        self._listener = listener
        self._name = name
        self._queue: deque[Submission] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None
        self._closing = asyncio.Event()
        self._give_up_at = float("inf")

    async def start(self) -> None:
        """Connect."""
        self._loop = asyncio.get_running_loop()
        await self._backend.connect()
        self._task = self._loop.create_task(self._run(), name=self._name)

    def submit(self, operation: Any) -> asyncio.Future[Any]:
        """Queue an operation for the next batch."""
        loop = self._loop
        if loop is None or self._task is None or self._closing.is_set():
            raise AgentflowError(f"the store is not open: {type(operation).__name__} cannot be written")
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.append(Submission(operation, future))
        self._wake()
        return future

    async def close(self) -> None:
        """Commit what is queued; what cannot be written within 10 s fails."""
        if self._task is None:
            return
        if not self._closing.is_set():
            self._give_up_at = time.monotonic() + CLOSE_PATIENCE
            self._closing.set()
            self._wake()
        await asyncio.shield(asyncio.wait([self._task]))

    def _wake(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def _run(self) -> None:
        assert self._loop is not None
        try:
            while self._queue or not self._closing.is_set():
                if self._queue:
                    await self._commit(self._next_batch())
                    continue
                self._idle = self._loop.create_future()
                await self._idle
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                logger.exception("the writer has ended by an error; nothing can be written any more")
            self._closing.set()
            failure = AgentflowError(f"the store's writer has ended: {error}")
            acknowledge(list(self._queue), [failure] * len(self._queue))
            self._queue.clear()
            raise
        finally:
            await self._backend.disconnect()

    def _next_batch(self) -> list[Submission]:
        """What is queued, up to the limits."""
        return [self._queue.popleft() for _ in range(how_many_fit(self._queue, most=MOST_TOGETHER))]

    async def _commit(self, batch: list[Submission]) -> None:
        work = carry_out(
            batch,
            diagnose=self._backend.diagnose,
            answer=self._answer,
            give_up_at=lambda: self._give_up_at,
        )
        with suppress(StopIteration):
            act = next(work)
            while True:
                if not isinstance(act, Commit):
                    await asyncio.sleep(act.seconds)
                    act = next(work)
                    continue
                try:
                    if act.recover:
                        await self._backend.recover()
                    done = await self._backend.commit(act.operations)
                except Exception as error:
                    act = work.throw(error)
                else:
                    act = work.send(done)

    def _answer(self, batch: Sequence[Submission], outcomes: list[Any], hints: list[Hint]) -> None:
        point("before_acknowledge")
        acknowledge(batch, outcomes)
        if hints:
            self._listener(hints)
