"""Reads that end although whoever made them is cancelled: a read that is cut off takes its connection with it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

R = TypeVar("R")


async def undisturbed(read: Coroutine[Any, Any, R]) -> R:
    """What the read gives. It goes on alone when this is cancelled."""
    # In a context of its own, or in a run's task it would be a branch of the run.
    task = contextvars.Context().run(asyncio.get_running_loop().create_task, read)
    task.add_done_callback(_retrieve)
    return await asyncio.shield(task)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Whoever waited for it may be gone."""
    if not task.cancelled():
        task.exception()
