"""Cancelling against finishing, retrying and resuming: whichever comes first, a run ends once and all of it agrees.

Each round is a run of its own, cancelled at a random instant (or not), under some flow control or none, as the child of
another run or not, while its function is perhaps paused and resumed. In full 10,000 rounds on each database.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import BaseModel

from agentflow.app import App
from agentflow.context import Context
from agentflow.errors import NoWaiter, RetryAfter, RunCancelled, RunFailed, RunSkipped, StepError
from agentflow.flow import Concurrency, Singleton, Throttle
from agentflow.info import step_info
from agentflow.runs import Run, RunStatus
from agentflow.settings import Settings
from agentflow.step import Step
from agentflow.testing import Harness, harness
from tests.faults.reporting import Report
from tests.faults.support import FIRST_SEED, IS_FULL, SECONDS, read_rows

ROUNDS = 10_000 if IS_FULL else 50
AT_ONCE = 25

ENDS = ["finishes", "fails", "retries", "retries after", "stumbles", "sleeps", "waits", "waits in vain"]
FUNCTIONS: dict[str, dict[str, Any]] = {
    "free": {},
    "limited": {"concurrency": 3},
    "keyed": {"concurrency": [Concurrency(1, key="data.key"), Concurrency(4, scope="app")]},
    "throttled": {"throttle": Throttle(limit=60, period="1m", burst=4)},
    "skipping": {"singleton": Singleton("data.key")},
    "replacing": {"singleton": Singleton("data.key", mode="cancel")},
}


class Plan(BaseModel):
    """What a run does, and on which key of flow control."""

    n: int
    function: str
    end: str
    key: int


@dataclass
class Round:
    """One run, and what was done to it from outside."""

    plan: Plan
    is_child: bool
    run_id: str = ""
    was_cancelled: list[RunStatus] = field(default_factory=list)


def make_app() -> App:
    app = App("t", settings=Settings(durability="process"))

    async def work(end: str) -> str:
        await asyncio.sleep(random.choice([0, 0.001, 0.03]))
        if end == "fails" or (end == "retries" and step_info().attempt == 0):
            raise ValueError(end)
        if end == "retries after" and step_info().attempt == 0:
            raise RetryAfter("30s")
        return end

    async def act(ctx: Context[Plan], step: Step) -> list[Any]:
        plan = ctx.data
        got: list[Any] = [await step.run("first", work, plan.end, retry=1)]
        if plan.end == "stumbles" and ctx.attempt == 0:
            raise RuntimeError("stumbled")
        if plan.end == "sleeps":
            await step.sleep("nap", 30)
        if plan.end.startswith("waits"):
            signal = await step.wait_for_signal("wait", signal=f"go {plan.n}", timeout="2m")
            got.append(signal and signal.data)
        got.append(await step.run("last", work, "done"))
        return got

    for name, config in FUNCTIONS.items():
        app.function(id=name, retries=1, **config)(act)

    @app.function(retries=0)
    async def parent(ctx: Context[Plan], step: Step) -> Any:
        try:
            return await step.invoke("child", ctx.data.function, data=ctx.data)
        except StepError as error:
            return error.name

    return app


async def disturb(h: Harness, round: Round, rng: random.Random) -> None:
    """Start the run; send its signal; cancel it or not: at instants that fall anywhere in its life."""
    plan = round.plan
    run = await h.start("parent" if round.is_child else plan.function, plan)
    round.run_id = run.id

    async def cancel() -> None:
        target = run.id
        await pause(rng)
        if round.is_child and rng.random() < 0.5:
            children = await read_children(h, run.id)
            target = children[0].id if children else target
        found = await h.app.runs.cancel(target, "enough")
        if target == run.id:
            round.was_cancelled.append(found.status)

    async def signal() -> None:
        for _ in range(20):
            await pause(rng)
            try:
                await h.signal(f"go {plan.n}", plan.n)
            except NoWaiter:
                continue
            return

    acts = [signal()] if plan.end == "waits" else []
    acts += [cancel() for _ in range(rng.choice([0, 0, 1, 1, 2]))]
    await asyncio.gather(*acts)


async def pause(rng: random.Random) -> None:
    if rng.random() < 0.4:
        for _ in range(rng.randint(0, 30)):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(rng.choice([0.001, 0.005, 0.02, 0.05]) * rng.random())


async def read_children(h: Harness, run_id: str) -> list[Run]:
    page = await h.app.runs.list(limit=100)
    return [run for run in page.data if run.parent_id == run_id]


async def pass_time(h: Harness, rng: random.Random) -> None:
    for _ in range(3):
        await h.advance(rng.choice(["1s", "15s", "30s", "31s"]))
        await pause(rng)


async def hold_up(h: Harness, rng: random.Random) -> None:
    name = rng.choice(list(FUNCTIONS))
    await pause(rng)
    await h.app.functions.pause(name)
    await pause(rng)
    await h.app.functions.resume(name)


async def do_rounds(h: Harness, url: str, rounds: list[Round], rng: random.Random) -> None:
    watch = asyncio.create_task(watch_for_the_impossible(url))
    try:
        async with asyncio.TaskGroup() as group:
            for round in rounds:
                group.create_task(disturb(h, round, rng))
            group.create_task(pass_time(h, rng))
            group.create_task(hold_up(h, rng))
    finally:
        watch.cancel()
        [broken] = await asyncio.gather(watch, return_exceptions=True)
    if not isinstance(broken, asyncio.CancelledError):
        raise broken
    for _ in range(100):
        await h.advance("1m")
        statuses = [await h.app.runs.handle(round.run_id).status() for round in rounds]
        if all(status.is_final for status in statuses):
            return
    raise AssertionError(f"runs that do not end: {Counter(statuses)}")


async def check(h: Harness, round: Round) -> RunStatus:
    found = await h.app.runs.get(round.run_id)
    story = f"{round}: {found}"
    for status in round.was_cancelled:
        assert status in (RunStatus.RUNNING, found.status), f"the end has changed: {story}"
    if found.status is RunStatus.CANCELLED and round.plan.function != "replacing":
        assert round.was_cancelled, story
    if not round.is_child:
        await check_run(h, found, round.plan)
        return found.status
    children = await read_children(h, found.id)
    steps = (await h.app.runs.steps(found.id)).data
    if not children:
        assert found.status is RunStatus.CANCELLED, story
        assert not steps, story
        return found.status
    [child] = [await h.app.runs.get(run.id) for run in children]
    await check_run(h, child, round.plan)
    if found.status is RunStatus.CANCELLED:
        assert len(steps) <= 1, story
    else:
        assert found.status is RunStatus.COMPLETED, story
        # One outcome, which is that of the child.
        [step] = steps
        assert (step.key, step.kind) == ("child", "invoke"), story
        assert (step.status == "completed") == (child.status is RunStatus.COMPLETED), f"{story} {child}"
        if child.status is RunStatus.COMPLETED:
            assert found.output == step.output == child.output
        elif child.status is RunStatus.FAILED:
            assert child.error is not None
            assert found.output == child.error.name, story
        else:
            assert found.output == f"Run{child.status.capitalize()}", story
    await check_result(h, found)
    return found.status


async def check_run(h: Harness, run: Run, plan: Plan) -> None:
    """The status fits the history, and what is told of the run fits both."""
    steps = {step.key: step for step in (await h.app.runs.steps(run.id)).data}
    story = f"{plan} {run} {steps}"
    assert run.ended_at is not None, story
    assert not run.waiting, story
    assert set(steps) <= {"first", "nap", "wait", "last"}, story
    assert all(step.ended_at is None or step.ended_at <= run.ended_at for step in steps.values()), story
    match run.status:
        case RunStatus.COMPLETED:
            assert run.error is None, story
            middle = {"sleeps": ["nap"], "waits": ["wait"], "waits in vain": ["wait"]}.get(plan.end, [])
            assert [key for key in steps if steps[key].status == "completed"] == ["first", *middle, "last"]
            assert len({step.seq for step in steps.values()} - {None}) == len(steps), story
            told = [] if middle != ["wait"] else [plan.n if plan.end == "waits" else None]
            if plan.end == "waits" and run.output[1] is None:
                told = [None]  # its time was over first
            assert run.output == [plan.end, *told, "done"], story
        case RunStatus.FAILED:
            assert (run.output, plan.end) == (None, "fails"), story
            assert run.error is not None, story
            assert run.error.name == "ValueError", story
            assert [(step.key, step.status) for step in steps.values()] == [("first", "failed")], story
        case RunStatus.CANCELLED:
            assert (run.output, run.error) == (None, None), story
            assert run.reason == "enough" or (run.reason or "").startswith("singleton: "), story
            assert "last" not in steps or steps["last"].status == "completed", story
        case RunStatus.SKIPPED:
            assert (plan.function, steps, run.started_at) == ("skipping", {}, None), story
        case _:
            raise AssertionError(f"it has not ended: {story}")
    await check_result(h, run)


async def check_result(h: Harness, run: Run) -> None:
    handle = h.app.runs.handle(run.id)
    match run.status:
        case RunStatus.COMPLETED:
            assert await handle.result(5) == run.output
        case RunStatus.FAILED:
            with pytest.raises(RunFailed) as failed:
                await handle.result(5)
            assert failed.value.error == run.error
        case RunStatus.CANCELLED:
            with pytest.raises(RunCancelled) as cancelled:
                await handle.result(5)
            assert cancelled.value.reason == run.reason
        case _:
            with pytest.raises(RunSkipped):
                await handle.result(5)


LEFT_OVER = {
    "runs that have not ended": "agentflow_run WHERE status < 4",
    "waits": "agentflow_wait",
    "slots": "agentflow_slot",
    "runs in a lane": "agentflow_run WHERE blocked_on IS NOT NULL",
    "runs with an error that have not failed": "agentflow_run r JOIN agentflow_run_io i ON i.run_id = r.id "
    "WHERE (i.error IS NOT NULL) <> (r.status = 5) OR (i.output IS NOT NULL) <> (r.status = 4)",
}


IMPOSSIBLE = {
    "a wait of a run that has ended": "agentflow_wait w JOIN agentflow_run r ON r.id = w.run_id WHERE r.status >= 4",
    "a slot of a run that does not run": "agentflow_slot s JOIN agentflow_run r ON r.id = s.run_id "
    "WHERE r.status <> 1",
    "a worker's run that does not run": "agentflow_run WHERE (status = 1) <> (owner IS NOT NULL)",
    "an ended run in a lane": "agentflow_run WHERE status >= 4 AND blocked_on IS NOT NULL",
    "a run that has ended and has no time of it": "agentflow_run WHERE (status >= 4) <> (ended_at IS NOT NULL)",
}


async def watch_for_the_impossible(url: str) -> None:
    """At no instant is there a run in a state that cannot be: what is looked after later would hide it at the end."""
    counts = ", ".join(f"(SELECT count(*) FROM {where})" for where in IMPOSSIBLE.values())
    while True:
        [found] = await read_rows(url, f"SELECT {counts}")
        assert not any(found), dict(zip(IMPOSSIBLE, found, strict=True))
        await asyncio.sleep(0.002)


async def check_nothing_left(url: str) -> None:
    for what, where in LEFT_OVER.items():
        assert await read_rows(url, f"SELECT count(*) FROM {where}") == [(0,)], f"{what} are left"


@pytest.mark.fault(9)
@pytest.mark.timeout(SECONDS)
async def test_cancelled_at_any_instant_a_run_ends_in_one_way_and_leaves_nothing(
    database_url: str, report: Report
) -> None:
    app, ends, began = make_app(), Counter[RunStatus](), time.perf_counter()
    async with harness(app, database_url=database_url) as h:
        for first in range(0, ROUNDS, AT_ONCE):
            seed = FIRST_SEED + first
            rng = random.Random(seed)
            rounds = [
                Round(
                    Plan(
                        n=n, function=rng.choice(list(FUNCTIONS)), end=rng.choice(ENDS), key=rng.randrange(4)
                    ),
                    is_child=rng.random() < 0.3,
                )
                for n in range(first, first + AT_ONCE)
            ]
            try:
                await do_rounds(h, database_url, rounds, rng)
                for round in rounds:
                    ends[await check(h, round)] += 1
                await check_nothing_left(database_url)
            except BaseException as error:
                error.add_note(f"in the rounds of seed {seed}")
                raise
    assert ends.total() == ROUNDS
    assert min(ends[RunStatus.COMPLETED], ends[RunStatus.CANCELLED]) > ROUNDS // 10, "it is no race"
    if IS_FULL:
        assert set(ends) == {RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.SKIPPED}
    told = ", ".join(f"{count} {status}" for status, count in sorted(ends.items()))
    report(
        f"{ROUNDS:,} rounds in {time.perf_counter() - began:.0f} s: {told}; none in a state that cannot be"
    )
