"""Hints between processes by LISTEN and NOTIFY: one connection, one notice in 10 ms, never in a write's transaction.

A hint that is lost costs time, not correctness: everybody polls too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from agentflow.crashpoints import point
from agentflow.store.hints import Hint, HintKind
from agentflow.store.postgres.connection import connect

logger = logging.getLogger("agentflow.store")

CHANNEL = "agentflow"
GATHER_SECONDS = 0.01
"""After a notice the next one gathers hints for so long; the first after a pause goes at once."""
LONGEST_PAYLOAD = 7_500  # bytes; PostgreSQL's own limit is 8,000
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
ANSWER_SECONDS = 5.0
QUIET_SECONDS = 10.0
"""After so long without a word the connection is tried: of one that is dead nothing is ever heard."""


class Notices:
    """Tells others what we committed, and our listeners what others did."""

    def __init__(self, dsn: str, *, listener: Callable[[Iterable[Hint]], None]) -> None:
        self._dsn = dsn
        self._listener = listener
        self._sender = secrets.token_hex(4)
        self._hints: dict[Hint, None] = {}
        self._something = asyncio.Event()
        self._told_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self.connected = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="agentflow-notices")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def send(self, hints: Iterable[Hint]) -> None:
        """Tell other processes soon."""
        self._hints.update(dict.fromkeys(hints))
        if self._hints:
            self._something.set()

    async def _run(self) -> None:
        pause = SHORTEST_PAUSE
        while True:
            try:
                connection = await connect(self._dsn, seconds=ANSWER_SECONDS)
            except Exception as error:
                logger.debug("cannot listen for notices yet: %s", error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            try:
                await self._listen(connection)
                pause = SHORTEST_PAUSE
                await self._send_all(connection)
            except Exception as error:
                told = str(error) or type(error).__name__
                logger.info("lost the connection for notices, connecting again: %s", told)
                await asyncio.sleep(pause)
            finally:
                self.connected.clear()
                connection.terminate()

    async def _listen(self, connection: asyncpg.Connection[Any]) -> None:
        await connection.add_listener(CHANNEL, self._hear)
        connection.add_termination_listener(lambda _: self._something.set())
        self.connected.set()
        # Whatever was told while nobody listened here is lost.
        self._listener([Hint(HintKind.ANY)])

    async def _send_all(self, connection: asyncpg.Connection[Any]) -> None:
        while True:
            await self._wait_for_something()
            self._something.clear()
            if connection.is_closed():
                raise asyncpg.InterfaceError("the server closed it")
            if not self._hints:
                await connection.execute("SELECT 1")
                continue
            told, self._hints = self._hints, {}
            self._told_at = time.monotonic()
            point("before_notify")
            try:
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, self._payload(list(told)))
            except BaseException:
                self.send(told)  # perhaps once more; on the next connection
                raise

    async def _wait_for_something(self) -> None:
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                await self._something.wait()
        except TimeoutError:
            return
        await asyncio.sleep(self._told_at + GATHER_SECONDS - time.monotonic())

    def _payload(self, hints: list[Hint]) -> str:
        text = json.dumps([self._sender, hints])
        if len(text) > LONGEST_PAYLOAD:
            text = json.dumps([self._sender, [Hint(HintKind.ANY)]])
        return text

    def _hear(self, connection: Any, pid: int, channel: str, payload: Any) -> None:
        try:
            sender, hints = json.loads(payload)
            heard = [Hint(HintKind(kind), run_id) for kind, run_id in hints]
        except (ValueError, TypeError):
            sender, heard = "", [Hint(HintKind.ANY)]
        if sender != self._sender:
            self._listener(heard)
