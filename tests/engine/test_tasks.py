"""Facts about asyncio that the engine's judgement rests on, each of which a naive form gets wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentflow.app import App
from agentflow.context import Context
from agentflow.engine.tasks import CALM_TURNS, Branch, TaskState, install_task_factory, start_task, state_of
from agentflow.runs import RunStatus
from agentflow.step import Step
from agentflow.testing import harness


class Owner:
    """Remembers the branches of a run."""

    def __init__(self) -> None:
        self.branches: dict[Branch, None] = {}
        self.paths: list[str] = []

    def add_branch(self, branch: Branch) -> None:
        self.branches[branch] = None
        self.paths.append(branch.path)

    def drop_branch(self, branch: Branch) -> None:
        del self.branches[branch]


@pytest.mark.parametrize("depth", [1, 3, 5, 8])
async def test_calm_turns_are_enough_under_nested_gathers(depth: int) -> None:
    """From a result to the next step call many turns pass, but never two in a row without a ready task."""
    loop = asyncio.get_running_loop()
    install_task_factory(loop)
    owner, future, reached = Owner(), loop.create_future(), False

    async def nest(left: int) -> None:
        if left:
            await asyncio.gather(nest(left - 1))
        else:
            await future

    async def code() -> None:
        nonlocal reached
        await nest(depth)
        reached = True

    task = start_task(loop, code(), branch=Branch(owner), name="run")
    for _ in range(depth + 5):
        await asyncio.sleep(0)
    future.set_result(None)
    turns = calm = longest = 0
    while not reached:
        states = [state_of(branch.task, set()) for branch in owner.branches if branch.task is not None]
        calm = 0 if TaskState.READY in states else calm + 1
        longest = max(longest, calm)
        turns += 1
        await asyncio.sleep(0)
    await task
    assert turns >= 2 * depth, "one settle turn would have been enough: the fact this rests on has changed"
    assert longest < CALM_TURNS


@pytest.mark.parametrize("depth", [1, 5])
async def test_a_run_is_not_suspended_between_a_result_and_the_next_step_call(
    sqlite_url: str, depth: int
) -> None:
    app, entered = App("t"), 0

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[int]:
        nonlocal entered
        entered += 1

        async def nest(left: int) -> int:
            if left:
                return (await asyncio.gather(nest(left - 1)))[0]
            return await step.run("inner", lambda: 1)

        async def chain() -> int:
            total = 0
            for _ in range(5):
                total += await nest(depth)
            return total

        waiting = asyncio.create_task(step.sleep("nap", "1h"))
        total = await chain()
        await waiting
        return [total]

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.idle()
        # All five inner steps ran beside the wait, in one entry: nothing was taken for quiescence in between.
        assert (entered, await run.status()) == (1, RunStatus.SLEEPING)
        await h.advance("1h")
        assert await run.result(5) == [5]


async def test_tasks_take_their_path_in_the_order_their_parent_made_them() -> None:
    loop = asyncio.get_running_loop()
    install_task_factory(loop)
    owner = Owner()

    async def leaf() -> None:
        await asyncio.sleep(0)

    async def parent() -> None:
        await asyncio.gather(leaf(), leaf())

    async def code() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(parent())
            group.create_task(leaf())

    await start_task(loop, code(), branch=Branch(owner), name="run")
    assert sorted(owner.paths) == ["", "0", "0.0", "0.1", "1"]


async def test_the_factory_leaves_tasks_of_others_alone_and_asks_the_loops_own() -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    made: list[Any] = []

    def own_factory(loop: Any, coroutine: Any, **kwargs: Any) -> Any:
        made.append(kwargs)
        return asyncio.Task(coroutine, loop=loop, **kwargs)

    loop.set_task_factory(own_factory)
    try:
        install_task_factory(loop)
        install_task_factory(loop)
        assert await loop.create_task(asyncio.sleep(0, "done"), name="mine") == "done"
        assert [kwargs.get("name", "mine") for kwargs in made] == ["mine"]
    finally:
        loop.set_task_factory(before)


async def test_what_unwinds_reaches_user_code_as_a_value_or_as_a_cancellation(sqlite_url: str) -> None:
    app, seen = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        async def sibling() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("sibling cancelled")
                raise

        async def grouped() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(step.wait_for_signal("in group", signal="never", timeout="1d"))
                group.create_task(sibling())

        waiting = asyncio.create_task(step.wait_for_signal("waited", signal="also never", timeout="1d"))
        done, _ = await asyncio.wait([waiting, asyncio.create_task(grouped())])
        seen.extend(sorted(type(task.exception()).__name__ for task in done))
        return "not the end"

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(f)
        await h.idle()
        assert await run.status() is RunStatus.WAITING
        assert seen == ["sibling cancelled", "BaseExceptionGroup", "Suspend"]


async def test_a_users_table_may_have_the_name_of_one_of_ours() -> None:
    """The tables have a registry of their own: on the shared one this class statement fails."""
    from sqlmodel import Field, SQLModel

    import agentflow.store.rows  # noqa: F401  (ours come first)

    class EventRow(SQLModel, table=True):
        __tablename__ = "event"
        id: int | None = Field(default=None, primary_key=True)

    class Event(SQLModel, table=True):
        __tablename__ = "their_event"
        id: int | None = Field(default=None, primary_key=True)

    assert {"event", "their_event"} <= set(SQLModel.metadata.tables)
    assert not any(name.startswith("agentflow_") for name in SQLModel.metadata.tables)
