"""A run's live stream: what a step tells while it runs, written in small batches that never hold it up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from agentflow.codec import PLAIN
from agentflow.store.operation_types import AppendStream
from agentflow.store.protocol import Store
from agentflow.store.stored_types import Chunk, RunKey

FLUSH_AFTER = 0.05
"""Seconds; text that comes in between goes in one chunk."""


class RunStream:
    """Collects chunks of one run. Neighbouring text deltas of one step are joined."""

    def __init__(self, store: Store, run: RunKey, take_seq: Callable[[], int]) -> None:
        self._store = store
        self._run = run
        self._take_seq = take_seq
        self._pending: list[tuple[str, str | None, int, Any]] = []
        self._timer: asyncio.TimerHandle | None = None

    def append(self, kind: str, data: Any, *, step_key: str | None = None, attempt: int = 0) -> None:
        if self._pending and isinstance(data, str):
            last_kind, last_key, last_attempt, last_data = self._pending[-1]
            if (last_kind, last_key, last_attempt) == (kind, step_key, attempt) and isinstance(
                last_data, str
            ):
                self._pending[-1] = (kind, step_key, attempt, last_data + data)
                return
        self._pending.append((kind, step_key, attempt, data))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_AFTER, self.flush)

    def flush(self) -> None:
        """Write what is pending; a step does so before its outcome, so that the numbers tell the order."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._pending:
            return
        chunks = tuple(
            Chunk(self._take_seq(), kind, step_key, attempt, PLAIN.encode(data, "a chunk of the stream"))
            for kind, step_key, attempt, data in self._pending
        )
        self._pending.clear()
        self._store.submit(AppendStream(self._run, chunks)).add_done_callback(_retrieve)

    def close(self) -> None:
        """Drop what is pending."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pending.clear()


def _retrieve(future: asyncio.Future[Any]) -> None:
    """A lost piece of a stream is no reason to fail a step; a broken database shows in the step's own commit."""
    if not future.cancelled():
        future.exception()
