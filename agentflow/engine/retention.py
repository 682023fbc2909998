"""The loop that removes what is older than `Settings(retention=)`, and the sweep that it makes."""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import timedelta
from typing import NamedTuple

from agentflow.clock import Clock
from agentflow.durations import to_micros
from agentflow.store.operation_types import Prune, PruneLoose
from agentflow.store.outcome_types import Pruned
from agentflow.store.protocol import Store
from agentflow.store.stored_types import Micros

logger = logging.getLogger("agentflow.engine")

MOST_AT_ONCE = 200
"""Runs in one transaction: few enough that steps committed meanwhile hardly wait."""
LONGEST_PAUSE_SECONDS = 3600.0
SHORTEST_PAUSE_SECONDS = 1.0


class Swept(NamedTuple):
    """How much a sweep has removed."""

    runs: int
    events: int


async def sweep(store: Store, *, before: Micros, now: Micros) -> Swept:
    """Remove what ended before an instant, batch by batch."""
    runs, after = 0, None
    while True:
        pruned: Pruned = await store.submit(Prune(before, after, MOST_AT_ONCE))
        runs += pruned.runs
        after = pruned.after
        if after is None:
            break
    events = 0
    while True:
        loose: Pruned = await store.submit(PruneLoose(before, now, MOST_AT_ONCE))
        events += loose.events
        if loose.after is None:
            return Swept(runs, events)


class Retention:
    """Sweeps now and then. Any worker does it for the whole database; two at once remove nothing twice."""

    def __init__(self, store: Store, clock: Clock, *, keep: timedelta | None, rng: random.Random) -> None:
        self._store = store
        self._clock = clock
        self._keep = keep
        self._rng = rng

    async def run_once(self) -> Swept:
        """Remove what is older than it is meant to be kept."""
        if self._keep is None:
            return Swept(0, 0)
        now = self._clock.now()
        swept = await sweep(self._store, before=now - to_micros(self._keep), now=now)
        if any(swept):
            logger.info("removed %d run(s) and %d event(s) older than %s", *swept, self._keep)
        return swept

    async def run(self) -> None:
        if self._keep is None:
            return
        pause = min(max(self._keep.total_seconds() / 20, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        while True:
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.0))
            try:
                await self.run_once()
            except Exception:
                logger.exception("could not remove what is old; trying again in %d s", pause)
