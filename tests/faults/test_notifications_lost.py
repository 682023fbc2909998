"""Every notification is lost: all is done all the same, only later, by who looks for himself.

The database is given a `pg_notify` of its own that does nothing and stands before the real one, so the engine does
what it always does and nobody ever hears of it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from agentflow.app import App
from agentflow.context import Context
from agentflow.engine.claims import LONGEST_POLL
from agentflow.engine.worker import ORPHAN_INTERVAL_SECONDS
from agentflow.errors import RunCancelled
from agentflow.handles import LONGEST_PAUSE, RunHandle
from agentflow.settings import Settings
from agentflow.step import Step
from agentflow.store.postgres.notices import CHANNEL
from tests.faults.load import Load
from tests.faults.reporting import Report
from tests.faults.support import IS_FULL, SECONDS

ROUNDS = 8 if IS_FULL else 1
AT_ONCE = 5
CLAIMED_WITHIN = LONGEST_POLL * 1.2
"""The poll has 20 % of jitter."""
SEEN_WITHIN = ORPHAN_INTERVAL_SECONDS
TOLD_WITHIN = LONGEST_PAUSE
SLACK = 1.0
"""For the work itself, on a machine that does other things too."""


@pytest.fixture
async def silent_url(postgres_url: str) -> AsyncIterator[str]:
    """A database in which no notification is ever sent."""
    heard: list[Any] = []
    database = await asyncpg.connect(postgres_url)
    try:
        name = await database.fetchval("SELECT current_database()")
        await database.execute(
            f"""
            CREATE SCHEMA silent;
            CREATE FUNCTION silent.pg_notify(text, text) RETURNS void LANGUAGE sql AS 'SELECT';
            ALTER DATABASE "{name}" SET search_path = silent, pg_catalog, public;
            """
        )
        await database.add_listener(CHANNEL, lambda *notice: heard.append(notice))
        yield postgres_url
        assert not heard, "a notification was sent all the same"
    finally:
        await database.execute(f'ALTER DATABASE "{name}" RESET search_path; DROP SCHEMA silent CASCADE')
        await database.close()


def make_app(url: str) -> App:
    app = App("t", settings=Settings(database_url=url))

    async def body(n: int) -> int:
        return n

    async def work_on() -> None:
        await asyncio.sleep(3600)

    @app.function
    async def queued(ctx: Context[int], step: Step) -> int:
        return await step.run("body", body, ctx.data)

    @app.function
    async def suspended(ctx: Context[str], step: Step) -> bool:
        return await step.wait_for_signal("wait", signal=ctx.data, timeout="1h") is not None

    @app.function
    async def in_memory(ctx: Context[str], step: Step) -> bool:
        """It waits, and cannot leave memory meanwhile: another branch works."""
        working = asyncio.create_task(step.run("work", work_on, timeout="1h"))
        signal = await step.wait_for_signal("wait", signal=ctx.data, timeout="1h")
        working.cancel()
        return signal is not None

    return app


async def starts_from_the_queue(sender: App, name: str) -> float:
    began = time.monotonic()
    handle = await sender.start("queued", 1)
    assert await handle.result() == 1
    return time.monotonic() - began


async def wakes_who_is_suspended(sender: App, name: str) -> float:
    return await wakes(sender, await sender.start("suspended", name), name, "waiting")


async def wakes_who_is_in_memory(sender: App, name: str) -> float:
    return await wakes(sender, await sender.start("in-memory", name), name, "running")


async def wakes(sender: App, handle: RunHandle[bool], name: str, status: str) -> float:
    while not ((run := await sender.runs.get(handle.id)).status == status and run.waiting):
        await asyncio.sleep(0.05)
    await asyncio.sleep(random.uniform(0.5, 3))  # so that it comes anywhere between two looks
    began = time.monotonic()
    assert await sender.signal(name) == handle.id
    assert await handle.result() is True
    return time.monotonic() - began


async def cancels_who_is_in_memory(sender: App, name: str) -> float:
    handle = await sender.start("in-memory", name)
    while (await handle.status()) != "running":
        await asyncio.sleep(0.05)
    await asyncio.sleep(random.uniform(0.5, 3))
    began = time.monotonic()
    await sender.runs.cancel(handle.id)
    with pytest.raises(RunCancelled):
        await handle.result()
    return time.monotonic() - began


WAYS: dict[Callable[[App, str], Awaitable[float]], float] = {
    starts_from_the_queue: CLAIMED_WITHIN + TOLD_WITHIN,
    wakes_who_is_suspended: CLAIMED_WITHIN + TOLD_WITHIN,
    wakes_who_is_in_memory: SEEN_WITHIN + TOLD_WITHIN,
    cancels_who_is_in_memory: SEEN_WITHIN + TOLD_WITHIN,
}


@pytest.mark.fault(7)
@pytest.mark.timeout(SECONDS)
async def test_what_others_do_is_seen_within_the_poll_interval(silent_url: str, report: Report) -> None:
    longest = dict.fromkeys(WAYS, 0.0)
    async with make_app(silent_url).running(), make_app(silent_url) as sender:
        for round in range(ROUNDS):
            ways = [way for way in WAYS for _ in range(AT_ONCE)]
            took = await asyncio.gather(
                *[way(sender, f"{way.__name__} {round} {n}") for n, way in enumerate(ways)]
            )
            for way, seconds in zip(ways, took, strict=True):
                longest[way] = max(longest[way], seconds)
    for way, seconds in longest.items():
        assert seconds < WAYS[way] + SLACK, f"{way.__name__}: {seconds:.1f} s"
    told = ", ".join(
        f"{way.__name__.replace('_', ' ')} {seconds:.1f} s (limit {WAYS[way]:.0f} s)"
        for way, seconds in longest.items()
    )
    report(f"{ROUNDS * AT_ONCE} times each, from another process's connections, at most: {told}")


@pytest.mark.fault(7)
@pytest.mark.timeout(SECONDS)
async def test_a_load_without_notifications_ends_as_with_them(silent_url: str, report: Report) -> None:
    began = time.monotonic()
    async with Load(silent_url, silent_url) as load:
        await asyncio.sleep(60 if IS_FULL else 0)
        await load.finish(120)
        await load.check()
        report(f"{len(load.started)} runs in {time.monotonic() - began:.0f} s: 0 bad")
