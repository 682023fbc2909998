"""The loop that looks after the lanes: runs that stand before a gate which is open.

Whoever gives a slot back lets the next run through; this loop is for what falls between, such as a function that was
paused while its run was next, or a limit that a deploy has raised.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from agentflow.clock import Clock
from agentflow.store.protocol import Store
from agentflow.store.stored_types import GateLimits

logger = logging.getLogger("agentflow.engine")

INTERVAL_SECONDS = 2.0


class Lanes:
    """Tends the lanes of one app's functions; has nothing to do where none of them has a gate."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        app: str,
        functions: Sequence[str],
        gates: Mapping[str, GateLimits],
        on_open: Callable[[], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._app = app
        self._functions = functions
        self._gates = gates
        self._on_open = on_open

    async def run_once(self) -> int:
        """How many runs were let through."""
        if not self._gates:
            return 0
        found = await self._store.tend_lanes(
            app=self._app, functions=self._functions, now=self._clock.now(), gates=self._gates
        )
        if found:
            self._on_open()
        return found

    async def run(self) -> None:
        while self._gates:
            await asyncio.sleep(INTERVAL_SECONDS)
            try:
                await self.run_once()
            except Exception:
                logger.exception("could not look after the lanes; trying again in %s s", INTERVAL_SECONDS)
