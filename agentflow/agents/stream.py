"""An agent's answer while it comes: what its models say, and at the end its result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from agentflow.inference import DeltaListener
from agentflow.models.response import Delta

R = TypeVar("R")


async def stream_of(
    begin: Callable[[DeltaListener], Coroutine[Any, Any, R]],
) -> AsyncIterator[Delta | R]:
    """What `begin` tells the listener it is given, then what it returns."""
    told: asyncio.Queue[Delta | None] = asyncio.Queue()
    task = asyncio.create_task(begin(told.put_nowait))
    task.add_done_callback(lambda _: told.put_nowait(None))
    try:
        while (delta := await told.get()) is not None:
            yield delta
        yield task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
