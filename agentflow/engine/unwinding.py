"""How a run's coroutine is taken down without a step running and without anybody mistaking it for the run's end."""

from __future__ import annotations

import asyncio
import logging
from asyncio import Future
from collections.abc import Callable
from typing import Any

from agentflow.engine.tasks import Branch, TaskState, state_of

logger = logging.getLogger("agentflow.engine")

LONGEST_UNWINDING = 10.0
MOST_SWALLOWED = 100


class Suspend(BaseException):
    """Ends the code of a run that leaves memory. Not an `Exception`, so that user code does not catch it by habit."""


class LeaseLost(Suspend):
    """The run belongs to somebody else now: what this process still does for it is dropped."""


async def unwind(
    branches: dict[Branch, None],
    futures: set[Future[Any]],
    *,
    reason: Callable[[], Suspend],
    cancel_bodies: Callable[[], None],
) -> None:
    """End every task of the run: what is blocked on the engine gets `Suspend`, what then is left is cancelled.

    `finally` and `async with` blocks of user code run meanwhile, for ten seconds at most.
    """
    for future in list(futures):
        if not future.done():
            future.set_exception(reason())
    cancel_bodies()
    for _ in range(4):
        if not branches:
            return
        await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + LONGEST_UNWINDING
    while branches and loop.time() < give_up_at:
        for task in _tasks(branches):
            # What waits for its siblings only will wait for ever; clean-up that talks to a network is left to end.
            if state_of(task, futures) is TaskState.WAITS:
                task.cancel()
        await asyncio.wait(_tasks(branches), timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)
    for _ in range(MOST_SWALLOWED):
        if not branches:
            return
        for task in _tasks(branches):
            task.cancel()
        await asyncio.sleep(0)
    for branch in branches:
        logger.error(
            "a task of a run that was taken down does not end; it swallows its cancellation: %r", branch.task
        )


def _tasks(branches: dict[Branch, None]) -> list[asyncio.Task[Any]]:
    return [branch.task for branch in branches if branch.task is not None]
