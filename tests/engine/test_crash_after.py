"""`crash_after`: wherever the worker dies, the run ends as if it had not, and what is committed is not done twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from agentflow import App, Context, Settings, Step
from agentflow.errors import ConfigurationError
from agentflow.runs import RunStatus
from agentflow.testing import CRASH_POINTS, Harness, ScriptedModel, crash_after, harness
from agentflow.testing.crashes import NotCrashed


class Flow:
    """Steps of every sort, with a count of how often each body ran."""

    def __init__(self) -> None:
        self.bodies: Counter[str] = Counter()
        self.is_told = False
        self.model = ScriptedModel([lambda _: "told"] * 2)
        # A short lease, for the point that is passed by real time.
        self.app = App("t", settings=Settings(lease_seconds=1))

        async def body(name: str) -> str:
            self.bodies[name] += 1
            return name

        def in_thread(name: str) -> str:
            self.bodies[name] += 1
            return name

        @self.app.function
        async def flow(ctx: Context[None], step: Step) -> str:
            one = await step.run("one", body, "one")
            two, three = await asyncio.gather(
                step.run("two", in_thread, "two"), step.run("three", body, "three")
            )
            await step.sleep("nap", "1h")
            answer = await step.ai.infer("model", model=self.model, messages="Well?")
            signal = await step.wait_for_signal("signal", signal="go", timeout="2d")
            four = await step.run("four", body, "four")
            return f"{one} {two} {three} {answer.text} {signal.data if signal else None} {four}"

        self.function = flow


async def take_to_the_end(h: Harness, flow: Flow) -> None:
    await h.advance("1h")
    if not flow.is_told:
        flow.is_told = True
        await h.signal("go", "yes", buffer="1d")
    await h.idle()


STEPS = ("one", "two", "three", "four")
# How often at least. Notices are gathered, so on PostgreSQL one may be all.
PASSED_ONCE = ("before_request", "after_request", "before_finish", "after_finish", "before_notify")
PASSED_TWICE = (
    "before_claim",
    "after_claim",
    "after_start",
    "before_suspend",
    "after_suspend",
    "before_heartbeat",
)
PASSES = [
    (point, n)
    for point in CRASH_POINTS
    for n in (1, 2, 4, 7)
    if n <= (1 if point in PASSED_ONCE else 2 if point in PASSED_TWICE else 7)
]


@pytest.mark.fault(2)
@pytest.mark.parametrize(("point", "n"), PASSES)
async def test_wherever_the_worker_dies_the_run_ends_the_same_and_no_committed_body_runs_again(
    database_url: str, point: str, n: int
) -> None:
    flow = Flow()
    async with harness(flow.app, database_url=database_url) as h:
        with crash_after(point, n) as crash:
            run = await h.start(flow.function)
            await h.idle()
            await take_to_the_end(h, flow)
            await crash.happened()
        steps = (await flow.app.runs.steps(run.id)).data
        committed = {step.key for step in steps if step.status == "completed"} & set(STEPS)
        ran_before = flow.bodies.copy()
        await h.restart()
        await take_to_the_end(h, flow)
        assert await run.result(20) == "one two three told yes four"
        usage = await flow.app.usage(run=run.id)
    assert {key: flow.bodies[key] for key in committed} == {key: ran_before[key] for key in committed}
    assert {key: flow.bodies[key] in (1, 2) for key in STEPS} == dict.fromkeys(STEPS, True)
    asked_again = 1 if point == "after_request" else 0
    if point.endswith("_request"):
        # A process that dies before the request has not sent it; one that dies after it has paid.
        assert len(flow.model.requests) == 1 + asked_again
        assert (usage.calls, usage.billed, usage.possibly_billed) == (2, 1, 1)


async def test_nothing_is_written_from_the_instant_of_the_crash_on(database_url: str) -> None:
    flow = Flow()
    async with harness(flow.app, database_url=database_url) as h:
        # The second commit that the start leads to here is that of the first step, or one before it.
        with crash_after("before_commit", 3):
            run = await h.start(flow.function)
            await h.idle()
        steps = [step.key for step in (await flow.app.runs.steps(run.id)).data]
        await h.advance("3d")
        assert [step.key for step in (await flow.app.runs.steps(run.id)).data] == steps
        assert await run.status() not in (RunStatus.COMPLETED, RunStatus.FAILED)
        await h.restart()
        await take_to_the_end(h, flow)
        assert await run.result(20) == "one two three told yes four"


async def test_a_body_in_flight_is_cancelled_and_runs_once_more(database_url: str) -> None:
    app, told, is_armed, has_begun = App("t"), [], asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        told.append("begun")
        has_begun.set()
        if len(told) == 1:
            await is_armed.wait()
            await h.signal("elsewhere", buffer="1h")  # a commit, while the body is under way
            await asyncio.Event().wait()
        told.append("ended")
        return "done"

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        return await step.run("slow", slow)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await has_begun.wait()  # else it may be the commit of the claim
        with crash_after("after_commit"):
            is_armed.set()
            await h.idle()
        await h.restart()
        await h.idle()
        assert await run.result(5) == "done"
    assert told == ["begun", "begun", "ended"]


async def test_one_crash_after_the_other(database_url: str) -> None:
    flow = Flow()
    async with harness(flow.app, database_url=database_url) as h:
        run = None
        for point in ("before_acknowledge", "before_suspend", "before_finish"):
            with crash_after(point):
                run = run or await h.start(flow.function)
                await take_to_the_end(h, flow)
            await h.restart()
        assert run is not None
        await take_to_the_end(h, flow)
        assert await run.result(20) == "one two three told yes four"
    assert all(1 <= count <= 3 for count in flow.bodies.values())


@pytest.mark.parametrize("point", ["before_commit", "after_commit", "before_claim", "before_acknowledge"])
async def test_a_worker_that_dies_while_it_starts_leaves_nothing_behind(
    database_url: str, point: str
) -> None:
    flow = Flow()
    async with harness(flow.app, database_url=database_url) as h:
        await h.crash()
        run = await h.start(flow.function)
        with crash_after(point) as crash:
            await h.restart()
            await crash.happened()
        await h.idle()
        await h.restart()
        await h.idle()
        await take_to_the_end(h, flow)
        assert await run.result(20) == "one two three told yes four"


async def start_one(h: Harness, flow: Flow, point: str, n: int = 1) -> None:
    with crash_after(point, n):
        await h.start(flow.function)
        await h.idle()


async def test_a_point_that_is_never_passed_is_told(sqlite_url: str) -> None:
    flow = Flow()
    async with harness(flow.app, database_url=sqlite_url) as h:
        with pytest.raises(NotCrashed, match=r"'before_finish', n=1.* the point was passed 0 times"):
            await start_one(h, flow, "before_finish")
        with pytest.raises(NotCrashed, match=r"n=3.* was passed 1 times"):
            await start_one(h, flow, "before_suspend", 3)
        with pytest.raises(NotCrashed, match="Settings"):
            await start_one(h, flow, "before_heartbeat", 99)
        await h.crash()
        with pytest.raises(NotCrashed, match="there was none when the point was passed"):
            await start_one(h, flow, "after_commit")
        # What goes wrong inside is told first, and the point is disarmed all the same.
        with pytest.raises(KeyError), crash_after("before_finish"):
            raise KeyError
        await h.restart()
        await h.idle()


async def test_what_cannot_be_armed_is_a_configuration_error(sqlite_url: str) -> None:
    flow = Flow()
    told = r"open a harness first.*AGENTFLOW_CRASH_AT=after_commit:2"
    with pytest.raises(ConfigurationError, match=told), crash_after("after_commit", n=2):
        pass
    async with harness(flow.app, database_url=sqlite_url) as h:
        with pytest.raises(ConfigurationError, match="there is no crash point 'after_lunch'"):
            await start_one(h, flow, "after_lunch")
        with pytest.raises(ConfigurationError, match="the first pass is 1"):
            await start_one(h, flow, "after_commit", 0)
        with (
            pytest.raises(ConfigurationError, match="another crash point is armed"),
            crash_after("before_finish"),
        ):
            await start_one(h, flow, "after_commit")
        await h.idle()


async def test_a_crash_that_has_happened_cannot_happen_again(database_url: str) -> None:
    flow = Flow()
    async with harness(flow.app, database_url=database_url) as h:
        with crash_after("after_commit") as crash:
            await h.start(flow.function)
            await crash.happened()
            with pytest.raises(ConfigurationError, match="crashed already"):
                await h.crash()
        assert crash.has_happened


def test_the_fixture_is_the_context_manager(crash_after: Any) -> None:
    from agentflow.testing import crash_after as of_the_module

    assert crash_after is of_the_module
