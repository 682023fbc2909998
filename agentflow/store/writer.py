"""Group commit: what is submitted in one turn of the loop, or while a commit is in flight, is one transaction.

So batches grow with the load and nothing waits on a timer. A small batch is committed right in the loop while commits
are quick: going to a thread and back costs as much as the commit itself. Everything else is the thread's work. A batch
that fails is committed again in halves, until the operation that is to blame stands alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

from agentflow.crashpoints import point
from agentflow.errors import AgentflowError
from agentflow.store.operations import weight_of
from agentflow.store.protocol import Hint

logger = logging.getLogger("agentflow.store")

MOST_OPERATIONS = 500
MOST_BYTES = 750_000
CONFLICT_TRIES = 6
LONGEST_PAUSE = 1.0
MOST_INLINE = 4
MOST_INLINE_BYTES = 64_000
QUICK_SECONDS = 0.001
"""A commit may hold the loop up for so long, on average."""
SLOW_BATCHES = 100
"""After a slow commit so many batches go to the thread before the loop tries again."""
CLOSE_PATIENCE = 10.0


class Fault(Enum):
    """What an error of a batch means."""

    CONFLICT = "two transactions got in each other's way: play it again"
    OUTAGE = "the database cannot be reached or written: play it again when it can"
    POISON = "something in the batch is to blame"


class Backend(Protocol):
    """A database's own way to carry out a batch. Called by one thread at a time: the writer's, or the loop's for a
    `commit` where `commits_inline`."""

    commits_inline: bool

    def connect(self) -> None: ...

    def commit(self, operations: Sequence[Any]) -> tuple[list[Any], list[Hint]]:
        """Carry out the operations in one transaction; their outcomes, and what to tell. May be called again with
        the same operations after an error, whether they were committed or not."""
        ...

    def diagnose(self, error: Exception) -> Fault: ...

    def recover(self) -> None:
        """Get ready for another try after an outage; may raise."""
        ...

    def poll(self) -> tuple[float, list[Hint]]:
        """Look for what others did; in how many seconds to look again."""
        ...

    def disconnect(self) -> None: ...


class _Submission(NamedTuple):
    operation: Any
    future: asyncio.Future[Any]


class Writer:
    """The queue, the thread, and the way the answers go back to the loop."""

    def __init__(self, backend: Backend, *, listener: Callable[[Iterable[Hint]], None], name: str) -> None:
        self._backend = backend
        self._listener = listener
        self._waiting: list[_Submission] = []
        """What was submitted in this turn of the loop."""
        self._at_the_thread = 0
        self._pace = _Pace() if backend.commits_inline else None
        self._one_at_a_time = threading.Lock()
        self._queue: SimpleQueue[_Submission | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._is_closed = False
        self._closing = threading.Event()
        self._give_up_at = float("inf")
        self._held_back: _Submission | None = None

    async def start(self) -> None:
        """Connect, in the writer's thread."""
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        self._ended = self._loop.create_future()
        self._thread.start()
        await self._ready

    def submit(self, operation: Any) -> asyncio.Future[Any]:
        """Queue an operation for the next batch."""
        loop = self._loop
        if loop is None or self._is_closed:
            raise AgentflowError(f"the store is not open: {type(operation).__name__} cannot be written")
        future: asyncio.Future[Any] = loop.create_future()
        submission = _Submission(operation, future)
        if self._at_the_thread:
            self._hand_over([submission])
        else:
            if not self._waiting:
                loop.call_soon(self._flush)
            self._waiting.append(submission)
        return future

    async def close(self) -> None:
        """Commit what is queued and end the thread; what cannot be written within 10 s fails."""
        if self._ended is None:
            return
        if not self._is_closed:
            self._hand_over(self._waiting)
            self._waiting = []
            self._is_closed = True
            self._give_up_at = time.monotonic() + CLOSE_PATIENCE
            self._closing.set()
            self._queue.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()

    def _flush(self) -> None:
        """The turn is over: commit what was submitted in it."""
        batch, self._waiting = self._waiting, []
        if not batch:
            return
        if self._pace is None or not self._pace.is_quick or not _is_small(batch):
            self._hand_over(batch)
        elif not self._one_at_a_time.acquire(blocking=False):
            self._hand_over(batch)
        else:
            try:
                began = time.monotonic()
                answer = self._backend.commit([submission.operation for submission in batch])
                self._pace.note(time.monotonic() - began)
            except Exception:
                self._hand_over(batch)  # the thread finds out what is wrong, and has the patience for it
                return
            finally:
                self._one_at_a_time.release()
            point("before_acknowledge")
            self._acknowledge(batch, *answer)

    def _hand_over(self, batch: list[_Submission]) -> None:
        if self._pace is not None:
            self._pace.note_batch()
        self._at_the_thread += len(batch)
        for submission in batch:
            self._queue.put(submission)

    # ------------------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        try:
            self._backend.connect()
        except BaseException as error:
            self._call(_fail, self._ready, error)
            self._call(_settle, self._ended)
            return
        self._call(_settle, self._ready)
        try:
            self._write_batches()
        except BaseException as error:
            logger.exception("the writer's thread has ended by an error; nothing can be written any more")
            self._is_closed = True
            self._fail_queued(error)
        finally:
            self._backend.disconnect()
            self._call(_settle, self._ended)

    def _write_batches(self) -> None:
        pause, poll_at = 0.0, 0.0
        while True:
            now = time.monotonic()
            if now >= poll_at:
                with self._one_at_a_time:
                    pause, hints = self._backend.poll()
                poll_at = now + pause
                if hints:
                    self._call(self._listener, hints)
            batch, is_last = self._next_batch(max(0.0, poll_at - now))
            if batch:
                self._commit(batch)
            if is_last:
                return

    def _next_batch(self, timeout: float) -> tuple[list[_Submission], bool]:
        """What is queued, up to the limits; and whether the end of the queue was reached."""
        first, self._held_back = self._held_back, None
        if first is None:
            try:
                first = self._queue.get(timeout=timeout)
            except Empty:
                return [], False
            if first is None:
                return [], True
        batch = [first]
        size = weight_of(first.operation)
        while len(batch) < MOST_OPERATIONS:
            try:
                submission = self._queue.get_nowait()
            except Empty:
                break
            if submission is None:
                return batch, True
            size += weight_of(submission.operation)
            if size > MOST_BYTES:
                self._held_back = submission
                break
            batch.append(submission)
        return batch, False

    def _commit(self, batch: list[_Submission]) -> None:
        operations = [submission.operation for submission in batch]
        pause, conflicts, is_down = 0.01, 0, False
        blamed: Exception | None = None
        while True:
            try:
                with self._one_at_a_time:
                    if is_down:
                        self._backend.recover()
                    outcomes, hints = self._backend.commit(operations)
            except Exception as error:
                fault = self._backend.diagnose(error)
                if fault is Fault.CONFLICT and conflicts < CONFLICT_TRIES:
                    conflicts += 1
                    self._closing.wait(random.uniform(0, pause))
                elif fault is Fault.OUTAGE and time.monotonic() < self._give_up_at:
                    if not is_down:
                        logger.warning("cannot write to the database, trying again: %s", error)
                    is_down = True
                    time.sleep(pause * random.uniform(0.5, 1))
                else:
                    blamed = error
                    break
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                if is_down:
                    logger.warning("the database can be written again")
                self._answer(batch, outcomes, hints)
                return
        if len(batch) == 1:
            self._answer(batch, [blamed], [])
            return
        middle = len(batch) // 2
        self._commit(batch[:middle])
        self._commit(batch[middle:])

    def _answer(self, batch: list[_Submission], outcomes: list[Any], hints: list[Hint]) -> None:
        point("before_acknowledge")
        self._call(self._acknowledge_thread, batch, outcomes, hints)

    def _fail_queued(self, error: BaseException) -> None:
        held, self._held_back = self._held_back, None
        left = [held] if held is not None else []
        while True:
            try:
                submission = self._queue.get_nowait()
            except Empty:
                break
            if submission is not None:
                left.append(submission)
        failure = AgentflowError(f"the store's writer has ended: {error}")
        self._call(self._acknowledge_thread, left, [failure] * len(left), [])

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(function, *args)

    # --------------------------------------------------------------------------------------- in the loop

    def _acknowledge_thread(
        self, batch: list[_Submission], outcomes: list[Any], hints: list[Hint]
    ) -> None:
        self._at_the_thread -= len(batch)
        self._acknowledge(batch, outcomes, hints)

    def _acknowledge(self, batch: list[_Submission], outcomes: list[Any], hints: list[Hint]) -> None:
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue  # whoever asked was cancelled; it is written all the same
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        if hints:
            self._listener(hints)


class _Pace:
    """How long commits in the loop take, and whether the next one may be made there."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._pause = 0

    @property
    def is_quick(self) -> bool:
        return self._pause == 0

    def note(self, seconds: float) -> None:
        self._seconds += (min(seconds, 10 * QUICK_SECONDS) - self._seconds) * 0.1
        if self._seconds > QUICK_SECONDS:
            self._seconds, self._pause = 0.0, SLOW_BATCHES

    def note_batch(self) -> None:
        """A batch went to the thread."""
        self._pause = max(0, self._pause - 1)


def _is_small(batch: list[_Submission]) -> bool:
    return len(batch) <= MOST_INLINE and sum(weight_of(each.operation) for each in batch) <= MOST_INLINE_BYTES


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
