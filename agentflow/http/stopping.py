"""`Stopping`: lets requests that wait for a run end as soon as the server is told to stop.

A server waits for its requests before it stops, and only then ends the lifespan: a reader who follows a run would hold
a deploy up for as long as the run goes on.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LOOK_SECONDS: Final = 0.1


class Stopping:
    """Looks now and then, while anybody waits, whether uvicorn has had a signal."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def watched(self) -> Iterator[asyncio.Future[None]]:
        """A future that is done once the server stops."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        if self._timer is None:
            self._look()
        try:
            yield future
        finally:
            future.cancel()
            self._waiting.discard(future)
            if not self._waiting and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
        if is_server_stopping():
            for future in self._waiting:
                if not future.done():
                    future.set_result(None)


def is_server_stopping() -> bool:
    """Whether a uvicorn that serves in this process is about to stop; of another server nobody knows.

    It tells nobody before the lifespan ends, but its signal handlers are methods of it.
    """
    servers = (
        getattr(signal.getsignal(number), "__self__", None) for number in (signal.SIGTERM, signal.SIGINT)
    )
    return any(getattr(server, "should_exit", False) is True for server in servers)
