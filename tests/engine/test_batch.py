"""`batch=`: one run for many events, begun when there are so many or when it has waited long enough."""

from __future__ import annotations

from typing import Any

from agentflow.app import App
from agentflow.context import Context
from agentflow.events import Event
from agentflow.flow import Batch
from agentflow.step import Step
from agentflow.testing import harness


def batched(batch: Batch) -> tuple[App, list[list[int]]]:
    app, seen = App("t"), []

    @app.function(on="row", id="store", batch=batch)
    async def store(ctx: Context[dict[str, Any]], step: Step) -> list[int]:
        seen.append([event.data["n"] for event in ctx.events])
        assert ctx.data["n"] == ctx.events[0].data["n"]
        return [event.data["n"] for event in ctx.events]

    return app, seen


def rows(*numbers: int, of: str = "a") -> list[Event]:
    return [Event(name="row", data={"n": n, "of": of}) for n in numbers]


async def test_a_batch_begins_when_it_is_full(database_url: str) -> None:
    app, seen = batched(Batch(3, "1h"))
    async with harness(app, database_url=database_url) as h:
        await h.send(rows(*range(7)))
        await h.idle()
        assert seen == [[0, 1, 2], [3, 4, 5]]
        await h.advance("1h")
    assert seen == [[0, 1, 2], [3, 4, 5], [6]]


async def test_a_batch_begins_when_its_first_event_has_waited_long_enough(database_url: str) -> None:
    app, seen = batched(Batch(100, "30s"))
    async with harness(app, database_url=database_url) as h:
        await h.send(rows(1))
        await h.advance("20s")
        await h.send(rows(2))
        await h.advance("9s")
        assert seen == []
        await h.advance("1s")
        assert seen == [[1, 2]]


async def test_each_key_is_a_batch_of_its_own(database_url: str) -> None:
    app, seen = batched(Batch(2, "1h", key="data.of"))
    async with harness(app, database_url=database_url) as h:
        await h.send([*rows(1, of="a"), *rows(2, of="b"), *rows(3, of="a"), *rows(4, of="c")])
        await h.idle()
        assert seen == [[1, 3]]
        await h.advance("1h")
    assert sorted(seen) == [[1, 3], [2], [4]]


async def test_a_batch_of_one_begins_at_once(database_url: str) -> None:
    app, seen = batched(Batch(1, "1h"))
    async with harness(app, database_url=database_url) as h:
        await h.send(rows(1, 2))
        await h.idle()
    assert sorted(seen) == [[1], [2]]


async def test_every_event_of_a_batch_is_in_one_run_across_crashes(database_url: str) -> None:
    app, _ = batched(Batch(4, "10s"))
    async with harness(app, database_url=database_url) as h:
        for n in range(10):
            await h.send(rows(n))
            if n % 3 == 0:
                await h.crash()
                await h.restart()
        await h.advance("1m")
        runs = [await app.runs.get(run.id) for run in (await app.runs.list()).data]
        assert len(runs) == 3
        assert sorted(n for run in runs for n in run.output) == list(range(10))


async def test_direct_starts_share_the_batch_and_its_run(database_url: str) -> None:
    app, seen = batched(Batch(2, "1h"))
    async with harness(app, database_url=database_url) as h:
        first = await h.start("store", {"n": 1})
        second = await h.start("store", {"n": 2})
        assert first.id == second.id
        await h.idle()
        assert await second.result() == [1, 2]
        again = await app.runs.rerun(first.id)
        await h.idle()
        assert await again.result() == [1, 2]
    assert seen == [[1, 2], [1, 2]]


async def test_an_invoked_run_is_never_one_of_several(database_url: str) -> None:
    app, seen = batched(Batch(5, "1h"))

    @app.function
    async def parent(ctx: Context[None], step: Step) -> Any:
        return await step.invoke("child", "store", data={"n": 7})

    async with harness(app, database_url=database_url) as h:
        run = await h.start("parent")
        await h.idle()
        assert await run.status() == "completed"
    assert seen == [[7]]
