"""`crash_after`: the harness's worker dies at a named point of the engine, in whichever thread that point is passed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from agentflow import crashpoints
from agentflow.errors import ConfigurationError


class Mortal(Protocol):
    """A harness, as far as it can lose its worker."""

    loop: asyncio.AbstractEventLoop

    def fall(self) -> bool:
        """The worker is dead from this instant on; called in any thread. False when there is none."""
        ...


harnesses: list[Mortal] = []
"""Those that are open, the latest last."""


class NotCrashed(AssertionError):
    """The point was not passed often enough while the context was open."""


class Crash:
    """What `crash_after` gives: whether it has happened, and a way to wait for it."""

    def __init__(self, harness: Mortal) -> None:
        self._harness = harness
        self._told = asyncio.Event()
        self.has_happened = False
        self.found_no_worker = False

    async def happened(self, timeout: float = 30.0) -> None:
        """Wait, in real time, until the worker has died; for a point that is passed by the clock. `TimeoutError`."""
        async with asyncio.timeout(timeout):
            await self._told.wait()

    def strike(self) -> None:
        """What the point does when its pass has come."""
        self.has_happened = True  # first: what follows may raise, to end what has passed the point
        try:
            self.has_happened = self._harness.fall()
            self.found_no_worker = not self.has_happened
        finally:
            self._harness.loop.call_soon_threadsafe(self._told.set)


@contextmanager
def crash_after(point: str, n: int = 1) -> Iterator[Crash]:
    """Inside, the worker of the open `harness` dies at the n-th pass of that point, one of `CRASH_POINTS`.

    It dies as by `h.crash()`: no body begins, nothing is written any more, `h.idle()` and `h.advance()` return, and
    `await h.restart()` brings a new worker. The database and the test go on. Leaving raises `NotCrashed` when the point
    was not passed so often.

        with crash_after("after_commit", n=2):
            run = await h.start(pay, order)
            await h.idle()
        await h.restart()
        await h.idle()
        assert payments == [order.id]
    """
    if not harnesses:
        raise ConfigurationError(
            f"crash_after({point!r}) has no worker to crash: open a harness first (a process of its own dies by "
            f"{crashpoints.VARIABLE}={point}:{n})"
        )
    if crashpoints.is_armed():
        raise ConfigurationError(
            f"crash_after({point!r}): another crash point is armed; leave that one first"
        )
    crash = Crash(harnesses[-1])
    armed = crashpoints.arm(point, n, crash.strike)
    try:
        yield crash
    finally:
        crashpoints.disarm()
    if armed.passes < n or crash.found_no_worker:
        raise NotCrashed(_why_not(point, n, passes=armed.passes, found_no_worker=crash.found_no_worker))


def _why_not(point: str, n: int, *, passes: int, found_no_worker: bool) -> str:
    told = f"crash_after({point!r}, n={n}): no worker has crashed, "
    if found_no_worker:
        return f"{told}there was none when the point was passed: it comes back by `await h.restart()`"
    told += f"for the point was passed {passes} times while this was open"
    if point == "before_heartbeat":
        told += ". It is passed by real time, every 0.3 of Settings(lease_seconds=): await the context's happened()"
    return told
