"""`on_failure` runs once, with its own steps, when a run fails; not for cancelled runs, and not after itself."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from agentflow import App, Context, Step
from agentflow.errors import ConfigurationError, RunFailed
from agentflow.flow import RunFailure
from agentflow.runs import RunStatus
from agentflow.testing import harness


class Order(BaseModel):
    n: int = 0
    waits: bool = False
    deep: Any = None


def failing_app() -> tuple[App, list[RunFailure]]:
    app, told = App("t"), list[RunFailure]()

    async def tell(ctx: Context[RunFailure], step: Step) -> str:
        """Tell somebody."""
        name = await step.run("name", lambda: ctx.data.error.name, output=str)
        await step.run("tell", lambda: told.append(ctx.data))
        return name

    @app.function(retries=0, on="order.placed", on_failure=tell)
    async def order(ctx: Context[Order], step: Step) -> str:
        if ctx.data.waits:
            await step.wait_for_signal("go", signal="go", timeout="1h")
        return await step.run("pay", _refuse, ctx.data.n)

    return app, told


def _refuse(n: int) -> str:
    if n:
        raise KeyError("no money")
    return "paid"


async def test_on_failure_runs_with_the_error_the_failing_step_the_run_id_and_the_event(
    database_url: str,
) -> None:
    app, told = failing_app()
    async with harness(app, database_url=database_url) as h:
        await h.send({"name": "order.placed", "data": {"n": 1}})
        await h.idle()
        [failed] = (await app.runs.list(function="order")).data
        [after] = (await app.runs.list(function="order-failure")).data
        [failure] = told
        assert failure.run_id == failed.id
        assert (failure.error.name, failure.error.step_id) == ("KeyError", "pay")
        assert "no money" in failure.error.message
        assert failure.event is not None
        assert (failure.event.name, failure.event.data) == ("order.placed", {"n": 1})
        assert await app.runs.handle(after.id).result(5) == "KeyError"
        assert [step.key for step in (await app.runs.steps(after.id)).data] == ["name", "tell"]


async def test_on_failure_of_a_run_without_an_event_has_no_event_and_its_tags(database_url: str) -> None:
    app, told = failing_app()
    async with harness(app, database_url=database_url) as h:
        run = await h.start("order", {"n": 1}, tags=["vip"])
        with pytest.raises(RunFailed):
            await run.result(5)
        await h.idle()
        assert [failure.event for failure in told] == [None]
        [after] = (await app.runs.list(function="order-failure")).data
        assert after.tags == ("vip",)


async def test_on_failure_does_not_run_for_completed_and_cancelled_runs(database_url: str) -> None:
    app, told = failing_app()
    async with harness(app, database_url=database_url) as h:
        run = await h.start("order", {"n": 0})
        assert await run.result(5) == "paid"
        waiting = await h.start("order", {"waits": True, "n": 1})
        await h.idle()
        await app.runs.cancel(waiting.id)
        await h.idle()
        assert told == []
        assert len((await app.runs.list()).data) == 2


async def test_input_that_does_not_validate_is_a_failure_too(database_url: str) -> None:
    app, told = failing_app()
    async with harness(app, database_url=database_url) as h:
        await h.send({"name": "order.placed", "data": {"n": "many"}})
        await h.idle()
        [failure] = told
        assert failure.error.name == "InvalidInput"


async def test_a_failure_of_the_failure_function_starts_no_other(database_url: str) -> None:
    app, tries = App("t"), list[int]()

    async def also_fails(ctx: Context[RunFailure], step: Step) -> None:
        tries.append(ctx.attempt)
        raise ValueError("me too")

    @app.function(retries=1, on_failure=also_fails)
    async def fails(ctx: Context[None], step: Step) -> None:
        raise ValueError("it broke")

    async with harness(app, database_url=database_url) as h:
        await h.start(fails)
        await h.advance("1h")
        runs = (await app.runs.list()).data
        assert {run.function: run.status for run in runs} == {
            "fails": RunStatus.FAILED,
            "fails-failure": RunStatus.FAILED,
        }
        assert tries == [0, 1]


async def test_an_event_as_deep_as_is_possible_is_left_out_rather_than_the_failure(sqlite_url: str) -> None:
    app, told = failing_app()
    deep: Any = 1
    for _ in range(98):
        deep = [deep]
    async with harness(app, database_url=sqlite_url) as h:
        await h.send({"name": "order.placed", "data": {"n": 1, "deep": deep}})
        await h.idle()
        [failure] = told
        assert (failure.error.name, failure.event) == ("KeyError", None)


def test_on_failure_has_the_shape_of_a_function_and_an_id_of_its_own() -> None:
    app = App("t")

    async def order(ctx: Context[int], step: Step) -> None: ...

    async def tell(ctx: Context[RunFailure], step: Step) -> None: ...

    async def wrong(ctx: Context[RunFailure]) -> None: ...

    with pytest.raises(ConfigurationError, match="takes 1 argument"):
        app.function(on_failure=wrong)(order)  # type: ignore[arg-type]
    app.function("order-failure")(order)
    with pytest.raises(ConfigurationError, match="'order-failure' is registered twice"):
        app.function(on_failure=tell)(order)
