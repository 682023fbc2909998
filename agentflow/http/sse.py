"""A run's stream as server-sent events: `id` is the stored sequence number, so any process can go on with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Final

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from agentflow.client import Client
from agentflow.errors import InvalidInput
from agentflow.http.api import OpenStreams
from agentflow.http.stopping import Stopping
from agentflow.runs import Run, StreamItem

HEARTBEAT_SECONDS: Final = 15.0
# Not line breaks to a browser, but to clients that part lines as Python's splitlines does (httpx is one).
_LINE_BREAKS_OF_UNICODE: Final = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would hold events back


class RunStream(EventSourceResponse):
    """Sends items as they come, a comment when none does for a while; stops when the client has gone or the server is
    to stop: a reader goes on elsewhere.
    """

    def __init__(
        self,
        items: AsyncIterator[StreamItem],
        open_streams: OpenStreams,
        stopping: Stopping,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._items = items
        self._upcoming: asyncio.Future[StreamItem] | None = None
        self._open_streams = open_streams
        self._stopping = stopping
        self._stopped: asyncio.Future[None] | None = None
        super().__init__(self._frames(), headers={**_HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._open_streams.count += 1
        try:
            with self._stopping.watched() as self._stopped:
                await super().__call__(scope, receive, send)
        finally:
            self._open_streams.count -= 1
            await self._close()

    async def _frames(self) -> AsyncIterator[bytes]:
        while True:
            if self._upcoming is None:
                self._upcoming = asyncio.ensure_future(_next(self._items))
            waiting: set[asyncio.Future[Any]] = (
                {self._upcoming} if self._stopped is None else {self._upcoming, self._stopped}
            )
            await asyncio.wait(waiting, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not self._upcoming.done():
                if self._stopped is not None and self._stopped.done():
                    return
                yield KEEPALIVE_COMMENT
                continue
            upcoming, self._upcoming = self._upcoming, None
            try:
                item = upcoming.result()
            except StopAsyncIteration:
                return
            yield _frame(item)

    async def _close(self) -> None:
        """Not in the generator itself: where the client goes, that one is not run to its end."""
        if self._upcoming is not None:
            self._upcoming.cancel()
            await asyncio.wait({self._upcoming})
        if isinstance(self._items, AsyncGenerator):
            await self._items.aclose()


async def resume_point(client: Client, run: Run, *, last_event_id: str | None, after: int) -> int | None:
    """The sequence number to go on after; `None`: this reader has had the `done` of this run.

    Raises `InvalidInput` for a `Last-Event-ID` that is no number of ours.
    """
    if last_event_id is None:
        seen, is_reconnect = after, False
    elif last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 19:
        seen, is_reconnect = int(last_event_id), True
    else:
        raise InvalidInput(f"Last-Event-ID {last_event_id[:40]!r} is not an id that this stream gave")
    if seen == 0:
        return 0
    if not run.status.is_final:
        # What a reader has had is there. Waiting for a number that another run gave would tell it nothing at all.
        return seen if await client.store.queries.list_stream(run.id, after=seen - 1, limit=1) else 0
    last = await _last_seq(client, run.id, after=seen)
    if seen <= last:
        return seen
    if seen == last + 1:  # `done` has the number after the last
        return None if is_reconnect else last
    return 0  # a number that this run never had: told from the beginning


async def _last_seq(client: Client, run_id: str, *, after: int) -> int:
    """The number of the last item; looks from just before `after`, and from the beginning if nothing is there."""
    seq = 0
    for start in (max(0, after - 2), 0):
        while items := await client.store.queries.list_stream(run_id, after=max(start, seq)):
            seq = items[-1].seq
        if seq:
            break
    return seq


async def _next(items: AsyncIterator[StreamItem]) -> StreamItem:
    return await anext(items)


def _frame(item: StreamItem) -> bytes:
    # A topic of the user's may hold anything, and a line break would begin another field.
    kind = " ".join(item.kind.split())
    data = item.model_dump_json().translate(_LINE_BREAKS_OF_UNICODE)
    return format_sse_event(data_str=data, event=kind, id=str(item.seq))
