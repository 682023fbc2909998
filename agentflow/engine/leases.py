"""A worker's lease: renewed from a thread of its own, given up in time, and taken from workers that are dead."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from agentflow.clock import Clock, OffsetClock
from agentflow.crashpoints import point
from agentflow.store.protocol import Store

logger = logging.getLogger("agentflow.engine")

RENEW_AT = 0.3
"""The part of the lease after which it is renewed."""
AGAIN_AT = 0.05
"""The part of the lease after which a renewal that failed is tried again."""
FENCE_AT = 0.8
"""The part of the lease after which the worker stops by itself when it could not renew it."""


class HeartbeatThread:
    """Renews the lease while the event loop lives. A loop that hangs longer than its limit gets no renewal.

    `on_lost` is called in the loop when the lease is over: somebody else may own the runs by now.
    """

    def __init__(
        self,
        store: Store,
        worker_id: str,
        epoch: int,
        *,
        lease_seconds: float,
        hang_limit_seconds: float,
        on_lost: Callable[[], None],
        leased_at: float | None = None,
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._epoch = epoch
        self._lease = lease_seconds
        self._hang_limit = hang_limit_seconds
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._loop_seen_at = time.monotonic()
        self._renewed_at = time.monotonic() if leased_at is None else leased_at
        self._fence: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"agentflow-heartbeat-{worker_id}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()
        self._watch_fence()

    def stop(self) -> None:
        """End the thread; call it last, when nothing of the worker writes any more."""
        self._stop.set()
        if self._fence is not None:
            self._fence.cancel()

    async def join(self) -> None:
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        heartbeat = self._store.heartbeat()
        try:
            pause = 0.0  # at once, so that the connection is there before all others have found theirs
            while not self._stop.wait(self._lease * pause):
                self._ask_loop()
                point("before_heartbeat")
                pause = RENEW_AT
                if not self._is_hanging():
                    began_at = time.monotonic()
                    try:
                        if not heartbeat.renew(self._worker_id, self._epoch, self._lease):
                            return self._tell_lost()
                        self._renewed_at = began_at
                    except Exception as error:
                        pause = AGAIN_AT
                        told = str(error) or type(error).__name__
                        logger.warning("worker %s could not renew its lease: %s", self._worker_id, told)
                if time.monotonic() - self._renewed_at > self._lease * FENCE_AT:
                    return self._tell_lost()
        finally:
            heartbeat.close()

    def _watch_fence(self) -> None:
        # In the loop: the thread may be waiting for a database that does not answer.
        left = self._renewed_at + self._lease * FENCE_AT - time.monotonic()
        if left > 0:
            self._fence = self._loop.call_later(left, self._watch_fence)
        else:
            self._lose()

    def _lose(self) -> None:
        if not self._stop.is_set():
            self.stop()
            self._on_lost()

    def _ask_loop(self) -> None:
        def seen() -> None:
            self._loop_seen_at = time.monotonic()

        self._call_loop(seen)

    def _is_hanging(self) -> bool:
        return time.monotonic() - self._loop_seen_at > self._hang_limit

    def _tell_lost(self) -> None:
        self._call_loop(self._lose)

    def _call_loop(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop was closed under us: there is nobody to tell
            self._stop.set()


class Reaper:
    """Takes runs from workers that are dead. Any worker does this for all."""

    def __init__(
        self, store: Store, clock: Clock, *, interval_seconds: float, on_reaped: Callable[[], None]
    ) -> None:
        self._store = store
        self._clock = clock
        self._interval = interval_seconds
        self._on_reaped = on_reaped

    async def run_once(self) -> list[str]:
        if isinstance(self._clock, OffsetClock):
            # What is due is told by the database's clock; ours drifts away from it.
            await self._clock.read(self._store.database_now)
        reaped = await self._store.reap(now=self._clock.now())
        if reaped:
            logger.info("took over %d run(s) of workers that are gone", len(reaped))
            self._on_reaped()
        return reaped

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.run_once()
            except Exception:
                logger.exception("the reaper could not do its round; it tries again in %s s", self._interval)
