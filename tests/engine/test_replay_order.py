"""Strict replay says where the code no longer calls what it called, and is silent about code that does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentflow import App, Context, RunStatus, Step, step_info
from agentflow.errors import RunFailed, StepError
from agentflow.testing import harness

Code = Callable[[Step], Awaitable[Any]]


class Deployed:
    """An app whose one function has the code that is deployed now."""

    def __init__(self, code: Code) -> None:
        self.app = App("replay")
        self.code = code
        self.entered = 0
        self.done: list[str] = []

        @self.app.function(retries=1)
        async def flow(ctx: Context[None], step: Step) -> Any:
            self.entered += 1
            assert ctx.attempt == 0, "a mismatch uses no attempts"
            return await self.code(step)

        self.flow = flow

    async def work(self, name: str, seconds: float = 0) -> str:
        await asyncio.sleep(seconds)
        self.done.append(name)
        return name


async def _old(step: Step) -> str:
    await step.run("a", _name, "a")
    await step.run("b", _name, "b")
    signal = await step.wait_for_signal("go", signal="go", timeout="1h")
    return "old" if signal else "nobody"


async def _removed(step: Step) -> str:
    await step.run("b", _name, "b")
    await step.wait_for_signal("go", signal="go", timeout="1h")
    return "removed"


async def _renamed(step: Step) -> str:
    await step.run("a2", _name, "a2")
    await step.run("b", _name, "b")
    await step.wait_for_signal("go", signal="go", timeout="1h")
    return "renamed"


async def _added(step: Step) -> str:
    await step.run("a", _name, "a")
    await step.sleep("new", "1s")
    await step.run("b", _name, "b")
    await step.wait_for_signal("go", signal="go", timeout="1h")
    return "added"


async def _moved(step: Step) -> str:
    b = await step.run("b", _name, "other")
    a = await step.run("a", _name, "other")
    await step.wait_for_signal("go", signal="go", timeout="1h")
    return a + b


async def _without_the_last(step: Step) -> str:
    await step.run("a", _name, "a")
    await step.wait_for_signal("go", signal="go", timeout="1h")
    return "without b"


async def _without_any(step: Step) -> str:
    return "nothing"


async def _name(name: str) -> str:
    return name


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (_removed, "awaits step 'b' and has not called step 'a'"),
        (_renamed, "awaits step 'a2' and has not called step 'a'"),
        (_added, "awaits step 'new' and has not called step 'b'"),
        (_moved, "awaits step 'b' and has not called step 'a'"),
        (_without_the_last, "awaits step 'go' and has not called step 'b'"),
        (_without_any, "returned without calling step 'a'"),
    ],
)
async def test_another_order_of_calls_is_named_and_a_fixed_deploy_heals_the_run(
    database_url: str, new: Code, says: str
) -> None:
    deployed = Deployed(_old)
    async with harness(deployed.app, database_url=database_url) as h:
        run = await h.start(deployed.flow)
        await h.idle()
        deployed.code = new
        await h.signal("go")
        await h.idle()
        stuck = await deployed.app.runs.get(run.id)
        assert (stuck.status, stuck.error) == (RunStatus.SLEEPING, None)
        assert stuck.reason is not None
        assert stuck.reason.startswith("ReplayMismatch: ")
        assert says in stuck.reason
        deployed.code = _old
        await h.advance("10s")
        assert await run.result(5) == "old"


@pytest.mark.parametrize(
    ("new", "result"),
    [
        (_removed, "removed"),
        (_renamed, "renamed"),
        (_added, "added"),
        (_moved, "ab"),
        (_without_any, "nothing"),
    ],
)
async def test_without_strict_replay_added_steps_run_removed_are_ignored_and_moved_ones_resolve(
    database_url: str, new: Code, result: str
) -> None:
    deployed = Deployed(_old)
    async with harness(deployed.app, database_url=database_url, strict_replay=False) as h:
        run = await h.start(deployed.flow)
        await h.idle()
        deployed.code = new
        await h.signal("go")
        await h.advance("1s")
        assert await run.result(5) == result


async def test_the_pauses_of_a_mismatch_grow(sqlite_url: str) -> None:
    deployed = Deployed(_old)
    async with harness(deployed.app, database_url=sqlite_url) as h:
        await h.start(deployed.flow)
        await h.idle()
        deployed.code = _removed
        await h.signal("go")
        entered = []
        for _ in range(4):
            await h.advance("40s")
            entered.append(deployed.entered)
    # At 0, 10, 20 and 40 s, then at 80 and 160.
    assert entered == [5, 6, 6, 7]


async def _of_all_kinds(deployed: Deployed, step: Step) -> list[Any]:
    """Correct code whose outcomes come in another order than its calls."""

    async def flaky() -> str:
        if step_info().attempt == 0:
            raise OSError("the first time")
        return "flaky"

    async def branch(name: str) -> str:
        first = await step.run("first", deployed.work, f"{name}-1", 0.02 if name == "x" else 0)
        return first + await step.run("second", deployed.work, f"{name}-2")

    together = await asyncio.gather(
        step.run("slow", deployed.work, "slow", 0.03),
        step.run("fast", deployed.work, "fast"),
        step.sleep("nap", "1s"),
    )
    later = asyncio.create_task(step.run("later", deployed.work, "later", 0.05))
    await asyncio.sleep(0.01)
    together.append(await step.run("meanwhile", deployed.work, "meanwhile"))
    together.append(await later)
    together += await asyncio.gather(branch("x"), branch("y"))
    together.append(await step.run("flaky", flaky))
    try:
        await step.run("fails", _fail, retry=0)
    except StepError as error:
        together.append(error.message)
    tasks = [
        asyncio.create_task(step.run("winner", deployed.work, "winner")),
        asyncio.create_task(step.run("loser", deployed.work, "loser", 30)),
    ]
    done, (loser,) = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    loser.cancel()
    together += [task.result() for task in done]
    try:
        async with asyncio.timeout(0.02):
            await step.run("too slow", deployed.work, "too slow", 30)
    except TimeoutError:
        together.append(await step.run("instead", deployed.work, "instead"))
    await step.sleep("last", "1s")
    return together


async def _fail() -> None:
    raise ValueError("no")


EXPECTED = [
    *(
        "slow",
        "fast",
        None,
        "meanwhile",
        "later",
        "x-1x-2",
        "y-1y-2",
        "flaky",
        "no",
        "winner",
        "instead",
    ),
]


@pytest.mark.parametrize("replay_every_step", [False, True])
async def test_code_that_does_the_same_again_is_never_taken_for_another(
    database_url: str, replay_every_step: bool
) -> None:
    async def code(step: Step) -> list[Any]:
        return await _of_all_kinds(deployed, step)

    deployed = Deployed(code)
    async with harness(deployed.app, database_url=database_url, replay_every_step=replay_every_step) as h:
        run = await h.start(deployed.flow)
        for _ in range(4):
            await h.advance("2s")
        assert (await deployed.app.runs.get(run.id)).reason is None
        assert await run.result(5) == EXPECTED
        assert sorted(deployed.done) == sorted(set(deployed.done)), "a body ran twice"


async def test_a_cancelled_await_that_succeeds_the_next_time_is_no_mismatch(database_url: str) -> None:
    async def code(step: Step) -> str:
        try:
            async with asyncio.timeout(0.05):
                await step.wait_for_signal("first", signal="first", timeout="1h")
            way = "in time"
        except TimeoutError:
            way = await step.run("too late", _name, "too late")
        await step.wait_for_signal("second", signal="second", timeout="1h")
        await step.sleep("end", "1s")
        return way

    deployed = Deployed(code)
    async with harness(deployed.app, database_url=database_url) as h:
        run = await h.start(deployed.flow)
        await h.idle()
        assert [record.key for record in (await deployed.app.runs.steps(run.id)).data] == [
            "too late",
            "second",
        ]
        await h.signal("first", buffer="1h")
        await h.signal("second")
        await h.advance("2s")
        assert await run.result(5) == "in time"


async def test_with_replay_every_step_the_code_runs_from_the_top_after_each(database_url: str) -> None:
    async def code(step: Step) -> list[str]:
        return [await step.run("work", deployed.work, str(n)) for n in range(3)]

    deployed = Deployed(code)
    async with harness(deployed.app, database_url=database_url, replay_every_step=True) as h:
        run = await h.start(deployed.flow)
        await h.idle()
        assert await run.result(5) == ["0", "1", "2"]
    assert (deployed.entered, deployed.done) == (4, ["0", "1", "2"])


async def test_with_replay_every_step_code_that_is_not_deterministic_fails(database_url: str) -> None:
    async def code(step: Step) -> None:
        await step.run(f"at {deployed.entered}", _name, "x")
        await step.run("next", _name, "y")

    deployed = Deployed(code)
    async with harness(deployed.app, database_url=database_url, replay_every_step=True) as h:
        run = await h.start(deployed.flow)
        await h.idle()
        with pytest.raises(RunFailed) as failed:
            await run.result(5)
        assert failed.value.error.name == "ReplayMismatch"
        reason = (await deployed.app.runs.get(run.id)).reason
    assert reason is not None
    assert "awaits step 'at 2' and has not called step 'at 1'" in reason
