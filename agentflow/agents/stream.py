"""An agent's answer while it comes: what its models say, and at the end its result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Generic, TypeVar

from agentflow.models.response import AttemptReset, Delta
from agentflow.telling import DeltaListener

R = TypeVar("R")


class AgentStream(AsyncIterator[Delta | AttemptReset | R], Generic[R]):
    """Gives what `begin` tells the listener it is given, then what it returns.

    It begins with the first item that is asked for. Who leaves before the end calls `aclose` (as
    `contextlib.aclosing` does): the agent stops there.
    """

    # Not an async generator: the engine could not see through it that a consumer only waits for the agent, and a
    # run that waits would stay in memory.

    def __init__(self, begin: Callable[[DeltaListener], Coroutine[Any, Any, R]]) -> None:
        self._begin = begin
        self._told: asyncio.Queue[Delta | AttemptReset | None] = asyncio.Queue()
        self._task: asyncio.Task[R] | None = None
        self._is_over = False

    async def __anext__(self) -> Delta | AttemptReset | R:
        if self._is_over:
            raise StopAsyncIteration
        if self._task is None:
            self._task = asyncio.create_task(self._begin(self._told.put_nowait))
            self._task.add_done_callback(lambda _: self._told.put_nowait(None))
        delta = await self._told.get()
        if delta is not None:
            return delta
        self._is_over = True
        return self._task.result()

    async def aclose(self) -> None:
        """Stop the agent, unless it has come to its end."""
        self._is_over = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
