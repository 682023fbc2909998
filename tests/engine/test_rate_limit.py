"""`rate_limit=`: at most so many runs begin in a period, the others are skipped; `idempotency=`: one a key and day."""

from __future__ import annotations

from typing import Any

import pytest

from agentflow.app import App
from agentflow.context import Context
from agentflow.errors import RunSkipped, StepError
from agentflow.events import Event
from agentflow.flow import Idempotency, RateLimit
from agentflow.runs import RunStatus
from agentflow.step import Step
from agentflow.store.operations.admission import MOST_EXACT
from agentflow.testing import harness


def limited(**config: Any) -> App:
    app = App("t")

    @app.function(on="work", id="work", **config)
    async def work(ctx: Context[dict[str, Any]], step: Step) -> str:
        return str(ctx.data["who"])

    @app.function
    async def parent(ctx: Context[dict[str, Any]], step: Step) -> str:
        try:
            return str(await step.invoke("child", "work", data=ctx.data))
        except StepError as error:
            return f"{error.name}: {error.message}"

    return app


async def test_one_more_than_the_limit_is_skipped_and_says_why(database_url: str) -> None:
    app = limited(rate_limit=RateLimit(2, "1m"))
    async with harness(app, database_url=database_url) as h:
        runs = [await h.start("work", {"who": str(n)}) for n in range(3)]
        await h.idle()
        assert [await run.status() for run in runs] == [
            RunStatus.COMPLETED,
            RunStatus.COMPLETED,
            RunStatus.SKIPPED,
        ]
        with pytest.raises(RunSkipped, match="rate_limit"):
            await runs[2].result()
        skipped = await app.runs.get(runs[2].id)
        assert (skipped.reason or "").startswith("rate_limit: 2 run(s) in 60 s")
        assert skipped.ended_at is not None
        assert skipped.started_at is None


async def test_no_period_sees_more_than_the_limit(database_url: str) -> None:
    app = limited(rate_limit=RateLimit(2, "60s"))

    async with harness(app, database_url=database_url) as h:

        async def is_let_in() -> bool:
            run = await h.start("work", {"who": "x"})
            await h.idle()
            return await run.status() is RunStatus.COMPLETED

        assert await is_let_in()  # 0 s
        await h.advance("59s")
        assert await is_let_in()  # 59 s
        assert not await is_let_in()
        await h.advance("1s")
        assert await is_let_in()  # 60 s: the first is out of sight
        assert not await is_let_in()
        await h.advance("58s")
        assert not await is_let_in()
        await h.advance("1s")
        assert await is_let_in()  # 119 s


async def test_each_key_has_a_limit_of_its_own_and_events_are_skipped_too(database_url: str) -> None:
    app = limited(rate_limit=RateLimit(1, "1h", key="data.who"))
    async with harness(app, database_url=database_url) as h:
        await h.send([Event(name="work", data={"who": who}) for who in ("ana", "ben", "ana")])
        await h.idle()
        found = {
            (await app.runs.get(run.id)).input["who"]: run.status for run in (await app.runs.list()).data[1:]
        }
        assert found == {"ana": RunStatus.COMPLETED, "ben": RunStatus.COMPLETED}
        assert (await app.runs.list()).data[0].status is RunStatus.SKIPPED


async def test_a_great_limit_holds_to_a_thousandth_of_its_period(database_url: str) -> None:
    app = limited(rate_limit=RateLimit(1100, "1000s"))
    assert MOST_EXACT < 1100, "a lesser one is held exactly"

    async with harness(app, database_url=database_url) as h:

        async def send(events: int) -> None:
            await h.send([Event(name="work", data={"who": "x"}) for _ in range(events)])

        for _ in range(12):
            await send(100)
            await h.advance("2s")
        assert await skipped(app) == 100  # the last hundred
        await h.advance("977s")  # 1,001 s after the first hundred, which is out of sight; the second is not
        await send(100)
        assert await skipped(app) == 100
        await send(1)
        assert await skipped(app) == 101


async def skipped(app: App) -> int:
    """How many runs were skipped."""
    found, page = 0, await app.runs.list(status="skipped", limit=100)
    while True:
        found += len(page.data)
        if not page.has_more:
            return found
        page = await app.runs.list(status="skipped", limit=100, cursor=page.cursor)


async def test_an_invoked_run_that_is_skipped_raises_in_its_parent(database_url: str) -> None:
    app = limited(rate_limit=RateLimit(1, "1h"))
    async with harness(app, database_url=database_url) as h:
        first = await h.start("parent", {"who": "ana"})
        await h.idle()
        second = await h.start("parent", {"who": "ana"})
        await h.idle()
        assert await first.result() == "ana"
        assert (await second.result()).startswith("RunSkipped: ")


async def test_a_start_that_is_skipped_takes_no_key_and_no_place(database_url: str) -> None:
    app = limited(idempotency=Idempotency("data.who"), rate_limit=RateLimit(1, "1m"))
    async with harness(app, database_url=database_url) as h:
        await h.start("work", {"who": "ana"})
        skipped = await h.start("work", {"who": "ben"})
        assert await skipped.status() is RunStatus.SKIPPED
        await h.advance("2m")
        later = await h.start("work", {"who": "ben"})
        await h.idle()
        assert await later.result() == "ben"


async def test_one_run_for_a_key_in_24_hours(database_url: str) -> None:
    app = limited(idempotency=Idempotency("data.who"))
    async with harness(app, database_url=database_url) as h:
        first = await h.start("work", {"who": "ana"})
        again = await h.start("work", {"who": "ana"})
        other = await h.start("work", {"who": "ben"})
        await h.idle()
        assert await first.result() == "ana"
        assert await other.result() == "ben"
        with pytest.raises(RunSkipped, match=first.id):
            await again.result()
        await h.advance("23h59m59s")
        late = await h.start("work", {"who": "ana"})
        assert await late.status() is RunStatus.SKIPPED
        await h.advance("1s")
        next_day = await h.start("work", {"who": "ana"})
        await h.idle()
        assert await next_day.result() == "ana"
