"""How a run's coroutine is taken down without a step running and without anybody mistaking it for the run's end."""

from __future__ import annotations

import asyncio
import logging
from asyncio import Future
from collections.abc import Callable
from typing import Any

from agentflow.engine.tasks import CALM_TURNS, MOST_SWALLOWED, Branch, TaskState, state_of

logger = logging.getLogger("agentflow.engine")

LONGEST_UNWINDING = 10.0

_abandoned: list[asyncio.Task[Any]] = []
"""Held for good: the garbage collector would enter their code once more."""


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
    told: set[Branch] | None = None,
    is_writing: Callable[[], bool] = lambda: False,
) -> None:
    """End every task of the run: what is blocked on the engine gets `Suspend`, what then is left is cancelled.

    `finally` and `async with` blocks of user code run meanwhile, for ten seconds at most. With `told`, the branches
    whose code knows already, one that is at something of its own and does not know is cancelled at once; but for a
    write, whose answer comes soon.
    """
    if told is not None:
        told.update(branch for branch in branches if _state(branch, futures) is TaskState.WAITS)
    for future in list(futures):
        if not future.done():
            future.set_exception(reason())
    cancel_bodies()
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + LONGEST_UNWINDING
    calm = 0
    while any(not branch.is_deaf for branch in branches) and loop.time() < give_up_at:
        tasks = _tasks(branches)
        states = {state_of(task, futures) for task in tasks}
        calm = 0 if TaskState.READY in states else calm + 1
        if calm < CALM_TURNS:
            await asyncio.sleep(0)
        elif told is not None and not is_writing() and (untold := _busy(branches, futures) - told):
            for branch in untold:
                assert branch.task is not None
                branch.task.cancel()
            told |= untold
            calm = 0
            await asyncio.sleep(0)
        elif TaskState.BUSY in states:
            # Clean-up that talks to a network is left to end; who waits for it is left to wait.
            await asyncio.wait(tasks, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
        else:
            # They wait for each other, and for nobody else: for ever.
            for task in tasks:
                task.cancel()
            calm = 0
            await asyncio.sleep(0)
    for _ in range(MOST_SWALLOWED):
        if not branches:
            return
        for task in _tasks(branches):
            task.cancel()
        await asyncio.sleep(0)
    for task in _tasks(branches):
        logger.error(
            "a task of a run that was taken down does not end; it swallows its cancellation: %r", task
        )
        # `asyncio.run` would wait for it when the process ends, for ever.
        asyncio.tasks._unregister_task(task)  # as the manual's "Extending asyncio" has it
        _abandoned.append(task)


def _busy(branches: dict[Branch, None], futures: set[Future[Any]]) -> set[Branch]:
    return {branch for branch in branches if _state(branch, futures) is TaskState.BUSY}


def _state(branch: Branch, futures: set[Future[Any]]) -> TaskState | None:
    return None if branch.task is None else state_of(branch.task, futures)


def _tasks(branches: dict[Branch, None]) -> list[asyncio.Task[Any]]:
    return [branch.task for branch in branches if branch.task is not None]
