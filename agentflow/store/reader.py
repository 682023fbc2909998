"""How pages and streams are read: on connections of their own, and patiently while the database is away."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agentflow.errors import DatabaseUnavailable
from agentflow.store.statements.statement import Params, Statement

R = TypeVar("R")

PATIENCE = 30.0
"""Seconds for which a read goes on trying while the database is away."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 1.0

Rows = Sequence[Mapping[str, Any]]


class Direct(Protocol):
    """Reads by the driver itself, on connections of its own."""

    async def fetch(self, statement: Statement, parameters: Params) -> Sequence[Sequence[Any]] | None:
        """What the statement finds; `None` where there is no connection to be had for it."""
        ...

    def drop(self) -> None:
        """Let go of the connections that are not used now: there may be no room for others beside them."""
        ...

    async def close(self) -> None: ...


class Reader:
    """Reads of one database. What they need is made when the first one comes."""

    def __init__(
        self,
        make_engine: Callable[[], AsyncEngine],
        direct: Direct,
        *,
        is_outage: Callable[[BaseException], bool] = lambda error: False,
    ) -> None:
        self._make_engine = make_engine
        self._is_outage = is_outage
        self._engine: AsyncEngine | None = None
        self._direct = direct

    async def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.dispose()
        await self._direct.close()

    async def rows(self, statement: Any) -> Rows:
        """What a statement of SQLAlchemy's finds. Nothing is found by a text that no row can hold."""

        async def read(engine: AsyncEngine) -> Rows:
            async with engine.connect() as connection:
                return [dict(row) for row in (await connection.execute(statement)).mappings()]

        return await self._read(read) or []

    async def tuples(self, statement: Statement, **parameters: Any) -> Sequence[Sequence[Any]]:
        """What a compiled statement finds, at a tenth of the work: for what is asked all the time."""

        async def read(engine: AsyncEngine) -> Sequence[Sequence[Any]]:
            found = await self._direct.fetch(statement, parameters)
            if found is not None:
                return found
            async with engine.connect() as connection:
                return await _by_the_driver(connection, statement, parameters)

        return await self._read(read) or []

    async def found(self, statement: Statement, **parameters: Any) -> Rows:
        """As `tuples`, by the names of what the statement selects."""
        names = statement.names
        return [dict(zip(names, row, strict=True)) for row in await self.tuples(statement, **parameters)]

    async def _read(self, read: Callable[[AsyncEngine], Awaitable[R]]) -> R | None:
        """What is read; again while the database is away, for a while. `None` of what no database can be asked."""
        if self._engine is None:
            self._engine = self._make_engine()
        engine = self._engine
        pause, give_up_at = SHORTEST_PAUSE, time.monotonic() + PATIENCE
        while True:
            try:
                return await read(engine)
            except Exception as error:
                if _asks_for_the_impossible(error):
                    return None
                if not self._is_outage(error):
                    raise
                if time.monotonic() + pause > give_up_at or self._engine is not engine:
                    raise DatabaseUnavailable(
                        f"the database cannot be read: {error or type(error).__name__}; it was tried for "
                        f"{PATIENCE:.0f} s, or until the store was closed: see that the server runs, and try again"
                    ) from error
            self._direct.drop()
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, LONGEST_PAUSE)


async def _by_the_driver(
    connection: AsyncConnection, statement: Statement, parameters: Params
) -> Sequence[Sequence[Any]]:
    driver: Any = (await connection.get_raw_connection()).driver_connection
    try:
        if connection.dialect.name == "sqlite":
            sql, arguments = statement.sqlite
            return list(await driver.execute_fetchall(sql, arguments(parameters)))
        sql, arguments = statement.postgres
        return list(await driver.fetch(sql, *arguments(parameters)))
    except BaseException:
        await connection.invalidate()  # SQLAlchemy has not seen what became of it
        raise


def _asks_for_the_impossible(error: BaseException | None) -> bool:
    """Whether it was asked for a text that no row can hold: with a NUL (22021) or a lone surrogate."""
    while error is not None:
        if isinstance(error, UnicodeEncodeError) or getattr(error, "sqlstate", None) == "22021":
            return True
        error = error.__cause__ or error.__context__
    return False
