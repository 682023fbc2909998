"""The loop that takes ready runs."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping

from agentflow.clock import Clock, VirtualClock
from agentflow.engine.wakeups import Wakeups
from agentflow.functions import Registry
from agentflow.store.claim_types import ClaimedRun
from agentflow.store.poison import must_be_alone
from agentflow.store.protocol import Store
from agentflow.store.stored_types import GateLimits

logger = logging.getLogger("agentflow.engine")

MOST_AT_ONCE = 100
SHORTEST_POLL = 1.0
LONGEST_POLL = 5.0
IN_VAIN_PAUSE = 0.05
"""Seconds, when a run is due that could not be had: somebody else has just taken it, or our lease is over."""


class Claims:
    """Claims as many runs as the worker has room for, whenever there may be some."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        registry: Registry,
        wakeups: Wakeups,
        *,
        app: str,
        worker: Callable[[], tuple[str, int]],
        room: Callable[[], int],
        on_claimed: Callable[[ClaimedRun], None],
        rng: random.Random,
        gates: Mapping[str, GateLimits],
    ) -> None:
        self._gates = gates
        self._store = store
        self._clock = clock
        self._registry = registry
        self._wakeups = wakeups
        self._app = app
        self._worker = worker
        self._room = room
        self._on_claimed = on_claimed
        self._rng = rng
        self.one_at_a_time = asyncio.Lock()
        """While it is held no claim's answer is on its way."""
        self._claimed_at = 0
        """What was due then, and could be had, was claimed."""
        self.has_backlog = True
        """Whether there may be ready runs that are not claimed yet: new ones then go behind them."""

    async def run_once(self) -> int:
        """Claim once; how many it got."""
        async with self.one_at_a_time:
            return await self._claim()

    async def _claim(self) -> int:
        limit = min(self._room(), MOST_AT_ONCE)
        if limit <= 0:
            self.has_backlog = True
            return 0
        worker_id, epoch = self._worker()
        self._claimed_at = self._clock.now()
        claimed = await self._store.claim(
            worker_id,
            epoch=epoch,
            app=self._app,
            functions=self._registry.ids(),
            limit=limit,
            now=self._claimed_at,
            gates=self._gates,
        )
        self.has_backlog = len(claimed) == limit
        # Last, who has to be alone: it waits until those before it have ended.
        for run in sorted(claimed, key=lambda run: must_be_alone(run.crash_count)):
            self._on_claimed(run)
        return len(claimed)

    async def run(self) -> None:
        pause = SHORTEST_POLL
        while True:
            try:
                got = await self.run_once()
                if self.has_backlog and self._room() > 0:
                    continue
                pause = SHORTEST_POLL if got else min(pause * 2, LONGEST_POLL)
                await self._wakeups.wait(await self._seconds_until_due(pause, got))
            except Exception:
                logger.exception("could not claim runs; trying again in %s s", SHORTEST_POLL)
                await asyncio.sleep(SHORTEST_POLL)

    async def _seconds_until_due(self, pause: float, got: int) -> float:
        poll = pause * self._rng.uniform(0.8, 1.2)
        if isinstance(self._clock, VirtualClock):
            return poll  # whoever moves the clock tells us
        due = await self._store.next_ready_at(app=self._app, functions=self._registry.ids())
        if due is None or self._room() <= 0:
            return poll
        seconds = (due - self._clock.now()) / 1e6
        if seconds <= 0 and due <= self._claimed_at and not got:
            return IN_VAIN_PAUSE
        return min(poll, max(seconds, 0.0))
