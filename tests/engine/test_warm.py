"""Runs that have just left memory go on without a claim, and just as they would by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agentflow.app import App
from agentflow.approvals import Approve
from agentflow.context import Context
from agentflow.engine import warm
from agentflow.runs import RunStatus
from agentflow.step import Step
from agentflow.store.claim_types import ClaimedRun, Reclaimed
from agentflow.store.protocol import Store


class Taken:
    """What a store was asked for: how often runs were claimed, and taken up again."""

    def __init__(self) -> None:
        self.claimed: list[str] = []
        self.reclaimed: list[Reclaimed | None] = []

    def watch(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        claim, reclaim = store.claim, store.reclaim

        async def watched_claim(*args: Any, **kwargs: Any) -> list[ClaimedRun]:
            claimed = await claim(*args, **kwargs)
            self.claimed += [run.key.run_id for run in claimed]
            return claimed

        async def watched_reclaim(*args: Any, **kwargs: Any) -> Reclaimed | None:
            self.reclaimed.append(await reclaim(*args, **kwargs))
            return self.reclaimed[-1]

        monkeypatch.setattr(store, "claim", watched_claim)
        monkeypatch.setattr(store, "reclaim", watched_reclaim)


@asynccontextmanager
async def running(app: App, url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Taken]:
    taken = Taken()
    async with app.running():
        taken.watch(app.client.store, monkeypatch)
        yield taken


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


async def test_a_signal_a_decision_and_a_child_s_end_wake_without_a_claim(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App("t", database_url=url)

    @app.function
    async def child(ctx: Context[int], step: Step) -> int:
        signal = await step.wait_for_signal("go", signal="child", timeout="1h")
        assert signal is not None
        return ctx.data + int(signal.data)

    @app.function
    async def parent(ctx: Context[int], step: Step) -> list[Any]:
        before = await step.run("before", _double, ctx.data)
        told = await step.wait_for_signal("told", signal="parent", timeout="1h")
        allowed = await step.approval("allowed", title="Go on?")
        got = await step.invoke("child", child, data=before)
        return [before, told and told.data, allowed.approved, got, await step.run("after", _double, got)]

    async with running(app, url, monkeypatch) as taken:
        run = await app.start(parent, 4)
        await _waits(app, run.id)
        taken.claimed.clear()
        await app.signal("parent", {"a": 1})
        await _waits(app, run.id, after=2)
        [request] = (await app.approvals.list()).data
        await app.approvals.decide(request.id, Approve(), by="ana")
        await _waits(app, run.id, after=3)
        [waiting] = (await app.runs.list(function="child")).data
        await _waits(app, waiting.id)
        await app.signal("child", 10)
        assert await run.result(10) == [8, {"a": 1}, True, 18, 36]
    assert run.id not in taken.claimed
    # The parent's signal, its approval and its child, and the child's signal.
    assert len(taken.reclaimed) == 4
    assert None not in taken.reclaimed


async def test_what_is_kept_of_a_run_that_another_worker_had_is_not_used(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = App("t", database_url=url), App("t", database_url=url)
    called: list[str] = []

    def add_to(app: App) -> Any:
        @app.function
        async def f(ctx: Context[None], step: Step) -> list[Any]:
            first = await step.wait_for_signal("first", signal="first", timeout="1h")
            await step.run("call", _note, called)
            second = await step.wait_for_signal("second", signal="second", timeout="1h")
            return [first and first.data, second and second.data]

        return f

    f, _ = add_to(one), add_to(two)
    async with running(one, url, monkeypatch) as taken:
        run = await one.start(f)
        await _waits(one, run.id)
        # It goes on at another worker, and comes back when that one has ended.
        with monkeypatch.context() as deaf:
            deaf.setattr(_worker_of(one)._wakeups, "_on_ready", lambda run_id: True)
            deaf.setattr(one.client.store, "claim", _claim_nothing)
            async with two.running():
                await two.signal("first", 1)
                await _waits(two, run.id, after=2)
        await one.signal("second", 2)
        assert await run.result(10) == [1, 2]
    assert called == ["called"]
    assert taken.reclaimed == [None]


async def test_only_the_latest_are_kept_and_of_those_only_small_ones(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "MOST_RUNS", 3)
    app = App("t", database_url=sqlite_url)

    @app.function
    async def f(ctx: Context[str], step: Step) -> None:
        await step.wait_for_signal("go", signal=ctx.data[:9], timeout="1h")

    async with running(app, sqlite_url, monkeypatch) as taken:
        runs = [await app.start(f, f"signal {n}") for n in range(6)]
        large = await app.start(f, "large one" + "x" * warm.MOST_BYTES)
        for run in (*runs, large):
            await _waits(app, run.id)
        taken.claimed.clear()
        # One after the other: a claim takes whatever is ready.
        for name, run in (*((f"signal {n}", run) for n, run in enumerate(runs)), ("large one", large)):
            await app.signal(name)
            await run.result(10)
    assert len(taken.reclaimed) == 3
    assert sorted(taken.claimed) == sorted([*(run.id for run in runs[:3]), large.id])


async def test_a_retry_between_steps_is_known_when_a_run_goes_on(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, attempts = App("t", database_url=sqlite_url), list[int]()

    @app.function(retries=3)
    async def f(ctx: Context[None], step: Step) -> list[int]:
        attempts.append(ctx.attempt)
        await step.wait_for_signal("go", signal="go", timeout="1h")
        if len(attempts) < 4:
            raise ValueError("between the steps")
        return attempts

    async with running(app, sqlite_url, monkeypatch):
        run = await app.start(f)
        await _waits(app, run.id)
        await app.signal("go")
        assert await run.result(60) == [0, 0, 1, 2]


def _worker_of(app: App) -> Any:
    return app.client.local_worker


async def _claim_nothing(*_: Any, **__: Any) -> list[ClaimedRun]:
    return []


async def _double(value: int) -> int:
    return 2 * value


async def _note(called: list[str]) -> None:
    called.append("called")


async def _waits(app: App, run_id: str, *, after: int = 0) -> None:
    """Until it waits, with so many steps behind it."""
    async with asyncio.timeout(20):
        while True:
            run = await app.runs.get(run_id)
            if run.status is RunStatus.WAITING and len((await app.runs.steps(run_id)).data) >= after:
                return
            await asyncio.sleep(0.01)
