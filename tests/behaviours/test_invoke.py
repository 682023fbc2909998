"""Rule 23: sub-runs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from agentflow import Agent, App, Context, FunctionRef, Run, Settings, Step
from agentflow.errors import InvalidInput, InvokeTimeout, NonRetriable, NotFound, RunCancelled, StepError
from agentflow.testing import ScriptedModel, harness
from tests.behaviours.looking import failure_of, restarted, steps_of


async def runs_of(app: App, function: str) -> list[Run]:
    return [await app.runs.get(run.id) for run in (await app.runs.list(function=function)).data]


class Chapter(BaseModel):
    title: str


def with_child(app: App) -> None:
    """Registers `child`, which sleeps an hour and gives its input back."""

    @app.function
    async def child(ctx: Context[Any], step: Step) -> Any:
        await step.sleep("s", "1h")
        return ctx.data


async def test_invoke_gives_the_childs_typed_output_on_replay_too(database_url: str) -> None:
    app, seen = App("t"), []

    @app.function
    async def child(ctx: Context[Chapter], step: Step) -> Chapter:
        return Chapter(title=ctx.data.title.upper())

    @app.function
    async def parent(ctx: Context[None], step: Step) -> None:
        seen.append(
            [
                await step.invoke("model", child, data=Chapter(title="a")),
                await step.invoke("dict", child, data={"title": "b"}),
                await step.invoke("name", "child", data={"title": "c"}),
                await step.invoke("ref", FunctionRef("child"), data={"title": "d"}),
            ]
        )
        await step.sleep("s", 60)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        await h.advance("2m")
        await run.result(10)
    assert seen == [[Chapter(title="A"), Chapter(title="B"), {"title": "C"}, {"title": "D"}]] * len(seen)
    assert len(seen) == 2


async def test_there_is_one_child_for_a_step_whatever_the_retries_and_crashes(database_url: str) -> None:
    app = App("t")
    with_child(app)

    @app.function
    async def parent(ctx: Context[None], step: Step) -> Any:
        got = await step.invoke("call", "child", data=1)
        if ctx.attempt < 2:
            raise ValueError("between steps")
        return got

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        await h.idle()
        await restarted(h)
        await h.advance("30m")
        await restarted(h)
        await h.advance("2h")
        assert await run.result(10) == 1
        [child] = await runs_of(app, "child")
        assert (child.parent_id, child.root_id) == (run.id, run.id)


async def test_parallel_invokes_are_a_child_each_and_keep_their_order(database_url: str) -> None:
    app = App("t")

    @app.function
    async def child(ctx: Context[int], step: Step) -> int:
        await step.sleep("s", 100 - ctx.data)
        return ctx.data

    @app.function
    async def parent(ctx: Context[None], step: Step) -> list[int]:
        return list(await asyncio.gather(*(step.invoke("call", child, data=n) for n in range(6))))

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        await h.advance("2m")
        assert await run.result(10) == list(range(6))
        assert len(await runs_of(app, "child")) == 6


async def test_a_childs_failure_raises_step_error_and_is_not_retried_by_the_parent(database_url: str) -> None:
    app, called = App("t"), [0]

    @app.function(retries=2)
    async def child(ctx: Context[None], step: Step) -> None:
        def fail() -> None:
            called[0] += 1
            raise KeyError("gone")

        await step.run("inner", fail)

    @app.function(retries=4)
    async def parent(ctx: Context[None], step: Step) -> list[Any]:
        try:
            await step.invoke("call", child)
        except StepError as error:
            await step.sleep("s", 60)
            return [error.step_id, error.name, error.message]
        return []

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        await h.advance("1h")
        assert await run.result(10) == ["call", "KeyError", "'gone'"]
        assert len(await runs_of(app, "child")) == 1
        assert (await steps_of(app, run))["call"].status == "failed"
    assert called == [3]


async def test_an_uncaught_failure_of_a_child_fails_the_parent_at_once(database_url: str) -> None:
    app = App("t")

    @app.function
    async def child(ctx: Context[None], step: Step) -> None:
        raise NonRetriable("no use")

    @app.function
    async def parent(ctx: Context[None], step: Step) -> None:
        await step.invoke("call", child)

    async with harness(app, database_url=database_url) as h:
        error = await failure_of(await h.start(parent))
    assert (error.name, error.message, error.step_id) == ("NonRetriable", "no use", "call")


async def test_a_child_has_its_own_limit_of_steps(database_url: str) -> None:
    app = App("t", settings=Settings(max_steps=3))

    @app.function
    async def child(ctx: Context[None], step: Step) -> int:
        for _ in range(3):
            await step.run("x", int)
        return 1

    @app.function
    async def parent(ctx: Context[None], step: Step) -> int:
        return sum([await step.invoke("call", child) for _ in range(3)])

    async with harness(app, database_url=database_url) as h:
        assert await (await h.start(parent)).result(10) == 3


async def test_a_timeout_raises_invoke_timeout_and_leaves_the_child_to_end(database_url: str) -> None:
    app = App("t")
    with_child(app)

    @app.function
    async def parent(ctx: Context[None], step: Step) -> str:
        try:
            await step.invoke("call", "child", data=1, timeout="10m")
        except InvokeTimeout:
            await step.sleep("s", "2h")
            return "timeout"
        return "no timeout"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        await h.advance("10m")
        [child] = await runs_of(app, "child")
        assert child.status == "sleeping"
        await h.advance("3h")
        assert await run.result(10) == "timeout"
        assert [one.status for one in await runs_of(app, "child")] == ["completed"]


async def test_on_timeout_cancel_stops_the_child_too(database_url: str) -> None:
    app = App("t")
    with_child(app)

    @app.function
    async def parent(ctx: Context[None], step: Step) -> str:
        try:
            await step.invoke("call", "child", data=1, timeout="10m", on_timeout="cancel")
        except InvokeTimeout:
            return "timeout"
        return "no timeout"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        await h.advance("10m")
        assert await run.result(10) == "timeout"
        assert [one.status for one in await runs_of(app, "child")] == ["cancelled"]


async def test_a_child_that_ends_before_the_timeout_wins(database_url: str) -> None:
    app = App("t")
    with_child(app)

    @app.function
    async def parent(ctx: Context[None], step: Step) -> Any:
        got = await step.invoke("call", "child", data=1, timeout="61m", on_timeout="cancel")
        await step.sleep("s", "1d")
        return got

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        await h.advance("2d")
        assert await run.result(10) == 1


def nest(app: App) -> None:
    """Registers `root`, which invokes `middle`, which invokes `leaf`, which sleeps a day."""

    @app.function
    async def leaf(ctx: Context[None], step: Step) -> None:
        await step.sleep("s", "1d")

    @app.function
    async def middle(ctx: Context[None], step: Step) -> None:
        await asyncio.gather(step.invoke("a", leaf), step.invoke("b", leaf))

    @app.function
    async def root(ctx: Context[None], step: Step) -> None:
        await step.invoke("m", middle)


async def test_cancelling_a_parent_cancels_its_children_and_theirs(database_url: str) -> None:
    app = App("t")
    nest(app)
    async with harness(app, database_url=database_url) as h:
        run = await h.start("root")
        await h.idle()
        await app.runs.cancel(run.id, "enough")
        await h.idle()
        statuses = {(record.function, record.status.value) for record in (await app.runs.list()).data}
    assert statuses == {("root", "cancelled"), ("middle", "cancelled"), ("leaf", "cancelled")}


async def test_cancelling_a_child_raises_step_error_in_the_parent_and_leaves_its_siblings(
    database_url: str,
) -> None:
    app = App("t")
    with_child(app)

    @app.function
    async def parent(ctx: Context[None], step: Step) -> list[Any]:
        calls = [step.invoke("call", "child", data=n) for n in range(2)]
        return [
            one if isinstance(one, int) else type(one).__name__
            for one in await asyncio.gather(*calls, return_exceptions=True)
        ]

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        await h.idle()
        [first] = [child for child in await runs_of(app, "child") if child.input == 0]
        await app.runs.cancel(first.id)
        await h.advance("1h")
        assert await run.result(10) == ["StepError", 1]


async def test_a_detached_child_gives_its_run_id_at_once_and_outlives_its_parent(database_url: str) -> None:
    app = App("t")
    with_child(app)

    @app.function
    async def parent(ctx: Context[None], step: Step) -> None:
        child_id = await step.invoke("call", "child", data=7, detach=True)
        await step.run("note", str, child_id)
        await step.sleep("s", "1d")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        await h.idle()
        [child] = await runs_of(app, "child")
        assert (await steps_of(app, run))["note"].output == child.id
        await app.runs.cancel(run.id)
        await h.advance("1h")
        assert await app.runs.handle(child.id).result(10) == 7


async def test_a_child_whose_parent_failed_goes_no_further(database_url: str) -> None:
    app = App("t")

    @app.function
    async def child(ctx: Context[None], step: Step) -> None:
        await step.sleep("s", "1h")

    @app.function
    async def parent(ctx: Context[None], step: Step) -> None:
        async def fail() -> None:
            raise NonRetriable("no")

        async with asyncio.TaskGroup() as group:
            group.create_task(step.invoke("call", child))
            group.create_task(step.run("fail", fail))

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        await h.advance("2h")
        assert (await failure_of(run)).name == "NonRetriable"
        assert all(one.status.is_final for one in await runs_of(app, "child"))


async def test_depth_33_is_over_the_limit(database_url: str) -> None:
    app = App("t")

    @app.function
    async def down(ctx: Context[int], step: Step) -> int:
        return await step.invoke("down", "down", data=ctx.data + 1)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(down, 0)
        error = await failure_of(run)
        runs = await runs_of(app, "down")
    assert max(one.input for one in runs) == len(runs) - 1 == 32
    assert error.name == "LimitExceeded"
    assert "32" in error.message


async def test_an_unknown_function_is_not_found_and_bad_data_invalid_input_without_a_child(
    database_url: str,
) -> None:
    app = App("t")

    @app.function
    async def child(ctx: Context[Chapter], step: Step) -> None: ...

    @app.function
    async def parent(ctx: Context[None], step: Step) -> list[str]:
        caught = []
        for name, target, data in [("a", "nobody", None), ("b", "child", {"t": 1}), ("c", "child", None)]:
            try:
                await step.invoke(name, target, data=data)
            except (NotFound, InvalidInput) as error:
                caught.append(type(error).__name__)
        return caught

    async with harness(app, database_url=database_url) as h:
        assert await (await h.start(parent)).result(10) == ["NotFound", "InvalidInput", "InvalidInput"]
        assert await runs_of(app, "child") == []


async def test_a_parent_that_waits_for_its_child_says_so(database_url: str) -> None:
    app = App("t")
    with_child(app)

    @app.function
    async def parent(ctx: Context[None], step: Step) -> None:
        await step.invoke("call", "child", data=1, timeout="2h")

    async with harness(app, database_url=database_url) as h:
        now = h.now()
        run = await h.start(parent)
        await h.idle()
        record = await app.runs.get(run.id)
        [waiting] = record.waiting
    assert record.status == "waiting"
    assert (waiting.step_key, waiting.kind, waiting.name) == ("call", "invoke", "child")
    assert waiting.until == now + timedelta(hours=2)


async def test_an_agent_is_invoked_as_a_run_of_its_own(database_url: str) -> None:
    app = App("t")
    helper = Agent("helper", model="openai:gpt-5-mini")
    app.add(helper)

    @app.function
    async def parent(ctx: Context[None], step: Step) -> str:
        return await step.invoke("ask", helper, data="Hello?")

    async with harness(app, database_url=database_url, model=ScriptedModel(["Hi."])) as h:
        run = await h.start(parent)
        assert await run.result(10) == "Hi."
        [child] = await runs_of(app, "agents/helper")
        assert child.parent_id == run.id


async def test_a_timeout_of_0_is_an_invoke_timeout_at_once(database_url: str) -> None:
    app = App("t")
    with_child(app)

    @app.function
    async def parent(ctx: Context[None], step: Step) -> str:
        try:
            await step.invoke("call", "child", data=1, timeout=0)
        except InvokeTimeout:
            return "timeout"
        return "no timeout"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        await h.idle()
        assert await run.result(10) == "timeout"


async def test_an_invoke_timeout_comes_back_as_one_after_a_crash(database_url: str) -> None:
    app, caught = App("t"), []
    with_child(app)

    @app.function
    async def parent(ctx: Context[None], step: Step) -> None:
        try:
            await step.invoke("call", "child", data=1, timeout="10m")
        except InvokeTimeout as error:
            caught.append(str(error))
        await step.sleep("s", "5m")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        await h.advance("10m")
        await restarted(h)
        await h.advance("2h")
        await run.result(10)
    assert len(caught) >= 2
    assert len(set(caught)) == 1


async def test_a_cancelled_child_tells_who_asks_for_its_result(database_url: str) -> None:
    app = App("t")
    nest(app)
    async with harness(app, database_url=database_url) as h:
        run = await h.start("root")
        await h.idle()
        [middle] = await runs_of(app, "middle")
        await app.runs.cancel(run.id, "enough")
        with pytest.raises(RunCancelled):
            await app.runs.handle(middle.id).result(10)
