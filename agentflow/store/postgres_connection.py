"""Connections to PostgreSQL by asyncpg, and what their errors mean."""

from __future__ import annotations

from typing import Any

import asyncpg  # type: ignore[import-untyped]

APPLICATION_NAME = "agentflow"
CONNECT_SECONDS = 5.0
COMMAND_SECONDS = 30.0
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


async def connect(
    dsn: str,
    *,
    command_timeout: float = COMMAND_SECONDS,
    waits_for_disk: bool = True,
    plans_once: bool = False,
) -> asyncpg.Connection[Any]:
    """A connection with agentflow's settings; it commits as the server is set up to, or does not wait for its disk.

    `plans_once` where all that is asked goes by keys, so that one plan serves every value.
    """
    settings = {
        "application_name": APPLICATION_NAME,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION,
        "default_transaction_isolation": "read committed",
        # All that is asked here goes by keys. A plan that was made while a table was small would read the whole of
        # it, until the server has looked at the table again.
        "enable_seqscan": "off",
    }
    if plans_once:
        settings["plan_cache_mode"] = "force_generic_plan"
    if not waits_for_disk:
        settings["synchronous_commit"] = "off"
    return await asyncpg.connect(
        dsn,
        timeout=CONNECT_SECONDS,
        command_timeout=command_timeout,
        statement_cache_size=300,
        server_settings=settings,
    )


def is_conflict(error: BaseException) -> bool:
    """Whether two transactions got in each other's way."""
    return isinstance(error, _CONFLICTS)


def is_outage(error: BaseException) -> bool:
    """Whether the server cannot be reached or cannot write now."""
    # asyncpg's error for an argument that cannot be encoded is an InterfaceError and a ValueError.
    return isinstance(error, _OUTAGES) and not isinstance(error, ValueError)
