"""Group commit by a thread: what is submitted in one turn of the loop, or during a commit, is one transaction.

So batches grow with the load and nothing waits on a timer. A small batch is committed right in the loop while commits
are quick: going to a thread and back costs as much as the commit itself. What is submitted when the loop has nothing
else to do in this turn is committed on the spot. Everything else is the thread's work.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from agentflow.crashpoints import point
from agentflow.errors import AgentflowError
from agentflow.store.batches import (
    MOST_OPERATIONS,
    Commit,
    Fault,
    Submission,
    acknowledge,
    carry_out,
    how_many_fit,
)
from agentflow.store.hints import Hint
from agentflow.store.operations.dispatch import weight_of
from agentflow.turns import ends_turn_of

logger = logging.getLogger("agentflow.store")

MOST_INLINE = 4
MOST_INLINE_BYTES = 64_000
QUICK_SECONDS = 0.001
"""A commit may hold the loop up for so long, on average."""
SLOW_BATCHES = 100
"""After commits that were slow, so many batches go to the thread before the loop tries again."""
CLOSE_PATIENCE = 10.0


class Backend(Protocol):
    """A database's own way to carry out a batch. Called by one thread at a time: the writer's, or for a commit the
    loop's."""

    def connect(self) -> None: ...

    def commit(self, operations: Sequence[Any], *, is_patient: bool = True) -> tuple[list[Any], list[Hint]]:
        """Carry out the operations in one transaction; their outcomes, and what to tell. May be called again with
        the same operations after an error, whether they were committed or not. One that is not patient fails at
        once where it would have to wait for another process."""
        ...

    def diagnose(self, error: Exception) -> Fault: ...

    def recover(self) -> None:
        """Get ready for another try after an outage; may raise."""
        ...

    def poll(self) -> tuple[float, list[Hint]]:
        """Look for what others did; in how many seconds to look again."""
        ...

    def disconnect(self) -> None: ...


class Writer:
    """The queue, the thread, and the way the answers go back to the loop."""

    def __init__(self, backend: Backend, *, listener: Callable[[Iterable[Hint]], None], name: str) -> None:
        self._backend = backend
        self._listener = listener
        self._waiting: list[Submission] = []
        """What was submitted in this turn of the loop."""
        self._at_the_thread = 0
        self._pace = _Pace()
        self._ends_turn: Callable[[], bool] = lambda: False
        """Whether nothing else is to run in this turn of the loop, that could have something to write."""
        self._held_up = 0.0
        """Seconds that commits on the spot have taken since the loop last had its turn."""
        self._one_at_a_time = threading.Lock()
        self._queue: SimpleQueue[list[Submission] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._is_closed = False
        self._closing = threading.Event()
        self._give_up_at = float("inf")
        self._held_back: list[Submission] = []

    async def start(self) -> None:
        """Connect, in the writer's thread."""
        self._loop = asyncio.get_running_loop()
        self._ends_turn = ends_turn_of(self._loop)
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
        submission = Submission(operation, future)
        if self._waiting:
            self._waiting.append(submission)
        elif self._held_up < QUICK_SECONDS and not self._at_the_thread and self._ends_turn():
            self._commit_here([submission])
        else:
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

    # --------------------------------------------------------------------------------------- in the loop

    def _flush(self) -> None:
        """The turn is over: commit what was submitted in it."""
        batch, self._waiting = self._waiting, []
        self._held_up = 0.0
        if batch:
            self._commit_here(batch)

    def _commit_here(self, batch: list[Submission]) -> None:
        """Commit in the loop, if that is quick; else it is the thread's."""
        is_for_here = not self._at_the_thread and self._pace.is_quick and _is_small(batch)
        if not is_for_here or not self._one_at_a_time.acquire(blocking=False):
            self._hand_over(batch)
            return
        try:
            began = time.monotonic()
            operations = [submission.operation for submission in batch]
            outcomes, hints = self._backend.commit(operations, is_patient=False)
            took = time.monotonic() - began
            self._pace.note(took)
            self._held_up += took
        except Exception:
            self._hand_over(batch)  # the thread finds out what is wrong, and has the patience for it
            return
        finally:
            self._one_at_a_time.release()
        point("before_acknowledge")
        acknowledge(batch, outcomes)
        if hints:
            # Who submitted may be a run's own task: what listeners begin must not be taken for the run's.
            assert self._loop is not None
            self._loop.call_soon(self._listener, hints, context=contextvars.Context())

    def _hand_over(self, batch: list[Submission]) -> None:
        if self._ended is not None and self._ended.done():
            acknowledge(batch, [AgentflowError("the store's writer has ended")] * len(batch))
            return
        self._pace.note_batch()
        self._at_the_thread += len(batch)
        self._queue.put(batch)

    def _take_back(self, batch: Sequence[Submission], outcomes: list[Any], hints: list[Hint]) -> None:
        self._at_the_thread -= len(batch)
        acknowledge(batch, outcomes)
        if hints:
            self._listener(hints)

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

    def _next_batch(self, timeout: float) -> tuple[list[Submission], bool]:
        """What is queued, up to the limits; and whether the end of the queue was reached."""
        queued, self._held_back = self._held_back, []
        is_last = False
        while not is_last and len(queued) < MOST_OPERATIONS:
            try:
                handed_over = self._queue.get_nowait() if queued else self._queue.get(timeout=timeout)
            except Empty:
                break
            if handed_over is None:
                is_last = True
            else:
                queued += handed_over
        room = how_many_fit(queued)
        if room < len(queued):
            self._held_back = queued[room:]
            if is_last:
                self._queue.put(None)
            return queued[:room], False
        return queued, is_last

    def _commit(self, batch: list[Submission]) -> None:
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
                    self._closing.wait(act.seconds) if act.is_short else time.sleep(act.seconds)
                    act = next(work)
                    continue
                try:
                    with self._one_at_a_time:
                        if act.recover:
                            self._backend.recover()
                        done = self._backend.commit(act.operations)
                except Exception as error:
                    act = work.throw(error)
                else:
                    act = work.send(done)

    def _answer(self, batch: Sequence[Submission], outcomes: list[Any], hints: list[Hint]) -> None:
        point("before_acknowledge")
        self._call(self._take_back, batch, outcomes, hints)

    def _fail_queued(self, error: BaseException) -> None:
        left, self._held_back = self._held_back, []
        while True:
            try:
                left += self._queue.get_nowait() or []
            except Empty:
                break
        failure = AgentflowError(f"the store's writer has ended: {error}")
        self._call(self._take_back, left, [failure] * len(left), [])

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(function, *args)


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
        if self._pause:
            self._pause -= 1


def _is_small(batch: list[Submission]) -> bool:
    return len(batch) <= MOST_INLINE and sum(weight_of(each.operation) for each in batch) <= MOST_INLINE_BYTES


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
