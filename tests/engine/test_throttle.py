"""`throttle=`: how many runs begin in a period; the others begin later, and none is lost."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from agentflow.app import App
from agentflow.context import Context
from agentflow.events import Event
from agentflow.flow import Throttle
from agentflow.runs import RunStatus
from agentflow.step import Step
from agentflow.testing import Harness, harness


def throttled(throttle: Throttle) -> tuple[App, list[tuple[str, float]]]:
    """An app whose function notes who began when, in seconds since the first."""
    app, begun = App("t"), []
    first: list[datetime] = []

    async def tell_time() -> str:  # not in a thread: who begins first is to be the first here
        return clock[0].now().isoformat()

    @app.function(on="work", throttle=throttle, id="work")
    async def work(ctx: Context[dict[str, Any]], step: Step) -> Any:
        now = datetime.fromisoformat(await step.run("now", tell_time))
        first.append(now)
        begun.append((ctx.data["who"], (now - first[0]).total_seconds()))

    clock: list[Harness] = []
    app.clock_of_test = clock  # type: ignore[attr-defined]
    return app, begun


async def send(h: Harness, *who: str) -> None:
    h.app.clock_of_test[:] = [h]  # type: ignore[attr-defined]
    await h.send([Event(name="work", data={"who": name}) for name in who])


async def test_runs_begin_one_in_an_interval_and_none_is_lost(database_url: str) -> None:
    app, begun = throttled(Throttle(limit=2, period="1m"))
    async with harness(app, database_url=database_url) as h:
        await send(h, *"abcde")
        await h.idle()
        assert begun == [("a", 0)]
        await h.advance("29s")
        assert len(begun) == 1
        await h.advance("10m")
    assert begun == [("a", 0), ("b", 30), ("c", 60), ("d", 90), ("e", 120)]


async def test_a_burst_begins_at_once(database_url: str) -> None:
    app, begun = throttled(Throttle(limit=6, period="1m", burst=3))
    async with harness(app, database_url=database_url) as h:
        await send(h, *"abcdef")
        await h.idle()
        assert begun == [("a", 0), ("b", 0), ("c", 0)]
        await h.advance("1m")
        assert begun[3:] == [("d", 10), ("e", 20), ("f", 30)]
        await h.advance("10m")
        await send(h, *"ghij")
        await h.idle()
        assert [who for who, _ in begun[6:]] == ["g", "h", "i"]


async def test_each_key_has_a_rate_of_its_own(database_url: str) -> None:
    app, begun = throttled(Throttle(limit=1, period="1m", key="data.who"))
    async with harness(app, database_url=database_url) as h:
        await send(h, "ana", "ben", "ana", "ben", "ana")
        await h.idle()
        assert sorted(begun) == [("ana", 0), ("ben", 0)]
        await h.advance("1m")
        assert sorted(begun[2:]) == [("ana", 60), ("ben", 60)]
        await h.advance("1m")
        assert begun[4:] == [("ana", 120)]


async def test_a_delayed_run_says_why_and_shows_queued(database_url: str) -> None:
    app, _ = throttled(Throttle(limit=1, period="1h"))
    async with harness(app, database_url=database_url) as h:
        await send(h, "a", "b", "c")
        await h.idle()
        waiting = (await app.runs.list(status="queued")).data
        assert len(waiting) == 2
        assert all((run.reason or "").startswith("throttle: ") for run in waiting)
        assert all(run.started_at is None for run in waiting)


async def test_one_that_is_cancelled_while_it_waits_takes_no_turn(database_url: str) -> None:
    app, begun = throttled(Throttle(limit=1, period="1m"))
    async with harness(app, database_url=database_url) as h:
        await send(h, "a", "b", "c", "d")
        await h.idle()
        for run in (await app.runs.list(status="queued")).data:
            whole = await app.runs.get(run.id)
            if whole.input["who"] in ("b", "d"):
                await app.runs.cancel(run.id)
        await h.advance("1m")
        assert [who for who, _ in begun] == ["a", "c"]
        await h.advance("10m")
        await send(h, "e")
        await h.idle()
        assert [who for who, _ in begun] == ["a", "c", "e"]


async def test_what_piled_up_while_no_worker_lived_keeps_the_rate(database_url: str) -> None:
    app, begun = throttled(Throttle(limit=1, period="1m"))
    async with harness(app, database_url=database_url) as h:
        await send(h, "a", "b", "c", "d")
        await h.idle()
        await h.crash()
        await h.advance("1h")
        await h.restart()
        await h.idle()
        assert [who for who, _ in begun] == ["a", "b"]
        await h.advance("1m")
        assert [who for who, _ in begun] == ["a", "b", "c"]
        await h.advance("1m")
        assert [who for who, _ in begun] == ["a", "b", "c", "d"]


async def test_only_a_run_s_begin_counts_not_its_waking(database_url: str) -> None:
    app = App("t")

    @app.function(throttle=Throttle(limit=1, period="1h"))
    async def naps(ctx: Context[None], step: Step) -> str:
        await step.sleep("nap", "1m")
        await step.sleep("again", "1m")
        return "up"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(naps)
        await h.advance("2m")
        assert await run.status() is RunStatus.COMPLETED
