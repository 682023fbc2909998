"""Connections to PostgreSQL by asyncpg, what their errors mean, and how one is given up.

asyncpg waits for the answer to a cancelled or late statement before it lets go of the connection. Over a network that
swallows everything this lasts as long again as the statement's own time limit; so here it is cut off at once.
"""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import asyncpg  # type: ignore[import-untyped]

APPLICATION_NAME = "agentflow"
CONNECT_SECONDS = 5.0
COMMAND_SECONDS = 10.0
"""For each statement: long for a server that works, short for a connection that is dead."""
ROLLBACK_SECONDS, FAREWELL_SECONDS = 2.0, 1.0
PLANNED_FOR_SECONDS = 10.0
"""So long a plan is kept. One that was made for a small table may be bad when it has grown, and the server notices only
when it next looks at the table."""
IDLE_IN_TRANSACTION = "5s"
"""A process that is stopped inside a transaction loses it, and its locks, so that its runs can be taken over."""

_CONFLICTS = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError)
_OUTAGES = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,  # shut down, restarting, crashed
    asyncpg.InsufficientResourcesError,  # disk full, out of memory, too many connections
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby, after a failover
)


_OWN_TYPES_BELOW = 16_384
"""A type with a smaller number is PostgreSQL's own, and the same on every server."""
_types: dict[int, Any] = {}
_NOTHING_PREPARED = SimpleNamespace(name="nothing")


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection that says farewell, and does not wait for ever until the other side has heard it."""

    _plan_again_at = 0.0

    async def _introspect_types(self, typeoids: Any, *rest: Any) -> Any:
        """asyncpg asks on each connection anew what an array of numbers is, which takes longer than to connect."""
        if _types.keys() >= set(typeoids):
            return list(_types.values()), _NOTHING_PREPARED
        told, statement = await super()._introspect_types(typeoids, *rest)
        _types.update((row["oid"], row) for row in told if row["oid"] < _OWN_TYPES_BELOW)
        return told, statement

    async def close(self, *, timeout: float | None = None) -> None:
        try:
            await super().close(timeout=FAREWELL_SECONDS if timeout is None else timeout)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self.terminate()

    def is_to_plan_again(self) -> bool:
        """Whether the plans of this connection are old; they are then taken to be renewed."""
        now = time.monotonic()
        if now < self._plan_again_at:
            return False
        self._plan_again_at = now + PLANNED_FOR_SECONDS
        return True


async def connect(
    dsn: str,
    *,
    seconds: float | None = None,
    waits_for_disk: bool = True,
    plans_once: bool = False,
    in_order: bool = False,
) -> asyncpg.Connection[Any]:
    """A connection with agentflow's settings; it commits as the server is set up to, or does not wait for its disk.

    `seconds` is what each statement may take. Raises `TimeoutError` when that, or five, were not enough to connect.
    `plans_once` where all that is asked goes by keys, so that one plan serves every value; `in_order` where it is the
    first of many in the order of an index.
    """
    settings = {
        "application_name": APPLICATION_NAME,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION,
        # A client that vanished from the network is noticed within a minute, not after the two hours of TCP's default,
        # and a session of it does not count any more.
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
        "default_transaction_isolation": "read committed",
        # All that is asked here goes by keys. A plan that was made while a table was small would read the whole of
        # it, until the server has looked at the table again.
        "enable_seqscan": "off",
    }
    if plans_once:
        settings["plan_cache_mode"] = "force_generic_plan"
    if in_order:
        # A bitmap costs little in a small table, and reads all that an index has before it gives the first.
        settings["enable_bitmapscan"] = "off"
    if not waits_for_disk:
        settings["synchronous_commit"] = "off"
    seconds = COMMAND_SECONDS if seconds is None else seconds
    return await asyncpg.connect(
        dsn,
        timeout=min(CONNECT_SECONDS, seconds),
        command_timeout=seconds,
        statement_cache_size=300,
        connection_class=_Connection,
        server_settings=settings,
    )


async def abandon(connection: asyncpg.Connection[Any], error: BaseException) -> None:
    """Leave a transaction, or a statement, that ended in this error; what cannot be left cleanly is cut off."""
    if is_outage(error) or isinstance(error, asyncio.CancelledError):
        connection.terminate()
    elif not connection.is_closed() and connection.is_in_transaction():
        try:
            await connection.execute("ROLLBACK", timeout=ROLLBACK_SECONDS)
        except BaseException:
            connection.terminate()


def is_conflict(error: BaseException) -> bool:
    """Whether two transactions got in each other's way."""
    return isinstance(error, _CONFLICTS)


def is_outage(error: BaseException) -> bool:
    """Whether the server cannot be reached or cannot write now."""
    # asyncpg's error for an argument that cannot be encoded is an InterfaceError and a ValueError.
    return isinstance(error, _OUTAGES) and not isinstance(error, ValueError)
