"""Rules 1 to 9: steps, their keys, their values, replay, suspension, cancelled awaits and limits."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest
from pydantic import BaseModel

from agentflow import App, Context, Event, Settings, Step
from agentflow.errors import (
    InvalidInput,
    LimitExceeded,
    NestedStep,
    NoWaiter,
    SignalConflict,
    StepError,
    Unserialisable,
)
from agentflow.testing import harness
from tests.behaviours.looking import failure_of, restarted, steps_of


async def forever() -> None:
    await asyncio.Event().wait()


# 1


async def test_the_function_is_entered_again_only_when_it_wakes_up(database_url: str) -> None:
    app, entered = App("t"), [0]

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        entered[0] += 1
        for n in range(3):
            await step.run("count", int, n)
        await step.sleep("night", "8h")
        await step.run("after", int)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        assert entered == [1]
        await h.advance("8h")
        await run.result(10)
    assert entered == [2]


async def test_a_step_is_durable_before_the_next_line_runs(database_url: str) -> None:
    app, paid = App("t"), []
    stand_still, at_next_line = [True], asyncio.Event()

    @app.function
    async def f(ctx: Context[None], step: Step) -> int:
        got = await step.run("pay", lambda: paid.append("paid") or len(paid))
        at_next_line.set()
        if stand_still[0]:
            await forever()
        return got

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await at_next_line.wait()
        await h.crash()
        stand_still[0] = False
        await h.restart()
        assert await run.result(10) == 1
    assert paid == ["paid"]


# 2


async def test_ids_that_look_like_keys_never_meet(database_url: str) -> None:
    app = App("t")
    ids = [
        "a",
        "a",
        "a:1",
        "a@0",
        "a\\",
        "a\\:1",
        "a/b",
        "/",
        "@",
        ":",
        "a#0/b",
        " ",
        "a\n",
        "ä",
        "🙂",
        "e\u0301",
        "é",
    ]

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        async def branch() -> str:
            return await step.run("a", str, "branch")

        inside = await asyncio.gather(branch())
        got = [await step.run(id, str, f"{n}") for n, id in enumerate(ids)]
        await step.sleep("s", 60)
        return inside + got

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("2m")
        assert await run.result(10) == ["branch", *map(str, range(len(ids)))]
        written = [record.id for record in (await steps_of(app, run)).values()]
        assert written == ["a", *ids, "s"]


async def test_an_id_may_have_512_bytes_and_not_one_more(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> int:
        return await step.run("é" * 256, int, 7)

    @app.function
    async def g(ctx: Context[None], step: Step) -> int:
        return await step.run("é" * 256 + "x", int, 7)

    async with harness(app, database_url=database_url) as h:
        assert await (await h.start(f)).result(10) == 7
        assert (await failure_of(await h.start(g))).name == "InvalidInput"


async def test_an_empty_id_is_invalid_input(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        try:
            await step.run("", int)
        except InvalidInput:
            return "refused"
        return "taken"

    async with harness(app, database_url=database_url) as h:
        assert await (await h.start(f)).result(10) == "refused"


async def test_branches_with_the_same_ids_never_swap_results_whichever_is_faster(database_url: str) -> None:
    app, slow = App("t"), {"left"}

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[list[str]]:
        async def work(name: str) -> str:
            if name in slow:
                await asyncio.sleep(0.05)
            return name

        async def branch(name: str) -> list[str]:
            got = [await step.run("work", work, name), await step.run("work", work, name + "2")]
            await step.sleep("rest", 60)
            return got + [await step.run("work", work, name + "3")]

        return list(await asyncio.gather(branch("left"), branch("right")))

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        slow.clear()
        slow.add("right")
        await h.crash()
        await h.restart()
        await h.advance("2m")
        assert await run.result(10) == [["left", "left2", "left3"], ["right", "right2", "right3"]]


async def test_a_branch_adds_its_path_to_the_key(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        async def leaf() -> None:
            await step.run("x", int)

        async def inner() -> None:
            await asyncio.gather(leaf(), leaf(), leaf())

        await asyncio.gather(leaf(), inner())

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await run.result(10)
        assert set(await steps_of(app, run)) == {"x@0", "x@1.0", "x@1.1", "x@1.2"}


async def test_a_step_handed_straight_to_gather_or_a_task_group_takes_its_key_in_the_caller(
    database_url: str,
) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[int]:
        first = await asyncio.gather(step.run("x", int, 1), step.run("x", int, 2))
        async with asyncio.TaskGroup() as group:
            third = group.create_task(step.run("x", int, 3))
        return [*first, third.result()]

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        assert await run.result(10) == [1, 2, 3]
        steps = await steps_of(app, run)
        assert {key: record.output for key, record in steps.items()} == {"x": 1, "x:1": 2, "x:2": 3}


# 3


class Point(BaseModel):
    x: int


async def test_the_value_of_a_step_is_the_json_round_trip_on_the_first_run_too(database_url: str) -> None:
    app, seen = App("t"), []
    shared = {"list": [1]}

    def model() -> Point:
        return Point(x=1)

    def pair() -> tuple[int, datetime]:
        return (1, datetime.fromisoformat("2026-01-01T00:00:00+00:00"))

    def numbered() -> dict[int, str]:
        return {1: "a"}

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        got = [
            await step.run("tuple", lambda: (1, (2, 3))),
            await step.run("annotated", pair),
            await step.run("model", model),
            await step.run("keys", numbered),
            await step.run("output", lambda: {"x": 2}, output=Point),
            await step.run("shared", lambda: shared),
        ]
        shared["list"].append(2)
        seen.append(got)
        await step.sleep("s", 60)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("2m")
        await run.result(10)
    first, second = seen
    expected = [[1, [2, 3]], pair(), Point(x=1), {1: "a"}, Point(x=2), {"list": [1]}]
    assert (first, second) == (expected, expected)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [0, float("nan")]}, "a"),
        ({"a": {"b": float("inf")}}, "b"),
        ({"text": "\ud800"}, "text"),
        ({"text": "a\x00b"}, "text"),
        ({"nul\x00": 1}, ""),
        (nested(102), ""),
        ({"s": {1}}, "s"),
        ({"s": b"x"}, "s"),
        ({"at": datetime(2026, 1, 1)}, "at"),  # noqa: DTZ001
        ({1: "a"}, ""),
    ],
    ids=["nan", "inf", "surrogate", "nul", "nul key", "deep", "set", "bytes", "datetime", "int key"],
)
async def test_what_would_not_come_back_equal_is_unserialisable_and_not_retried(
    sqlite_url: str, value: Any, path: str
) -> None:
    app, called = App("t"), [0]

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        def body():  # type: ignore[no-untyped-def]
            called[0] += 1
            return value

        await step.run("the step", body)

    async with harness(app, database_url=sqlite_url) as h:
        error = await failure_of(await h.start(f))
    assert error.name == "Unserialisable"
    assert "the step" in error.message
    assert path in error.message
    assert called == [1]


async def test_unserialisable_is_catchable_and_the_same_class_on_replay(database_url: str) -> None:
    app, seen = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        try:
            await step.run("nan", lambda: float("nan"))
        except Unserialisable as error:
            seen.append(str(error))
        await step.sleep("s", 60)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("2m")
        await run.result(10)
    assert len(seen) == 2
    assert seen[0] == seen[1]


async def test_a_nesting_of_100_is_still_legal(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> bool:
        return await step.run("deep", nested, 99) == nested(99)

    async with harness(app, database_url=database_url) as h:
        assert await (await h.start(f)).result(10) is True


# 4


async def test_an_added_step_runs_a_removed_one_is_ignored_a_reordered_one_resolves(
    database_url: str,
) -> None:
    app, version, called = App("t"), [1], []

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[str]:
        def work(name: str) -> str:
            called.append(name)
            return f"{name} by {version[0]}"

        ids = ["a", "b", "gone"] if version[0] == 1 else ["b", "new", "a"]
        got = [await step.run(id, work, id) for id in ids]
        await step.sleep("s", 60)
        return got

    async with harness(app, database_url=database_url, strict_replay=False) as h:
        run = await h.start(f)
        await h.idle()
        version[0] = 2
        await h.advance("2m")
        assert await run.result(10) == ["b by 1", "new by 2", "a by 1"]
    assert called == ["a", "b", "gone", "new"]


async def test_a_key_of_another_kind_is_a_mismatch_that_a_fixed_deploy_heals(database_url: str) -> None:
    app, broken = App("t", settings=Settings()), [False]

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> str:
        if broken[0]:
            await step.sleep("x", 1)
        else:
            await step.run("x", int)
        await step.sleep("s", 60)
        return "healed"

    async with harness(app, database_url=database_url, strict_replay=False) as h:
        run = await h.start(f)
        await h.idle()
        broken[0] = True
        await h.advance("1h")
        record = await app.runs.get(run.id)
        assert record.status == "sleeping"
        assert "ReplayMismatch" in (record.reason or "") or "'x'" in (record.reason or "")
        broken[0] = False
        await h.advance("2h")
        assert await run.result(10) == "healed"


async def test_an_output_that_no_longer_validates_is_a_mismatch_that_a_fixed_deploy_heals(
    database_url: str,
) -> None:
    app, output = App("t"), [int]

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> int:
        got = await step.run("x", lambda: 5, output=output[0])
        await step.sleep("s", 60)
        return int(got)

    async with harness(app, database_url=database_url, strict_replay=False) as h:
        run = await h.start(f)
        await h.idle()
        output[0] = Point  # type: ignore[assignment]
        await h.advance("1h")
        assert await run.status() == "sleeping"
        output[0] = int
        await h.advance("2h")
        assert await run.result(10) == 5


# 5


async def test_parallel_steps_run_truly_at_once_and_gather_keeps_the_order(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[int]:
        together = asyncio.Barrier(5)

        async def meet(n: int) -> int:
            await together.wait()
            await asyncio.sleep((5 - n) / 200)
            return n

        return list(await asyncio.gather(*(step.run("meet", meet, n) for n in range(5))))

    async with harness(app, database_url=database_url) as h:
        assert await (await h.start(f)).result(10) == [0, 1, 2, 3, 4]


async def test_a_failing_branch_does_not_undo_its_siblings_memos(database_url: str) -> None:
    app, called = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        def good(n: int) -> int:
            called.append(n)
            return n

        def bad() -> None:
            called.append("bad")
            raise ValueError("no")

        got = await asyncio.gather(
            step.run("g", good, 1),
            step.run("bad", bad, retry=0),
            step.run("g", good, 2),
            return_exceptions=True,
        )
        await step.sleep("s", 60)
        return [type(one).__name__ for one in got]

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        await restarted(h)
        await h.advance("2m")
        assert await run.result(10) == ["int", "StepError", "int"]
    assert sorted(called, key=str) == [1, 2, "bad"]


async def test_who_was_first_does_not_change_on_replay(database_url: str) -> None:
    app, seen = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        async def after(delay: float, name: str) -> str:
            await asyncio.sleep(delay)
            return name

        calls = [
            asyncio.ensure_future(step.run(name, after, delay, name))
            for name, delay in [("slow", 0.06), ("middle", 0.03), ("fast", 0.0)]
        ]
        seen.append([await one for one in asyncio.as_completed(calls)])
        await step.sleep("s", 60)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("2m")
        await run.result(10)
    assert seen == [["fast", "middle", "slow"]] * 2


async def test_first_completed_of_two_waits_does_not_change_its_mind(database_url: str) -> None:
    app, seen = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        waits = {
            asyncio.ensure_future(step.wait_for_signal(name, signal=name, timeout="1h")): name
            for name in "ab"
        }
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        first = sorted(waits[one] for one in done)  # type: ignore[index]
        seen.append(await step.run(f"first is {first}", str, "".join(first)))
        await asyncio.gather(*waits)
        await step.sleep("s", 60)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        await h.signal("b")
        await h.idle()
        await h.signal("a")
        await h.advance("2m")
        await run.result(10)
    assert seen == ["b"] * len(seen)
    assert len(seen) >= 2


# 6


async def test_a_step_inside_a_step_body_fails_the_run_whatever_the_body_catches(database_url: str) -> None:
    app, entered = App("t"), [0]

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        entered[0] += 1

        async def outer() -> str:
            with suppress(NestedStep, Exception):
                await step.run("inner", int)
            return "swallowed"

        with suppress(Exception):
            await step.run("outer", outer)
        return "got away with it"

    async with harness(app, database_url=database_url) as h:
        error = await failure_of(await h.start(f))
    assert error.name == "NestedStep"
    assert entered == [1]


# 7


async def test_a_step_called_in_finally_does_not_run_while_the_run_is_suspended(database_url: str) -> None:
    app, cleaned = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        try:
            await step.sleep("s", 60)
        finally:
            await step.run("clean", cleaned.append, "clean")
        return "done"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        assert cleaned == []
        assert await run.status() == "sleeping"
        await h.advance("2m")
        assert await run.result(10) == "done"
    assert cleaned == ["clean"]


@pytest.mark.parametrize("how", ["return in finally", "except BaseException", "raise another"])
async def test_nothing_that_unwinds_is_taken_for_the_runs_end(database_url: str, how: str) -> None:
    app = App("t")

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> str:
        slept = False
        try:
            await step.sleep("s", 60)
            slept = True
        except BaseException:
            if how == "raise another":
                raise ValueError("while unwinding") from None
            if how == "return in finally":
                raise
        finally:
            if how == "return in finally":
                return "slept" if slept else "early"  # noqa: B012
        return "slept" if slept else "early"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        assert await run.status() == "sleeping"
        await h.advance("2m")
        assert await run.result(10) == "slept"


class Thing:
    pass


async def test_a_run_that_only_waits_leaves_memory_entirely(database_url: str) -> None:
    app = App("t")
    held: list[weakref.ref[Thing]] = []

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        thing = Thing()
        held.append(weakref.ref(thing))
        await asyncio.gather(
            step.sleep("s", "1d"), step.wait_for_signal("w", signal="w", timeout="2d"), step.sleep("t", "3d")
        )
        assert thing

    async with harness(app, database_url=database_url) as h:
        await h.start(f)
        await h.idle()
        gc.collect()
        assert [one() for one in held] == [None]


# 8


async def test_agentflows_own_errors_come_back_as_the_same_class_others_as_step_error(
    database_url: str,
) -> None:
    app, seen = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        caught: list[tuple[type[Exception], str]] = []

        async def attempt(call: Any) -> None:
            try:
                await call
            except Exception as error:
                caught.append((type(error), str(error)))

        await attempt(step.run("foreign", int, "x", retry=0))
        await attempt(step.sleep_until("naive", datetime(2026, 1, 1)))  # noqa: DTZ001
        await attempt(step.invoke("nobody", "no-such-function"))
        await attempt(step.send_signal("none", "no such waiter"))
        await attempt(step.run("set", lambda: {1}))
        seen.append(caught)
        await step.sleep("s", 60)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("2m")
        await run.result(10)
    first, second = seen
    assert first == second
    assert [kind.__name__ for kind, _ in first] == [
        "StepError",
        "InvalidInput",
        "NotFound",
        "NoWaiter",
        "Unserialisable",
    ]


async def test_a_timeout_around_a_step_cancels_its_body_and_memoizes_nothing(database_url: str) -> None:
    app, said, slow = App("t"), [], [True]

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        async def body() -> str:
            said.append("called")
            try:
                if slow[0]:
                    await forever()
            except asyncio.CancelledError:
                said.append("cancelled")
                raise
            return "value"

        got = "timeout"
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                got = await step.run("x", body)
        await step.sleep("s", 60)
        return got

    async with harness(app, database_url=database_url, strict_replay=False) as h:
        run = await h.start(f)
        await h.idle()
        assert said == ["called", "cancelled"]
        slow[0] = False
        await h.advance("2m")
        assert await run.result(10) == "value"
    assert said == ["called", "cancelled", "called"]


async def test_a_timeout_around_a_wait_withdraws_it(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        try:
            async with asyncio.timeout(0.05):
                await step.wait_for_signal("w", signal="withdrawn", timeout="1h")
        except TimeoutError:
            pass
        await step.wait_for_signal("other", signal="other", timeout="1h")
        return "done"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        record = await app.runs.get(run.id)
        assert [one.name for one in record.waiting] == ["other"]
        with pytest.raises(NoWaiter):
            await h.signal("withdrawn")


async def test_a_failing_task_group_cancels_the_siblings_body_and_memoizes_nothing(database_url: str) -> None:
    app, said = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        running = asyncio.Event()

        async def sibling() -> None:
            running.set()
            try:
                await forever()
            except asyncio.CancelledError:
                said.append("cancelled")
                raise

        async def fail() -> None:
            await running.wait()
            raise ValueError("no")

        name = "no error"
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(step.run("sibling", sibling))
                group.create_task(step.run("fail", fail, retry=0))
        except* StepError as caught:
            [error] = caught.exceptions
            assert isinstance(error, StepError)
            name = error.name
        return name

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        assert await run.result(10) == "ValueError"
        steps = await steps_of(app, run)
        assert {key: record.status for key, record in steps.items() if record.status == "completed"} == {}
    assert said == ["cancelled"]


async def test_a_failing_task_group_withdraws_the_siblings_wait(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        async def fail() -> None:
            raise ValueError("no")

        with suppress(BaseExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(step.wait_for_signal("w", signal="w", timeout="1h"))
                group.create_task(step.run("fail", fail, retry=1))
        await step.wait_for_signal("other", signal="other", timeout="1h")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1m")
        assert [one.name for one in (await app.runs.get(run.id)).waiting] == ["other"]
        with pytest.raises(NoWaiter):
            await h.signal("w")


# 9


def limited(**limits: Any) -> App:
    return App("t", settings=Settings(**limits))


async def test_one_step_too_many_fails_the_run_at_once_naming_step_and_figure(database_url: str) -> None:
    app, entered = limited(max_steps=3), [0]

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        entered[0] += 1
        for n in range(4):
            with suppress(LimitExceeded, StepError):
                await step.run(f"s{n}", int)
        return "got away with it"

    async with harness(app, database_url=database_url) as h:
        error = await failure_of(await h.start(f))
    assert (error.name, entered) == ("LimitExceeded", [1])
    assert "s3" in error.message
    assert "3" in error.message.replace("s3", "")


async def test_a_run_of_as_many_steps_as_allowed_completes(database_url: str) -> None:
    app = limited(max_steps=3)

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        for _ in range(2):
            await step.run("x", int)
        await step.sleep("s", 1)
        return "done"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1m")
        assert await run.result(10) == "done"


async def test_limits_are_of_bytes_not_of_characters(database_url: str) -> None:
    app = limited(max_step_bytes=1000, max_event_bytes=1000)

    @app.function
    async def f(ctx: Context[str], step: Step) -> str:
        return "é" * 600 if ctx.data == "function" else await step.run("long", lambda: "é" * 600, output=str)

    async with harness(app, database_url=database_url) as h:
        for where, message in (
            ("step", "the output of step 'long' has 1202 bytes, over the limit of 1000"),
            ("function", "the output of the function has 1202 bytes, over the limit of 1000"),
        ):
            assert message in (await failure_of(await h.start(f, where))).message
        with pytest.raises(LimitExceeded, match="event 'e' has 1208 bytes of data"):
            await h.send(Event(name="e", data={"a": "é" * 600}))


async def test_a_signals_data_are_held_to_the_limit_of_the_step_that_they_end(database_url: str) -> None:
    app = limited(max_step_bytes=1000)

    @app.function
    async def f(ctx: Context[str], step: Step) -> int:
        if ctx.data == "sends":
            await step.send_signal("send", "large", "x" * 1001)
        signal = await step.wait_for_signal("w", signal="large", timeout="1h")
        return len(signal.data) if signal else 0

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f, "waits")
        await h.idle()
        with pytest.raises(LimitExceeded, match=r"signal 'large' has 1003 bytes of data, .*max_step_bytes"):
            await h.signal("large", "x" * 1001)
        assert (await failure_of(await h.start(f, "sends"))).name == "LimitExceeded"
        await h.signal("large", "x" * 900)
        assert await run.result(10) == 900


async def test_a_step_output_over_the_limit_fails_the_run_at_once(database_url: str) -> None:
    app, called = limited(max_step_bytes=1000), [0]

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        def body() -> str:
            called[0] += 1
            return "x" * 999  # and two quotes

        with suppress(Exception):
            await step.run("big", body)
        return "got away with it"

    async with harness(app, database_url=database_url) as h:
        error = await failure_of(await h.start(f))
    assert (error.name, called) == ("LimitExceeded", [1])
    assert "big" in error.message
    assert "1000" in error.message.replace(",", "")


async def test_a_step_output_of_exactly_the_limit_is_taken(database_url: str) -> None:
    app = limited(max_step_bytes=1000)

    @app.function
    async def f(ctx: Context[None], step: Step) -> int:
        return len(await step.run("big", lambda: "x" * 998))

    async with harness(app, database_url=database_url) as h:
        assert await (await h.start(f)).result(10) == 998


async def test_a_run_that_grows_over_the_limit_fails(database_url: str) -> None:
    app = limited(max_run_bytes=2500)

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        for n in range(5):
            await step.run(f"s{n}", lambda: "x" * 998)
            await step.sleep(f"z{n}", 1)
        return "got away with it"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1m")
        error = await failure_of(run)
    assert error.name == "LimitExceeded"
    assert "'s2'" in error.message
    assert "2500" in error.message.replace(",", "")


async def test_an_event_over_the_limit_fails_the_run_that_sends_it(database_url: str) -> None:
    app = limited(max_event_bytes=1000)

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        with suppress(Exception):
            await step.send_event("send", {"name": "a/b", "data": {"x": "y" * 1000}})
        return "got away with it"

    async with harness(app, database_url=database_url) as h:
        error = await failure_of(await h.start(f))
    assert error.name == "LimitExceeded"
    assert "send" in error.message


@pytest.mark.parametrize("kind", ["sleep", "sleep_until", "event", "signal"])
async def test_a_wait_of_more_than_366_days_fails_the_run(database_url: str, kind: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        with suppress(Exception):
            match kind:
                case "sleep":
                    await step.sleep("long", "366d1s")
                case "sleep_until":
                    await step.sleep_until("long", datetime.fromisoformat("2999-01-01T00:00:00+00:00"))
                case "event":
                    await step.wait_for_event("long", event="x", timeout="367d")
                case _:
                    await step.wait_for_signal("long", signal="x", timeout="367d")
        return "got away with it"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        error = await failure_of(run)
    assert error.name == "LimitExceeded"
    assert "long" in error.message


async def test_a_wait_of_366_days_is_legal(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        await step.sleep("year", "366d")
        return "awake"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("366d")
        assert await run.result(10) == "awake"


async def test_a_signal_conflict_is_the_same_class_after_a_crash(database_url: str) -> None:
    app, caught = App("t"), []

    @app.function
    async def holder(ctx: Context[None], step: Step) -> None:
        await step.wait_for_signal("w", signal="the name", timeout="1d")

    @app.function
    async def second(ctx: Context[None], step: Step) -> str:
        try:
            await step.wait_for_signal("w", signal="the name", timeout="1d")
        except SignalConflict as error:
            caught.append(str(error))
        await step.sleep("s", 60)
        return "went on"

    async with harness(app, database_url=database_url) as h:
        await h.start(holder)
        await h.idle()
        run = await h.start(second)
        await h.idle()
        await restarted(h)
        await h.advance("2m")
        assert await run.result(10) == "went on"
    assert len(set(caught)) == 1
    assert len(caught) >= 2
