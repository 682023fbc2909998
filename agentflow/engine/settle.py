"""Who may go on, and when a run only waits.

Outcomes are handed to user code one at a time, in the order of their `seq`, the next one when no task of the run can
proceed. So replay sees what the first run saw, whichever branch is faster today. When nothing is left to hand out and
every task waits on the engine, the run is **quiescent**: it can leave memory.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from agentflow.engine.tasks import (
    CALM_TURNS,
    Branch,
    TaskState,
    has_local_timer,
    place_of,
    state_of,
)
from agentflow.turns import ends_turn_of

T = TypeVar("T")

logger = logging.getLogger("agentflow.engine")

TURNS_OF_CALM = CALM_TURNS + 1
"""Of a parked branch it is told only in the turn after its blocker was done that it can go on."""
FIRST_LOOK = 0.005
LONGEST_LOOK = 1.0
WARN_AFTER = 5.0


class Settling:
    """The turn-taking of one run.

    `waiting` is what user code waits for now, if anything. `on_quiescent` is called in the loop when all branches
    wait; `on_staying` when something is waited for and yet the run stays in memory, so that its timers run here.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        branches: dict[Branch, None],
        *,
        waiting: tuple[Mapping[Any, Any], Mapping[Any, Any], Mapping[Any, Any]],
        is_idle: Callable[[], bool],
        on_quiescent: Callable[[], None],
        on_staying: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._branches = branches
        self._waits, self._naps, self._held_back = waiting
        self._is_idle = is_idle
        self._on_quiescent = on_quiescent
        self._on_staying = on_staying
        self._moving: dict[Branch, None] = {}
        """The branches that may be ready: all but those that were seen to be blocked on what is not done yet."""
        self._due: list[tuple[int, int, Future[None]]] = []
        self._ticket = 0
        self._is_checking = False
        self._calm = 0
        self._ends_turn = ends_turn_of(loop)
        self._closed = False
        self._look_again: asyncio.TimerHandle | None = None
        self._pause = FIRST_LOOK
        self._busy_since: float | None = None
        self.futures: set[Future[Any]] = set()
        """What user code is blocked on and the engine resolves."""

    @property
    def is_alone(self) -> bool:
        """Whether no other branch could be handed something first."""
        return len(self._branches) == 1 and not self._due

    def watch(self, branch: Branch) -> None:
        """A branch was added to the run's."""
        self._moving[branch] = None

    async def turn(self, seq: int) -> None:
        """Wait until the outcome with this seq is the next to be handed out."""
        if self.is_alone:
            return
        future: Future[None] = self._loop.create_future()
        self._ticket += 1
        heapq.heappush(self._due, (seq, self._ticket, future))
        self.poke()
        await self.block(future)

    async def block(self, future: Future[T]) -> T:
        """Await a future that the engine resolves, in a way that counts as waiting."""
        self.futures.add(future)
        try:
            return await future
        finally:
            self.futures.discard(future)

    def poke(self) -> None:
        """Something has changed: look whether the run can go on or rest."""
        if not (self._due or self._waits or self._naps or self._held_back):
            return  # asked after every step: what follows is rare
        if self._closed or self._is_checking:
            return
        self._is_checking = True
        self._calm = 0
        self._loop.call_soon(self._check)

    def _is_waiting(self) -> bool:
        return bool(self._waits or self._naps or self._held_back)

    def close(self) -> None:
        self._closed = True
        if self._look_again is not None:
            self._look_again.cancel()

    def _check(self) -> None:
        if self._closed:
            self._is_checking = False
            return
        if self._is_calm():
            self._calm = 0
            if not self._hand_out():
                self._is_checking = False
                self._rest()
                return
        self._loop.call_soon(self._check)

    def _is_calm(self) -> bool:
        """Whether no branch can proceed."""
        if self._ends_turn():  # nothing at all is to run in this loop
            return True
        self._calm = 0 if self._has_ready_branch() else self._calm + 1
        return self._calm >= TURNS_OF_CALM

    def _has_ready_branch(self) -> bool:
        # Asked three times for each outcome that is handed out. So a branch that is seen to be blocked is parked: of
        # thousands of branches only those are looked at that have moved.
        for branch in list(self._moving):
            task: Any = branch.task
            if task is None:
                return True
            if task.done():
                del self._moving[branch]
                continue
            blocker = task._fut_waiter  # as `blocker_of`, without the call
            if blocker is None or blocker.done():
                return True
            del self._moving[branch]
            blocker.add_done_callback(partial(self._unpark, branch))
        return False

    def _unpark(self, branch: Branch, _: Future[Any]) -> None:
        self._moving[branch] = None
        self._calm = 0

    def _hand_out(self) -> bool:
        while self._due:
            _, _, future = heapq.heappop(self._due)
            if not future.done():
                future.set_result(None)
                return True
        return False

    def _rest(self) -> None:
        """Nothing can proceed and nothing is to be handed out."""
        if not self._is_waiting():
            return
        if self._is_idle() and self._all_wait():
            self._busy_since = None
            self._pause = FIRST_LOOK
            self._on_quiescent()
            return
        self._on_staying()
        if self._is_idle():
            self._look_later()

    def _all_wait(self) -> bool:
        tasks = [branch.task for branch in self._branches if branch.task is not None]
        if any(state_of(task, self.futures) is not TaskState.WAITS for task in tasks):
            return False
        return not has_local_timer(self._loop, set(tasks))

    def _look_later(self) -> None:
        """A task is blocked on something foreign; when that ends without a step call, nobody tells us."""
        now = self._loop.time()
        if self._busy_since is None:
            self._busy_since = now
        elif now - self._busy_since > WARN_AFTER:
            self._busy_since = float("inf")
            self._warn()
        if self._look_again is None or self._look_again.cancelled() or self._look_again.when() <= now:
            self._look_again = self._loop.call_later(self._pause, self.poke)
            self._pause = min(self._pause * 2, LONGEST_LOOK)

    def _warn(self) -> None:
        for branch in self._branches:
            task = branch.task
            if task is not None and state_of(task, self.futures) is TaskState.BUSY:
                logger.warning(
                    "a run waits durably, but stays in memory for more than %d s because it is blocked at %s; "
                    "do such work in step.run, and wait with step.sleep",
                    WARN_AFTER,
                    place_of(task),
                )
