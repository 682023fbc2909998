"""Retention: what ended long ago goes with all that is its own; what a live run needs stays."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from agentflow.app import App
from agentflow.context import Context
from agentflow.engine.retention import Retention, sweep
from agentflow.errors import NotFound
from agentflow.events import Event
from agentflow.flow import Debounce, RateLimit
from agentflow.step import Step
from agentflow.store.rows import Base
from agentflow.testing import Harness, harness

DAY = 24 * 3600 * 1_000_000


def make_app() -> App:
    app = App("t")

    @app.function(on="made")
    async def short(ctx: Context[dict[str, Any]], step: Step) -> str:
        await step.run("one", lambda: "x", output=str)
        await step.publish("two", "topic", {"n": 1})
        return "done"

    @app.function
    async def parent(ctx: Context[dict[str, Any]], step: Step) -> str:
        await step.invoke("child", "short", data={})
        await step.wait_for_signal("wait", signal="go", timeout="300d")
        return str(await step.invoke("second", "short", data={}))

    @app.function(on="typed", debounce=Debounce("10s"), rate_limit=RateLimit(5, "1h"))
    async def limited(ctx: Context[dict[str, Any]], step: Step) -> None: ...

    return app


async def prune(h: Harness, *, days: float) -> tuple[int, int]:
    now = h._clock.now()
    return tuple(await sweep(h.app.client.store, before=now - int(days * DAY), now=now))  # type: ignore[return-value]


async def rows(h: Harness) -> dict[str, int]:
    """How many rows each table has, but for those that are about workers and functions."""
    found = {}
    for table in Base.metadata.tables.values():
        if table.name.removeprefix("agentflow_") not in ("worker", "function"):
            [row] = await h.app.client.store.queries._rows(text(f"SELECT count(*) AS n FROM {table.name}"))  # type: ignore[attr-defined]
            found[table.name.removeprefix("agentflow_")] = row["n"]
    return {name: n for name, n in found.items() if n}


async def test_a_run_goes_with_all_that_is_its_own(database_url: str) -> None:
    app = make_app()
    async with harness(app, database_url=database_url) as h:
        await h.send([Event(name="made", data={}, id="once"), Event(name="typed", data={})])
        await h.start("short", {}, idempotency_key="k")
        await app.signal("kept", buffer="1h")
        await h.advance("1m")
        assert len(await rows(h)) > 8
        await h.advance("2d")
        assert await prune(h, days=1) == (3, 2)
        assert await rows(h) == {}


async def test_what_ended_since_the_horizon_stays(database_url: str) -> None:
    app = make_app()
    async with harness(app, database_url=database_url) as h:
        old = await h.start("short", {})
        await h.idle()
        await h.advance("30h")
        new = await h.start("short", {})
        await h.idle()
        assert await prune(h, days=1) == (1, 0)
        assert [run.id for run in (await app.runs.list()).data] == [new.id]
        assert await new.result() == "done"
        assert old.id != new.id


async def test_what_a_live_run_needs_stays(database_url: str) -> None:
    app = make_app()
    async with harness(app, database_url=database_url) as h:
        run = await h.start("parent", {})
        await h.idle()
        await h.advance("10d")
        assert await prune(h, days=1) == (0, 0)
        assert len((await app.runs.list()).data) == 2
        await h.crash()
        await h.restart()
        await h.signal("go")
        await h.idle()
        assert await run.result() == "done"
        await h.advance("1s")
        assert await prune(h, days=0) == (3, 0)


async def test_who_waits_for_a_run_that_is_removed_before_it_was_looked_at_is_told(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, elsewhere = make_app(), App("t", database_url=database_url)
    async with harness(app, database_url=database_url) as h, elsewhere:
        run = await h.start("parent", {})
        await h.idle()
        queries = elsewhere.client.store.queries
        look, removed, looked = queries.list_ended, asyncio.Event(), asyncio.Event()

        async def look_too_late(run_ids: Collection[str]) -> list[str]:
            looked.set()
            await removed.wait()
            return await look(run_ids)

        monkeypatch.setattr(queries, "list_ended", look_too_late)
        waiting = asyncio.create_task(elsewhere.runs.handle(run.id).result(20))
        await looked.wait()
        await h.signal("go")
        await h.idle()
        await h.advance("1s")
        assert await prune(h, days=0) == (3, 0)
        removed.set()
        with pytest.raises(NotFound, match="removed before its result was read"):
            await waiting


async def test_an_event_stays_as_long_as_its_id_counts_and_as_the_run_that_it_started(
    database_url: str,
) -> None:
    app = make_app()
    async with harness(app, database_url=database_url) as h:
        await h.send(Event(name="nobody", data={}, id="once"))
        await h.advance("23h")
        assert await prune(h, days=0) == (0, 0)
        await h.send(Event(name="nobody", data={}, id="once"))
        assert len((await app.events.list()).data) == 1
        await h.advance("2h")
        assert await prune(h, days=0) == (0, 1)


async def test_many_runs_go_batch_by_batch_past_those_that_stay(database_url: str) -> None:
    app = make_app()
    async with harness(app, database_url=database_url) as h:
        waiting = [await h.start("parent", {}) for _ in range(3)]
        await h.send([Event(name="made", data={"n": n}) for n in range(450)])
        await h.idle()
        await h.advance("3d")
        # The parents wait for one signal: two of them have failed with a conflict, and their children may go too.
        ended = [run.id for run in (await app.runs.list(status="failed")).data]
        assert len(ended) == 2
        assert await prune(h, days=1) == (450 + 2 + 2, 450)
        left = {run.id for run in (await app.runs.list()).data}
        assert len(left) == 2
        assert len(left & {run.id for run in waiting}) == 1


async def test_a_worker_sweeps_by_its_settings(database_url: str) -> None:
    app = make_app()
    async with harness(app, database_url=database_url) as h:
        await h.start("short", {})
        await h.advance("2d")
        loop = Retention(app.client.store, app.client.clock, keep=timedelta(days=1), rng=random.Random(1))
        assert await loop.run_once() == (1, 0)
        assert await loop.run_once() == (0, 0)
        off = Retention(app.client.store, app.client.clock, keep=None, rng=random.Random(1))
        assert await off.run_once() == (0, 0)
        await off.run()
