"""Reads that end although whoever made them is cancelled: a read that is cut off takes its connection with it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

R = TypeVar("R")

LONGEST_END_SECONDS = 2.0


async def undisturbed(read: Coroutine[Any, Any, R]) -> R:
    """What the read gives. When this is cancelled, the read has its end first, if that comes soon."""
    # In a context of its own, or in a run's task it would be a branch of the run.
    task = contextvars.Context().run(asyncio.get_running_loop().create_task, read)
    task.add_done_callback(_retrieve)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=LONGEST_END_SECONDS)
        raise


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Whoever waited for it may be gone."""
    if not task.cancelled():
        task.exception()
