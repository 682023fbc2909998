"""`step.race`: the first branch to succeed wins, for ever; of the others nothing is left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel

from agentflow import (
    Agent,
    App,
    Approve,
    Context,
    RunHandle,
    RunStatus,
    Settings,
    Step,
    StepRecord,
    ToolCall,
    tool,
)
from agentflow.engine import races
from agentflow.errors import ApprovalExpired, NoWaiter, RunFailed, SignalConflict, StepError, Unserialisable
from agentflow.testing import Harness, harness

Code = Callable[[Step], Awaitable[Any]]


class Racing:
    """An app whose one function runs what it is given, and counts its bodies."""

    def __init__(self, code: Code, *, retries: int = 0, settings: Settings | None = None) -> None:
        self.app = App("racing", settings=settings)
        self.done: list[str] = []
        self.entered = 0

        @self.app.function(retries=retries)
        async def flow(ctx: Context[None], step: Step) -> Any:
            self.entered += 1
            return await code(step)

        self.flow = flow

    async def work(self, name: str) -> str:
        self.done.append(name)
        return name

    async def steps(self, run: RunHandle[Any]) -> dict[str, StepRecord]:
        return {record.key: record for record in (await self.app.runs.steps(run.id)).data}


async def signal_of(name: str, step: Step) -> Any:
    signal = await step.wait_for_signal("wait", signal=name, timeout="30d")
    return signal and signal.data


async def nap(duration: str, step: Step) -> str:
    await step.sleep("nap", duration)
    return "too late"


async def rest(h: Harness, run: RunHandle[Any]) -> None:
    """Until the run waits or has ended; between two replays it is neither here nor there."""
    await h.idle()
    while await run.status() in (RunStatus.QUEUED, RunStatus.RUNNING):
        await h.idle()


async def end(h: Harness, run: RunHandle[Any]) -> Any:
    """Let time pass until the run has ended; its result."""
    for _ in range(20):
        await rest(h, run)
        if (await run.status()).is_final:
            break
        await h.advance("1m")
    return await run.result(5)


# --------------------------------------------------------------------------------- the winner and its value


async def test_the_first_branch_to_succeed_wins_and_the_race_is_one_step_of_its_kind(
    database_url: str,
) -> None:
    async def code(step: Step) -> Any:
        async def fast(step: Step) -> str:
            return await step.run("work", racing.work, "fast")

        return await step.race("who", slow=partial(nap, "1h"), fast=fast)

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        assert await run.result(5) == ["fast", "fast"]
        steps = await racing.steps(run)
    assert set(steps) == {"who", "who@fast/work"}
    who = steps["who"]
    assert (who.kind, who.name, who.status) == ("race", "fast", "completed")
    assert who.output == {"name": "fast", "value": "fast"}


class Price(BaseModel):
    amount: Decimal
    at: datetime


@pytest.mark.parametrize("replay_every_step", [False, True])
async def test_the_value_is_the_json_round_trip_of_what_the_branch_returned(
    database_url: str, replay_every_step: bool
) -> None:
    seen: list[Any] = []

    async def code(step: Step) -> None:
        async def typed(step: Step) -> Price:
            return Price(amount=Decimal("1.50"), at=datetime(2026, 1, 1, tzinfo=UTC))

        async def pair(step: Step) -> tuple[int, str]:
            return 1, "a"

        async def plain(step: Step):  # type: ignore[no-untyped-def]
            return 1, {"a": (2, 3)}

        deep: Any = 0
        for _ in range(100):
            deep = [deep]

        async def nested(step: Step) -> Any:
            return deep

        seen[:] = [await step.race("r", only=branch) for branch in (typed, pair, plain, nested)]
        assert seen[3][1] == deep
        await step.sleep("end", "1s")

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url, replay_every_step=replay_every_step) as h:
        run = await h.start(racing.flow)
        await rest(h, run)
        first = list(seen)
        seen.clear()
        await end(h, run)
        assert seen == first
        assert (await racing.steps(run))["r:3"].error is None
    assert seen[0] == ("only", Price(amount=Decimal("1.50"), at=datetime(2026, 1, 1, tzinfo=UTC)))
    assert seen[1] == ("only", (1, "a"))
    assert seen[2] == ("only", [1, {"a": [2, 3]}])


async def test_a_value_that_json_does_not_have_is_unserialisable_on_replay_too(database_url: str) -> None:
    told: list[str] = []

    async def code(step: Step) -> None:
        async def bad(step: Step) -> Any:
            return {"a": {1, 2}}

        with pytest.raises(Unserialisable) as caught:
            await step.race("r", bad=bad, other=partial(nap, "1h"))
        told.append(str(caught.value))
        await step.sleep("end", "1s")

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.advance("1s")
        await run.result(5)
    assert len(told) == 2
    assert told[0] == told[1]
    assert "branch 'bad' of race 'r'" in told[0]


async def test_a_replay_never_enters_the_branches_again(database_url: str) -> None:
    entered: list[str] = []

    async def code(step: Step) -> Any:
        async def fast(step: Step) -> int:
            entered.append("fast")
            return 1

        async def slow(step: Step) -> None:
            entered.append("slow")
            await step.sleep("nap", "1h")

        won = await step.race("r", fast=fast, slow=slow)
        await step.sleep("end", "2h")
        return won

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.idle()
        await h.crash()
        await h.restart()
        await h.advance("2h")
        assert await run.result(5) == ["fast", 1]
        assert set(await racing.steps(run)) == {"r", "end"}
    assert racing.entered == 2
    assert entered.count("fast") == 1


async def test_a_decided_race_is_not_changed_by_what_the_losers_waited_for(database_url: str) -> None:
    async def code(step: Step) -> Any:
        won = await step.race(
            "r", a=partial(signal_of, "a"), b=partial(signal_of, "b"), late=partial(nap, "1h")
        )
        await step.wait_for_signal("end", signal="end", timeout="30d")
        return won

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.idle()
        await h.signal("b", 2)
        await h.idle()
        with pytest.raises(NoWaiter):
            await h.signal("a", 1)
        await h.advance("2h")
        await h.crash()
        await h.restart()
        await h.signal("end")
        await h.idle()
        assert await run.result(5) == ["b", 2]
        steps = await racing.steps(run)
    assert set(steps) == {"r", "r@b/wait", "end"}


async def test_tasks_made_after_a_race_have_the_same_keys_on_replay(database_url: str) -> None:
    async def code(step: Step) -> Any:
        async def branch(step: Step) -> int:
            return 1

        async def task(name: str) -> str:
            return await step.run("work", racing.work, name)

        await step.race("r", a=branch, b=branch)
        first = await asyncio.gather(task("x"), task("y"))
        await step.sleep("end", "1s")
        return first

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.advance("1s")
        assert await run.result(5) == ["x", "y"]
        assert set(await racing.steps(run)) == {"r", "work@0", "work@1", "end"}
    assert racing.done == ["x", "y"]


async def test_branches_that_use_the_same_ids_never_swap_results_nor_with_the_function_s_own(
    database_url: str,
) -> None:
    async def code(outer: Step) -> Any:
        async def branch(name: str, step: Step) -> list[str]:
            own = await step.run("load", racing.work, f"{name} own")
            # The function's Step inside a branch counts as the branch's.
            return [own, await outer.run("load", racing.work, f"{name} outer")]

        results: dict[str, Any] = {}

        async def keep(name: str, step: Step) -> None:
            results[name] = await branch(name, step)
            await step.sleep("nap", "1h" if name == "a" else "2h")

        before = await outer.run("load", racing.work, "function")
        await outer.race("r", a=partial(keep, "a"), b=partial(keep, "b"))
        return [before, results]

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.advance("1h")
        steps = await racing.steps(run)
        kept = {key: record.output for key, record in steps.items() if record.kind == "run"}
        assert (await run.result(5))[1] == {"a": ["a own", "a outer"], "b": ["b own", "b outer"]}
    assert kept == {
        "load": "function",
        "r@a/load": "a own",
        "r@a/load:1": "a outer",
        "r@b/load": "b own",
        "r@b/load:1": "b outer",
    }


# ----------------------------------------------------------------------------------------- what is withdrawn


async def child(ctx: Context[None], step: Step) -> str:
    await step.wait_for_event("w", event="for the child", timeout="30d")
    return "child"


@pytest.mark.parametrize("replay_every_step", [False, True])
async def test_what_the_losers_wait_for_is_withdrawn_in_the_database(
    database_url: str, replay_every_step: bool
) -> None:
    async def code(step: Step) -> Any:
        async def ask(step: Step) -> Any:
            return await step.approval("ask", title="May I?")

        async def event(step: Step) -> Any:
            return await step.wait_for_event("event", event="x", timeout="30d")

        async def invoke(step: Step) -> Any:
            return await step.invoke("child", waits)

        async def detached(step: Step) -> Any:
            await step.invoke("child", waits, detach=True)
            await step.sleep("nap", "30d")

        async def flaky(step: Step) -> Any:
            def fail() -> None:
                raise OSError("again")

            await step.run("fail", fail, retry=20)

        won = await step.race(
            "r",
            go=partial(signal_of, "go"),
            other=partial(signal_of, "other"),
            late=partial(nap, "30d"),
            ask=ask,
            event=event,
            invoke=invoke,
            detached=detached,
            flaky=flaky,
        )
        await step.wait_for_signal("end", signal="end", timeout="30d")
        return won

    racing = Racing(code)
    waits = racing.app.function("waits")(child)

    @racing.app.function
    async def takes_the_name(ctx: Context[None], step: Step) -> Any:
        return await signal_of("other", step)

    async with harness(racing.app, database_url=database_url, replay_every_step=replay_every_step) as h:
        run = await h.start(racing.flow)
        await rest(h, run)
        [request] = (await racing.app.approvals.list(status="pending")).data
        children = {found.id: found for found in (await racing.app.runs.list(function="waits")).data}
        assert len(children) == 2
        await h.signal("go", 1)
        await rest(h, run)
        found = await racing.app.runs.get(run.id)
        assert [(waiting.step_key, waiting.kind) for waiting in found.waiting] == [("end", "signal")]
        assert (await racing.app.approvals.get(request.id)).status == "cancelled"
        with pytest.raises(ApprovalExpired):
            await racing.app.approvals.decide(request.id, Approve(), by="ana")
        ended, going_on = sorted([await racing.app.runs.get(id) for id in children], key=lambda it: it.status)
        assert (ended.status, going_on.status) == (RunStatus.CANCELLED, RunStatus.WAITING)
        assert "race 'r' is decided" in (ended.reason or "")
        second = await h.start(takes_the_name)
        await rest(h, second)
        await h.signal("other", "free")
        assert await end(h, second) == "free"
        await h.signal("end")
        await rest(h, run)
        assert await run.result(5) == ["go", 1]


async def test_an_async_body_of_a_loser_is_cancelled_and_nothing_of_it_is_memoized(database_url: str) -> None:
    ended: list[str] = []

    async def code(step: Step) -> Any:
        running = asyncio.Event()

        async def body() -> None:
            running.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        async def stubborn_body() -> str:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append("swallowed")
            return "late"

        async def failing_body() -> str:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("failed")
                raise OSError("late")

        async def one(step: Step) -> Any:
            await step.run("body", body)

        async def two(step: Step) -> Any:
            await step.run("body", stubborn_body)

        async def three(step: Step) -> Any:
            await step.run("body", failing_body)

        async def winner(step: Step) -> Any:
            await running.wait()
            return await step.run("work", racing.work, "won")

        won = await step.race("r", one=one, two=two, three=three, winner=winner)
        assert sorted(ended) == ["cancelled", "failed", "swallowed"], (
            "they have ended before the race returns"
        )
        await step.sleep("end", "1s")
        return won

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.advance("1s")
        assert await run.result(5) == ["winner", "won"]
        assert set(await racing.steps(run)) == {"r", "r@winner/work", "end"}


async def test_a_sync_body_of_a_loser_is_let_run_and_dropped(database_url: str) -> None:
    released, done = threading.Event(), threading.Event()
    started = threading.Event()

    def body() -> str:
        started.set()
        released.wait(20)
        done.set()
        return "late"

    async def code(step: Step) -> Any:
        async def thread(step: Step) -> Any:
            return await step.run("body", body)

        async def winner(step: Step) -> str:
            await step.run("started", started.wait, 20)
            return "won"

        won = await step.race("r", thread=thread, winner=winner)
        assert not done.is_set()
        released.set()
        await step.run("ended", done.wait, 20)
        return won

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        assert await run.result(10) == ["winner", "won"]
        assert set(await racing.steps(run)) == {"r", "r@winner/started", "ended"}


async def test_clean_up_of_a_loser_runs_and_a_step_in_it_is_withdrawn(database_url: str) -> None:
    told: list[str] = []

    async def code(step: Step) -> Any:
        async def loser(step: Step) -> Any:
            try:
                await asyncio.gather(step.sleep("nap", "1h"), left_over(step))
            finally:
                told.append("finally")
                try:
                    await step.run("clean up", racing.work, "clean up")
                except asyncio.CancelledError:
                    told.append("withdrawn")

        async def left_over(step: Step) -> None:
            await step.sleep("other nap", "1h")

        async def winner(step: Step) -> int:
            asyncio.create_task(left_over(step))  # noqa: RUF006 - nobody waits for it, and it is withdrawn too
            await step.run("work", racing.work, "won")
            return 1

        won = await step.race("r", loser=loser, winner=winner)
        told.append("returned")
        return won

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        assert await run.result(5) == ["winner", 1]
        assert (await racing.app.runs.get(run.id)).status is RunStatus.COMPLETED
        assert set(await racing.steps(run)) == {"r", "r@winner/work"}
    assert told == ["finally", "withdrawn", "returned"]
    assert racing.done == ["won"]


async def test_the_step_of_a_branch_does_nothing_after_the_race(database_url: str) -> None:
    async def code(step: Step) -> Any:
        kept: list[Step] = []

        async def branch(step: Step) -> None:
            kept.append(step)

        await step.race("r", branch=branch)
        await kept[0].run("late", racing.work, "late")

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.idle()
        with pytest.raises(
            RunFailed, match=r"'r@branch/late' .* was called with the Step of a race's branch"
        ):
            await run.result(5)
    assert racing.done == []


# ------------------------------------------------------------------------------------- a signal against time


async def against_time(step: Step) -> Any:
    won = await step.race("r", answer=partial(signal_of, "go"), timeout=partial(nap, "1h"))
    await step.sleep("end", "1m")
    return won


@pytest.mark.parametrize("replay_every_step", [False, True])
@pytest.mark.parametrize("answers", [True, False])
async def test_a_race_between_a_signal_and_a_sleep_leaves_memory_and_is_decided_on_wake(
    database_url: str, answers: bool, replay_every_step: bool
) -> None:
    racing = Racing(against_time)
    async with harness(racing.app, database_url=database_url, replay_every_step=replay_every_step) as h:
        run = await h.start(racing.flow)
        await rest(h, run)
        assert await run.status() is RunStatus.WAITING
        await h.advance("59m")
        if answers:
            await h.signal("go", "yes")
        assert await end(h, run) == (["answer", "yes"] if answers else ["timeout", "too late"])
        with pytest.raises(NoWaiter):
            await h.signal("go", "again")


@pytest.mark.parametrize("first", ["signal", "sleep"])
async def test_of_two_that_came_while_no_worker_lived_the_first_wins(database_url: str, first: str) -> None:
    racing = Racing(against_time)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.idle()
        await h.crash()
        if first == "signal":
            await h.advance("59m")
            await h.signal("go", "yes")
            await h.advance("2m")
        else:
            await h.advance("61m")
            await h.signal("go", "yes")  # its wait is there still, but the sleep was over before
        await h.restart()
        await h.advance("1m")
        assert await run.result(5) == (["answer", "yes"] if first == "signal" else ["timeout", "too late"])


@pytest.mark.parametrize("order", ["ab", "ba"])
async def test_of_two_signals_that_came_while_no_worker_lived_the_first_wins(
    database_url: str, order: str
) -> None:
    async def code(step: Step) -> Any:
        won = await step.race("r", a=partial(signal_of, "a"), b=partial(signal_of, "b"))
        await step.sleep("end", "1m")
        return won

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.idle()
        await h.crash()
        for name in order:
            await h.signal(name, f"for {name}")
            await h.advance("1s")
        await h.restart()
        await h.advance("1m")
        assert await run.result(5) == [order[0], f"for {order[0]}"]


# --------------------------------------------------------------------------------------- branches that fail


def fail(error: Exception) -> None:
    raise error


async def test_a_branch_that_fails_does_not_end_the_race(database_url: str) -> None:
    async def code(step: Step) -> Any:
        async def at_once(step: Step) -> None:
            raise ValueError("at once")

        async def in_a_step(step: Step) -> None:
            await step.run("fail", fail, OSError("in a step"), retry=0)

        return await step.race("r", at_once=at_once, in_a_step=in_a_step, slow=partial(nap, "1h"))

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.advance("1h")
        assert await run.result(5) == ["slow", "too late"]


async def broken_step(step: Step) -> None:
    await step.run("fail", fail, OSError("in a step"), retry=0)


async def broken_code(step: Step) -> None:
    await step.run("work", int)
    raise LookupError("between steps")


async def conflict(step: Step) -> None:
    await step.wait_for_signal("taken", signal="taken", timeout="1d")


async def cancelled(step: Step) -> None:
    await step.run("work", int)
    raise asyncio.CancelledError


@pytest.mark.parametrize("replay_every_step", [False, True])
@pytest.mark.parametrize(
    ("last", "raised", "says"),
    [
        (broken_step, StepError, ("OSError", "in a step", "r@last/fail")),
        (broken_code, StepError, ("LookupError", "between steps", "r")),
        (cancelled, StepError, ("CancelledError", "branch 'last' was cancelled", "r")),
        (conflict, SignalConflict, None),
    ],
)
async def test_when_all_fail_the_last_error_is_raised_on_replay_too(
    database_url: str, last: Code, raised: type[Exception], says: Any, replay_every_step: bool
) -> None:
    told: list[Any] = []

    async def code(step: Step) -> None:
        async def first(step: Step) -> None:
            raise ValueError("the first")

        try:
            await step.race("r", first=first, last=last)
        except raised as error:
            told.append(
                (str(error), *(getattr(error, name, None) for name in ("name", "message", "step_id")))
            )
        await step.sleep("end", "1s")

    racing = Racing(code)

    @racing.app.function
    async def takes_it(ctx: Context[None], step: Step) -> None:
        await step.wait_for_signal("taken", signal="taken", timeout="30d")

    async with harness(racing.app, database_url=database_url, replay_every_step=replay_every_step) as h:
        await rest(h, await h.start(takes_it))
        run = await h.start(racing.flow)
        await end(h, run)
        failed = (await racing.steps(run))["r"]
    assert (failed.kind, failed.status) == ("race", "failed")
    assert len(told) == 2
    assert told[0] == told[1]
    assert says is None or told[0][1:] == says


async def test_an_uncaught_error_of_a_race_fails_the_run_without_another_attempt(database_url: str) -> None:
    async def code(step: Step) -> None:
        await step.race("r", only=broken_step)

    racing = Racing(code, retries=4)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.advance("1h")
        with pytest.raises(RunFailed) as failed:
            await run.result(5)
    error = failed.value.error
    assert (error.name, error.message, error.step_id) == ("OSError", "in a step", "r@only/fail")
    assert racing.entered == 1


async def nested_step(step: Step) -> None:
    async def body() -> None:
        with suppress(Exception):
            await step.run("inner", int)

    await step.run("outer", body)


async def too_long(step: Step) -> None:
    with suppress(Exception):
        await step.sleep("nap", "900d")


async def too_large(step: Step) -> str:
    return "x" * 5_000_000


async def too_many(step: Step) -> None:
    for _ in range(30):
        await step.run("work", int)


@pytest.mark.parametrize(
    ("branch", "name"),
    [
        (nested_step, "NestedStep"),
        (too_long, "LimitExceeded"),
        (too_large, "LimitExceeded"),
        (too_many, "LimitExceeded"),
    ],
)
async def test_what_fails_a_run_whatever_anybody_catches_fails_it_from_a_race_too(
    database_url: str, branch: Code, name: str
) -> None:
    async def code(step: Step) -> Any:
        try:
            return await step.race("r", bad=branch, good=partial(nap, "1h"))
        except BaseException:
            return "caught"

    racing = Racing(code, retries=4, settings=Settings(max_steps=20))
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.idle()
        with pytest.raises(RunFailed) as failed:
            await run.result(5)
    assert failed.value.error.name == name
    assert racing.entered == 1


async def test_a_race_inside_a_step_body_is_a_nested_step(database_url: str) -> None:
    async def code(step: Step) -> Any:
        async def body() -> None:
            await step.race("r", only=too_many)

        await step.run("outer", body)

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        with pytest.raises(
            RunFailed, match="NestedStep: step 'r' was called inside the body of step 'outer'"
        ):
            await run.result(5)


async def no_parameter() -> None: ...


async def two_parameters(step: Step, more: int) -> None: ...


@pytest.mark.parametrize(
    ("branches", "says"),
    [
        ({}, "race 'r' of run .* has no branches"),
        ({"a": 1}, "branch 'a' of race 'r' of run .* is no async function but 1"),
        ({"a": lambda step: None}, "branch 'a' .* is no async function"),
        ({"a": no_parameter}, "branch 'a' .* cannot be called with a Step alone"),
        ({"a": two_parameters}, "branch 'a' .* cannot be called with a Step alone"),
        ({"": too_many}, "name of a race's branch"),
        ({"a\x00": too_many}, "name of a race's branch"),
    ],
)
async def test_what_cannot_race_is_said_at_once(database_url: str, branches: Any, says: str) -> None:
    async def code(step: Step) -> Any:
        await step.race("r", **branches)

    racing = Racing(code, retries=4)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        with pytest.raises(RunFailed, match=says):
            await run.result(5)
    assert racing.entered == 1


async def test_branches_may_have_any_name_and_races_any_id(database_url: str) -> None:
    async def code(step: Step) -> Any:
        async def branch(name: str, step: Step) -> Any:
            await step.run("x/y@0", racing.work, name)
            await asyncio.gather(*[step.run("w", racing.work, name), one(step, name)])
            return await step.run("w", racing.work, name)

        async def one(step: Step, name: str) -> None:
            await step.run("w", racing.work, name)

        names = ["self", "id", "0", "a/b", "a", "a@b/", "\\"]
        return [
            await step.race(id, **{name: partial(branch, name) for name in [name]})
            for id in ("r", "r/a", "r@0", "r")
            for name in names
        ]

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url, replay_every_step=True) as h:
        run = await h.start(racing.flow)
        result = await end(h, run)
    assert all(name == value for name, value in result)
    assert len(racing.done) == 4 * 7 * 4


# ------------------------------------------------------------------------------- races in races, and beside them


@pytest.mark.parametrize("replay_every_step", [False, True])
async def test_a_race_inside_a_branch_of_a_race_is_withdrawn_with_it(
    database_url: str, replay_every_step: bool
) -> None:
    async def code(step: Step) -> Any:
        async def inner(step: Step) -> Any:
            return await step.race("r", x=partial(signal_of, "x"), y=partial(signal_of, "y"))

        won = await step.race("r", inner=inner, other=partial(signal_of, "other"))
        await step.sleep("end", "1m")
        return won

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url, replay_every_step=replay_every_step) as h:
        for name, result in (("y", ["inner", ["y", 1]]), ("other", ["other", 1])):
            run = await h.start(racing.flow)
            await rest(h, run)
            await h.signal(name, 1)
            await rest(h, run)
            for gone in ("x", "y", "other"):
                with pytest.raises(NoWaiter):
                    await h.signal(gone)
            assert await end(h, run) == result
            keys = set(await racing.steps(run))
            assert keys == (
                {"r", "r@inner/r", "r@inner/r@y/wait", "end"} if name == "y" else {"r", "r@other/wait", "end"}
            )


@pytest.mark.parametrize("replay_every_step", [False, True])
async def test_races_within_gather_are_decided_each_for_itself(
    database_url: str, replay_every_step: bool
) -> None:
    async def code(step: Step) -> Any:
        async def race(n: int) -> Any:
            own = await step.race("r", a=partial(signal_of, f"a{n}"), b=partial(signal_of, f"b{n}"))
            return [own, await step.run("after", racing.work, f"{n}")]

        direct = step.race("d", a=partial(signal_of, "a2"), b=partial(signal_of, "b2"))
        return await asyncio.gather(race(0), race(1), direct)

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url, replay_every_step=replay_every_step) as h:
        run = await h.start(racing.flow)
        await rest(h, run)
        for name in ("b1", "a2", "a0"):
            await h.signal(name, name)
            await rest(h, run)
        assert await end(h, run) == [[["a", "a0"], "0"], [["b", "b1"], "1"], ["a", "a2"]]
        keys = set(await racing.steps(run))
    assert keys >= {"r@0", "r@1", "d", "r@0@a/wait", "r@1@b/wait", "d@a/wait", "after@0", "after@1"}
    assert racing.done == ["1", "0"]


@pytest.mark.parametrize("replay_every_step", [False, True])
async def test_cancelling_the_await_of_a_race_withdraws_all_of_it(
    database_url: str, replay_every_step: bool
) -> None:
    async def code(step: Step) -> Any:
        try:
            async with asyncio.timeout(0.05):
                await step.race(
                    "r", a=partial(signal_of, "a"), b=partial(signal_of, "b"), c=partial(nap, "1d")
                )
        except TimeoutError:
            pass
        await step.wait_for_signal("end", signal="end", timeout="30d")
        return "went on"

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url, replay_every_step=replay_every_step) as h:
        run = await h.start(racing.flow)
        await rest(h, run)
        waiting = (await racing.app.runs.get(run.id)).waiting
        assert [wait.step_key for wait in waiting] == ["end"]
        for gone in ("a", "b"):
            with pytest.raises(NoWaiter):
                await h.signal(gone)
        await h.signal("end")
        assert await end(h, run) == "went on"
        assert set(await racing.steps(run)) == {"end"}


async def test_an_await_cancelled_in_the_turn_that_decides_leaves_nothing_waiting(database_url: str) -> None:
    async def code(step: Step) -> Any:
        async def winner(step: Step) -> int:
            await step.run("work", racing.work, "won")
            task = asyncio.current_task()
            assert task is not None
            # Called after the race's own callback, and before the race's task goes on.
            task.add_done_callback(lambda _: racer.cancel())
            return 1

        racer = asyncio.create_task(step.race("r", winner=winner, loser=partial(signal_of, "loser")))
        await asyncio.wait([racer])
        cancelled.append(racer.cancelled())
        await step.wait_for_signal("end", signal="end", timeout="30d")
        return None if racer.cancelled() else racer.result()

    cancelled: list[bool] = []

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.idle()
        assert [wait.step_key for wait in (await racing.app.runs.get(run.id)).waiting] == ["end"]
        with pytest.raises(NoWaiter):
            await h.signal("loser")
        assert cancelled == [True]
        await h.signal("end")
        await h.idle()
        assert await run.result(5) == ["winner", 1], "it was decided, and stays so"


async def test_a_run_cancelled_during_a_race_ends_with_all_its_branches(database_url: str) -> None:
    async def code(step: Step) -> Any:
        async def invoke(step: Step) -> Any:
            return await step.invoke("child", waits)

        await step.race("r", a=partial(signal_of, "a"), child=invoke)

    racing = Racing(code)
    waits = racing.app.function("waits")(child)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.idle()
        await racing.app.runs.cancel(run.id)
        await h.idle()
        runs = (await racing.app.runs.list()).data
        assert {found.status for found in runs} == {RunStatus.CANCELLED}
        with pytest.raises(NoWaiter):
            await h.signal("a")


async def test_strict_replay_compares_the_steps_of_an_undecided_branch(database_url: str) -> None:
    renamed = False

    async def code(step: Step) -> Any:
        async def branch(step: Step) -> Any:
            await step.run("new" if renamed else "old", racing.work, "x")
            return await signal_of("go", step)

        return await step.race("r", a=branch, b=partial(nap, "1d"))

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.idle()
        renamed = True
        await h.signal("go")
        await h.idle()
        reason = (await racing.app.runs.get(run.id)).reason
        assert "awaits step 'r@a/new' and has not called step 'r@a/old'" in (reason or "")
        renamed = False
        await h.advance("1m")
        assert await run.result(5) == ["a", None]


async def test_a_winner_that_the_code_no_longer_has_is_a_mismatch(database_url: str) -> None:
    names = ["a", "b"]

    async def code(step: Step) -> Any:
        async def branch(step: Step) -> int:
            return 1

        await step.race("r", **{names[0]: branch})
        await step.sleep("end", "1m")

    racing = Racing(code)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.idle()
        names.reverse()
        await h.advance("1m")
        reason = (await racing.app.runs.get(run.id)).reason
        assert "its winner 'a' is none of its branches: b" in (reason or "")
        names.reverse()
        await h.advance("1m")
        await run.result(5)


async def test_the_logger_is_silent_while_the_branches_replay(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = App("logs")

    @app.function
    async def flow(ctx: Context[None], step: Step) -> None:
        async def branch(step: Step) -> None:
            ctx.logger.info("begins")
            await step.run("work", int)
            ctx.logger.info("has worked")
            await step.sleep("nap", "1m")
            ctx.logger.info("has slept")

        async def loser(step: Step) -> None:
            await step.run("work", int)
            await step.sleep("nap", "1d")

        await step.race("r", a=branch, b=loser)
        ctx.logger.info("decided")
        await step.sleep("end", "1m")
        ctx.logger.info("ends")

    caplog.set_level("INFO", "agentflow.run")
    async with harness(app, database_url=database_url) as h:
        run = await h.start(flow)
        await end(h, run)
    told = [record.message for record in caplog.records if record.name == "agentflow.run"]
    assert told == ["begins", "has worked", "has slept", "decided", "ends"]


async def test_agents_race_with_keys_of_their_own(database_url: str) -> None:
    app = App("agents")

    @tool
    async def look(step: Step, what: str) -> str:
        """Look it up."""
        return await step.run("look", str.upper, what, output=str)

    def answer(request: Any) -> Any:
        last = request.messages[-1]
        if last.role == "tool":
            return f"found {last.tool_results[0].text}"
        return ToolCall(name="look", args={"what": last.text})

    agent = Agent("searcher", model=answer, tools=[look])
    app.add(agent)

    @app.function
    async def flow(ctx: Context[None], step: Step) -> Any:
        async def ask(prompt: str, own: Step) -> str:
            # Both with the branch's Step and with the function's.
            first, second = await agent.run(own, prompt), await agent.run(step, f"{prompt} again")
            return f"{first.output}, {second.output}"

        won = await step.race("r", a=partial(ask, "a"), late=partial(nap, "1h"))
        await step.sleep("end", "1m")
        return [won, (await agent.run(step, "after")).output]

    for replay_every_step in (False, True):
        async with harness(app, database_url=database_url, replay_every_step=replay_every_step) as h:
            run = await h.start(flow)
            assert await end(h, run) == [["a", "found A, found A AGAIN"], "found AFTER"]
            steps = (await app.runs.steps(run.id, limit=100)).data
            keys = {record.key for record in steps if record.kind == "infer"}
            assert keys == {
                f"{where}/turn{n}/model"
                for where in ("r@a/searcher#0", "r@a/searcher#1", "searcher#0")
                for n in (0, 1)
            }


async def test_a_loser_that_does_not_end_is_named_and_does_not_keep_the_race(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(races, "LONGEST_UNWINDING", 0.05)
    never = asyncio.Event()

    async def code(step: Step) -> Any:
        async def loser(step: Step) -> None:
            while not never.is_set():
                with suppress(asyncio.CancelledError):
                    await never.wait()

        async def winner(step: Step) -> str:
            return await step.run("work", racing.work, "won")

        return await step.race("r", loser=loser, winner=winner)

    racing = Racing(code)
    async with harness(racing.app, database_url=sqlite_url) as h:
        run = await h.start(racing.flow)
        try:
            while not any("branches of race 'r'" in record.message for record in caplog.records):
                await asyncio.sleep(0.01)
        finally:
            never.set()
        assert await run.result(5) == ["winner", "won"]


async def test_children_of_a_cancelled_race_are_waited_for_by_the_next_one(database_url: str) -> None:
    async def code(step: Step) -> Any:
        async def invoke(step: Step) -> Any:
            return await step.invoke("child", waits)

        try:
            async with asyncio.timeout(0.05 if racing.entered == 1 else None):
                return await step.race("r", child=invoke)
        except TimeoutError:
            await step.sleep("a while", "1m")
        raise AssertionError("it is entered again from the top")

    racing = Racing(code)
    waits = racing.app.function("waits")(child)
    async with harness(racing.app, database_url=database_url) as h:
        run = await h.start(racing.flow)
        await h.advance("1m")
        await h.send({"name": "for the child", "data": {}})
        assert await end(h, run) == ["child", "child"]
        assert len((await racing.app.runs.list(function="waits")).data) == 1
