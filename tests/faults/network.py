"""A network between agentflow and PostgreSQL that can be made to fail: a proxy that cuts, swallows, holds and delays.

A fate is bound to what is sent: `network.on(b"run-7", Fate.LOSE_ANSWER)` meets the next data for the server that hold
these bytes (texts go over the wire as they are), so a test can break exactly one commit at exactly one instant.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum
from urllib.parse import urlsplit, urlunsplit

CHUNK = 65_536
KEEPALIVE_SECONDS = 5.0
"""After so long the server notices that a silent client is gone; TCP's own would take a minute."""


class Fate(Enum):
    """What becomes of data on their way to the server, and of their connection."""

    CUT_BEFORE = "reset; the server never gets them"
    CUT_AT_ONCE = "reset as soon as the server has them"
    LOSE_ANSWER = "the server gets them and answers; reset instead of the answer"
    SWALLOW = "nothing comes through any more, in neither direction, and nobody is told"
    SWALLOW_ANSWER = "the server gets them; then nothing comes through any more, and nobody is told"
    HOLD = (
        "kept, with all that follows; the server gets it when `release` is called, and the client no answer"
    )


class Link:
    """One connection of a client, and ours to the server for it."""

    def __init__(
        self,
        network: Network,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._network = network
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self.is_silent = False
        self._loses_answer = False
        self._held: list[bytes] | None = None

    async def run(self) -> None:
        up, down = asyncio.create_task(self._carry_up()), asyncio.create_task(self._carry_down())
        try:
            await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ours = [self._to_client] if self._held is not None else [self._to_client, self._to_server]
            for writer in ours:
                writer.close()  # before anything is waited for: who cancels this may do so again
            for task in (up, down):
                task.cancel()
            await asyncio.wait([up, down])
            for writer in ours:
                await _close(writer)

    def silence(self) -> None:
        """From now on nothing comes through, and nobody is told."""
        self.is_silent = True

    def cut(self) -> None:
        _reset(self._to_client)
        _reset(self._to_server)

    async def release(self) -> None:
        """Let the server have what was held, and read what it says to it until it hangs up."""
        held, self._held = self._held or [], None
        with suppress(OSError):
            for data in held:
                self._to_server.write(data)
            await self._to_server.drain()
            self._to_server.write_eof()
            async with asyncio.timeout(10):
                while await self._from_server.read(CHUNK):
                    pass
        await _close(self._to_server)

    async def _carry_up(self) -> None:
        with suppress(OSError):
            while data := await self._from_client.read(CHUNK):
                if self.is_silent:
                    continue
                if self._held is not None:
                    self._held.append(data)
                    continue
                await self._network.pause()
                if not await self._meet(self._network.fate_of(data), data):
                    return
            if self.is_silent:  # a network that swallows everything swallows the farewell too
                await asyncio.sleep(KEEPALIVE_SECONDS)

    async def _meet(self, fate: Fate | None, data: bytes) -> bool:
        match fate:
            case None:
                await self._give_server(data)
            case Fate.CUT_BEFORE:
                self.cut()
                return False
            case Fate.CUT_AT_ONCE:
                await self._give_server(data)
                self.cut()
                return False
            case Fate.LOSE_ANSWER:
                self._loses_answer = True
                await self._give_server(data)
            case Fate.SWALLOW:
                self.silence()
            case Fate.SWALLOW_ANSWER:
                await self._give_server(data)
                self.silence()
            case Fate.HOLD:
                self._held = [data]
                self._network.held.append(self)
        return True

    async def _give_server(self, data: bytes) -> None:
        self._to_server.write(data)
        await self._to_server.drain()

    async def _carry_down(self) -> None:
        with suppress(OSError):
            while data := await self._from_server.read(CHUNK):
                if self._loses_answer:
                    self.cut()
                    return
                if not self.is_silent:
                    await self._network.pause()
                    self._to_client.write(data)
                    await self._to_client.drain()
            if self.is_silent:
                await asyncio.sleep(3600)  # until the client hangs up


class Network:
    """The way to one server: `url` is the database's address by it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._there = urlsplit(url)
        self._links: dict[asyncio.Task[None], Link] = {}
        self._rules: list[tuple[bytes, Fate]] = []
        self._by_chance: Callable[[], Fate | None] = lambda: None
        self._delay: Callable[[], float] = lambda: 0.0
        self._port = 0
        self.held: list[Link] = []
        self.met: list[Fate] = []
        """The fates that came about."""
        self.swallows_new = False
        """New connections get no answer."""

    @property
    def url(self) -> str:
        here = self._there.netloc.rpartition("@")[0] + f"@127.0.0.1:{self._port}"
        return urlunsplit(self._there._replace(netloc=here))

    def on(self, data: bytes, fate: Fate) -> None:
        """Let the next data with these bytes meet this fate, once."""
        self._rules.append((data, fate))

    def by_chance(self, rng: random.Random, share: float, *fates: Fate) -> None:
        """Let this share of all that is sent meet one of these fates."""
        self._by_chance = lambda: rng.choice(fates) if rng.random() < share else None

    def delay(self, seconds: Callable[[], float]) -> None:
        """Let everything take so long."""
        self._delay = seconds

    def be_sound(self) -> None:
        """No fate and no delay for what is sent from now on; what is silent stays so."""
        self._rules.clear()
        self._by_chance, self._delay, self.swallows_new = lambda: None, lambda: 0.0, False

    def silence(self) -> int:
        """All connections that there are become silent; how many were not yet."""
        spoke = [link for link in self._links.values() if not link.is_silent]
        for link in spoke:
            link.silence()
        return len(spoke)

    def cut(self) -> None:
        for link in list(self._links.values()):
            link.cut()

    def fate_of(self, data: bytes) -> Fate | None:
        fate = self._by_chance()
        for rule in self._rules:
            if rule[0] in data:
                self._rules.remove(rule)
                fate = rule[1]
                break
        if fate is not None:
            self.met.append(fate)
        return fate

    async def pause(self) -> None:
        if seconds := self._delay():
            await asyncio.sleep(seconds)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            there = await asyncio.open_connection(self._there.hostname, self._there.port)
        except BaseException as error:
            _reset(writer)
            if isinstance(error, OSError | asyncio.CancelledError):
                return  # a stream server would log it as an error
            raise
        link = self._links[task] = Link(self, (reader, writer), there)
        if self.swallows_new:
            link.silence()
        try:
            await link.run()
        except asyncio.CancelledError:
            pass  # the network is closed
        finally:
            del self._links[task]

    async def __aenter__(self) -> Network:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for link in self.held:
            await link.release()
        for task in list(self._links):
            task.cancel()
        if self._links:
            await asyncio.wait(list(self._links))
        await self._server.wait_closed()


@asynccontextmanager
async def network_to(url: str) -> AsyncIterator[Network]:
    """A network of the test's own, sound at first."""
    async with Network(url) as network:
        yield network


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of a farewell."""
    ours: socket.socket | None = writer.get_extra_info("socket")
    if ours is not None and ours.fileno() >= 0:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
