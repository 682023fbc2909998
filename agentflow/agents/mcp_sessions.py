"""Connections to MCP servers: one for each server and event loop, begun when first needed, begun anew when broken.

A connection lives in a task of its own: the SDK's cancel scopes have to be left by the task that entered them, and
what the SDK starts must not belong to the run that happened to ask first.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from agentflow.errors import ToolFailed
from agentflow.models.clients import imported, shared_client

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult, RequestParamsMeta, Tool

R = TypeVar("R")

logger = logging.getLogger("agentflow.mcp")

LONGEST_PROBE = 5.0
"""Seconds a server that let a call run out of time has to show that it still answers."""
LONGEST_ENDING = 15.0
"""Seconds a connection has to end; the SDK ends a server's process within six."""
GRACE = 2.0
"""Seconds beyond a call's timeout: the SDK counts from when the request was written."""
MOST_PAGES = 100
"""Pages of a list of tools; a server may not keep us turning them for ever."""


class Reachable(Protocol):
    """A server as it was configured."""

    name: str
    timeout_seconds: float
    connect_timeout_seconds: float

    @property
    def address(self) -> str:
        """Where it is, for messages: a command or a URL, without secrets."""
        ...

    async def connect(self, stack: AsyncExitStack, hear: Callable[[str], None]) -> Client:
        """Connect; what `stack` is given is undone at the end. `hear` is told what the server says beside it all."""
        ...


def session_of(server: Reachable) -> Session:
    """The running loop's session with a server; it ends when the App is closed."""
    return shared_client(("mcp", server), lambda: Session(server), close=Session.close)


class Session:
    """Talks to one server, over one connection after the other."""

    def __init__(self, server: Reachable) -> None:
        self._server = server
        self._connection: Connection | None = None
        self._changing = asyncio.Lock()
        self._leaving: set[Connection] = set()

    async def list_tools(self) -> list[Tool]:
        """All tools of the server. Raises `ConnectionError`, `TimeoutError`."""

        async def ask(client: Client) -> list[Tool]:
            tools: list[Tool] = []
            cursor: str | None = None
            for _ in range(MOST_PAGES):
                page = await client.list_tools(cursor=cursor, cache_mode="refresh")
                tools += page.tools
                cursor = page.next_cursor
                if cursor is None:
                    return tools
            raise ConnectionError(f"{self._told}: its list of tools has over {MOST_PAGES} pages")

        return await self._ask("asked for its tools", ask)

    async def call_tool(self, name: str, arguments: dict[str, Any], *, key: str) -> CallToolResult:
        """Call a tool. `key` is told to the server as the call's idempotency key.

        Raises `ConnectionError`, `TimeoutError`; `ToolFailed` for a call that the server refuses.
        """

        meta = cast("RequestParamsMeta", {"agentflow/idempotency_key": key})

        async def ask(client: Client) -> CallToolResult:
            return await client.call_tool(name, arguments, meta=meta)

        return await self._ask(f"called tool {name!r}", ask)

    async def close(self) -> None:
        """End the connection, and with it a server that is a process of ours."""
        async with self._changing:
            self._leave(self._connection)
            await asyncio.gather(*(connection.ended() for connection in self._leaving))

    # ---------------------------------------------------------------------------------------------------- asking

    async def _ask(self, what: str, ask: Callable[[Client], Awaitable[R]]) -> R:
        from mcp.shared.exceptions import MCPError
        from mcp_types import CONNECTION_CLOSED, INTERNAL_ERROR, REQUEST_TIMEOUT
        from pydantic import ValidationError

        connection = await self._connected()
        client = await connection.client()
        seconds = self._server.timeout_seconds
        try:
            async with asyncio.timeout(seconds + GRACE):
                return await ask(client)
        except asyncio.CancelledError:
            connection.is_suspect = True
            raise
        except TimeoutError:
            raise self._timed_out(connection, what) from None
        except MCPError as error:
            if error.code == REQUEST_TIMEOUT:
                raise self._timed_out(connection, what) from None
            if error.code == CONNECTION_CLOSED or not connection.is_open or _is_forgotten(error):
                raise self._broken(connection, what, error) from error
            if error.code == INTERNAL_ERROR:
                raise RuntimeError(f"{self._told}: {what}: {error}") from error
            raise ToolFailed(f"The server refused the call: {error}") from error
        except (RuntimeError, ValidationError) as error:
            # An answer against the tool's own schema: it was carried out, so it is not done again.
            raise ToolFailed(f"The server's answer is not valid: {error}") from error
        except Exception as error:
            raise self._broken(connection, what, error) from error

    def _timed_out(self, connection: Connection, what: str) -> TimeoutError:
        connection.is_suspect = True
        return TimeoutError(
            f"{self._told}: {what}, and it did not answer within {self._server.timeout_seconds:g} s (timeout=)"
        )

    def _broken(self, connection: Connection, what: str, error: Exception) -> ConnectionError:
        self._leave(connection)
        return ConnectionError(
            f"{self._told}: {what}, and the connection broke: {_reason(error)}{connection.last_words()}"
        )

    @property
    def _told(self) -> str:
        return f"MCP server {self._server.name!r} ({self._server.address})"

    # ------------------------------------------------------------------------------------------- one connection

    async def _connected(self) -> Connection:
        """The connection there is; a new one where it has ended, or where the server does not answer any more."""
        # In a thread, and before the clock of anything runs: the SDK takes a second to import.
        await imported("mcp", "mcp.client.streamable_http")
        async with self._changing:
            connection = self._connection
            if connection is not None and connection.is_suspect and not await connection.answers():
                logger.warning("%s does not answer any more: connecting again", self._told)
                self._leave(connection)
            elif connection is not None and not connection.is_open:
                self._leave(connection)
            if self._connection is None:
                self._connection = Connection(self._server, self._told)
            return self._connection

    def _leave(self, connection: Connection | None) -> None:
        if connection is None:
            return
        if self._connection is connection:
            self._connection = None
        self._leaving.add(connection)
        connection.leave(then=lambda: self._leaving.discard(connection))


class Connection:
    """One connection, from its handshake to its end."""

    def __init__(self, server: Reachable, told: str) -> None:
        loop = asyncio.get_running_loop()
        self.is_suspect = False
        """Whether the last that was heard of the server is that it did not answer."""
        self._server = server
        self._told = told
        self._said = ""
        self._ready: asyncio.Future[Client] = loop.create_future()
        self._left = asyncio.Event()
        # Neither by the loop, whose tasks belong to the run that starts them, nor in that run's context.
        self._task: asyncio.Task[None] = contextvars.Context().run(
            lambda: asyncio.Task(self._live(), loop=loop, name=f"agentflow-mcp-{server.name}")
        )

    @property
    def is_open(self) -> bool:
        return not self._task.done() and not self._left.is_set()

    async def client(self) -> Client:
        """The SDK's client, when the handshake is over. Raises `ConnectionError`, `TimeoutError`."""
        return await asyncio.shield(self._ready)

    async def answers(self) -> bool:
        """Whether the server still does."""
        if not self.is_open:
            return False
        try:
            async with asyncio.timeout(min(LONGEST_PROBE, self._server.timeout_seconds)):
                await (await self.client()).list_tools(cache_mode="bypass")
        except Exception:
            return False
        self.is_suspect = False
        return True

    def leave(self, then: Callable[[], None]) -> None:
        """Begin to end it."""
        self._left.set()
        self._task.add_done_callback(lambda _: then())

    async def ended(self) -> None:
        """Wait for its end."""
        done, _ = await asyncio.wait([self._task], timeout=LONGEST_ENDING)
        if not done:
            logger.warning("%s: the connection does not end; it is cut", self._told)
            self._task.cancel()
            await asyncio.wait([self._task])

    def last_words(self) -> str:
        """What the server said last, where it said anything."""
        said = " ".join(self._said.split())
        return f"; its last words: {said[-500:]}" if said else ""

    async def _live(self) -> None:
        import anyio

        try:
            # A scope of anyio's around it all, no cancellation: only so does the SDK end the process it has begun.
            with anyio.move_on_after(self._server.connect_timeout_seconds) as limit:
                async with AsyncExitStack() as stack:
                    client = await self._server.connect(stack, self._hear)
                    limit.deadline = math.inf
                    self._ready.set_result(client)
                    await self._left.wait()
            if limit.cancelled_caught:
                seconds = self._server.connect_timeout_seconds
                self._fail(
                    TimeoutError(
                        f"{self._told} was not ready within {seconds:g} s (connect_timeout=){self.last_words()}"
                    )
                )
        except asyncio.CancelledError:
            self._fail(ConnectionError(f"{self._told}: the connection was given up"))
            raise
        except BaseException as error:  # groups of the SDK's
            if not self._ready.done():
                self._fail(
                    ConnectionError(f"{self._told} cannot be reached: {_reason(error)}{self.last_words()}")
                )
            elif not self._left.is_set():
                logger.warning("%s: the connection broke: %s", self._told, _reason(error))

    def _fail(self, error: Exception) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # seen, also where nobody waits for it any more

    def _hear(self, text: str) -> None:
        self._said = (self._said + text)[-2000:]
        for line in text.splitlines():
            logger.info("%s: %s", self._server.name, line)


def _is_forgotten(error: Exception) -> bool:
    """Whether the server does not know our session any more: it was started anew."""
    return str(error) == "Session terminated"


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
