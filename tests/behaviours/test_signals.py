"""Rule 21: signals, conflicts, buffers."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from agentflow import App, Context, Signal, Step
from agentflow.errors import InvalidInput, NoWaiter, SignalConflict, StepError, Unserialisable
from agentflow.testing import harness
from tests.behaviours.looking import restarted, steps_of


def waiting_app(**options: Any) -> App:
    """An app whose `f` waits an hour for the signal `go`, and gives what came."""
    app = App("t")

    @app.function
    async def f(ctx: Context[Any], step: Step) -> Any:
        try:
            got = await step.wait_for_signal("w", signal="go", timeout="1h", **options)
        except SignalConflict:
            return "conflict"
        except InvalidInput:
            return "invalid"
        return "nothing" if got is None else [got.name, got.data]

    return app


async def test_a_signal_is_delivered_exactly_once_and_gives_the_waiters_run_id(database_url: str) -> None:
    app = waiting_app()
    async with harness(app, database_url=database_url) as h:
        run = await h.start("f")
        await h.idle()
        assert await h.signal("go", {"n": 1}) == run.id
        with pytest.raises(NoWaiter):
            await h.signal("go", {"n": 2})
        await restarted(h)
        assert await run.result(10) == ["go", {"n": 1}]


async def test_of_ten_senders_at_once_exactly_one_is_taken(database_url: str) -> None:
    app = waiting_app()
    async with harness(app, database_url=database_url) as h:
        run = await h.start("f")
        await h.idle()
        answers = await asyncio.gather(*(h.signal("go", n) for n in range(10)), return_exceptions=True)
        [taken] = [n for n, answer in enumerate(answers) if answer == run.id]
        assert sum(isinstance(answer, NoWaiter) for answer in answers) == 9
        assert await run.result(10) == ["go", taken]


async def test_nobody_there_is_no_waiter(database_url: str) -> None:
    async with harness(waiting_app(), database_url=database_url) as h:
        with pytest.raises(NoWaiter):
            await h.signal("go")


async def test_a_signal_without_data_is_a_signal_and_not_a_timeout(database_url: str) -> None:
    async with harness(waiting_app(), database_url=database_url) as h:
        run = await h.start("f")
        await h.idle()
        await h.signal("go")
        assert await run.result(10) == ["go", None]


async def test_a_name_is_compared_whole(database_url: str) -> None:
    async with harness(waiting_app(), database_url=database_url) as h:
        await h.start("f")
        await h.idle()
        for name in ("Go", "go ", "g%", "g_", "go\n", "\u0067\u006f\u0301"):
            with pytest.raises(NoWaiter):
                await h.signal(name)


@pytest.mark.parametrize("data", [{1}, float("nan"), "\ud800", b"x"], ids=repr)
async def test_data_that_is_no_json_is_refused_and_the_waiter_left_alone(sqlite_url: str, data: Any) -> None:
    async with harness(waiting_app(), database_url=sqlite_url) as h:
        run = await h.start("f")
        await h.idle()
        with pytest.raises(Unserialisable):
            await h.signal("go", data)
        await h.signal("go", "fine")
        assert await run.result(10) == ["go", "fine"]


async def test_a_timeout_ends_the_wait_and_frees_the_name(database_url: str) -> None:
    async with harness(waiting_app(), database_url=database_url) as h:
        run = await h.start("f")
        await h.advance("1h")
        assert await run.result(10) == "nothing"
        with pytest.raises(NoWaiter):
            await h.signal("go")
        again = await h.start("f")
        await h.idle()
        assert await again.status() == "waiting"


async def test_a_passed_timeout_wins_over_a_later_signal_also_while_no_worker_lives(
    database_url: str,
) -> None:
    async with harness(waiting_app(), database_url=database_url) as h:
        run = await h.start("f")
        await h.idle()
        await h.crash()
        await h.advance("1h")
        with pytest.raises(NoWaiter):
            await h.signal("go")
        await h.restart()
        assert await run.result(10) == "nothing"


async def test_a_second_waiter_gets_a_signal_conflict_and_the_first_stays(database_url: str) -> None:
    app = waiting_app()
    async with harness(app, database_url=database_url) as h:
        first = await h.start("f")
        await h.idle()
        second = await h.start("f")
        assert await second.result(10) == "conflict"
        await h.signal("go", 1)
        assert await first.result(10) == ["go", 1]


async def test_two_waits_of_one_run_conflict_too(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[str]:
        waits = [step.wait_for_signal("w", signal="go", timeout="1h") for _ in range(2)]
        got = await asyncio.gather(*waits, return_exceptions=True)
        return [type(one).__name__ for one in got]

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        assert await h.signal("go") == run.id
        assert await run.result(10) == ["Signal", "SignalConflict"]


async def test_replace_takes_the_name_and_ends_the_first_with_none(database_url: str) -> None:
    app = waiting_app(on_conflict="replace")
    async with harness(app, database_url=database_url) as h:
        first = await h.start("f")
        await h.idle()
        second = await h.start("f")
        assert await first.result(10) == "nothing"
        assert await h.signal("go", 2) == second.id
        assert await second.result(10) == ["go", 2]


async def test_a_crash_and_replay_of_a_waiter_is_no_conflict_with_itself(database_url: str) -> None:
    app = waiting_app()
    async with harness(app, database_url=database_url) as h:
        run = await h.start("f")
        await h.idle()
        await restarted(h)
        await restarted(h)
        assert await run.status() == "waiting"
        await h.signal("go", 1)
        assert await run.result(10) == ["go", 1]


async def test_a_retry_of_the_code_beside_a_waiter_is_no_conflict_with_itself(database_url: str) -> None:
    app, failures = App("t"), iter(range(2))

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        wait = asyncio.create_task(step.wait_for_signal("w", signal="go", timeout="1d"))
        await step.sleep("s", "1m")
        for n in failures:
            raise ValueError(f"the code between steps, {n}")
        got = await wait
        return got and got.data

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1h")
        await h.signal("go", 1)
        assert await run.result(10) == 1


async def test_a_waiter_that_is_cancelled_frees_the_name(database_url: str) -> None:
    app = waiting_app()
    async with harness(app, database_url=database_url) as h:
        run = await h.start("f")
        await h.idle()
        await app.runs.cancel(run.id)
        with pytest.raises(NoWaiter):
            await h.signal("go")


async def test_a_waiter_whose_run_ends_frees_the_name(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> str:
        wait = asyncio.create_task(step.wait_for_signal("w", signal="go", timeout="1d"))
        await step.sleep("s", "1m")
        return "done" if not wait.done() else "?"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("1m")
        assert await run.result(10) == "done"
        with pytest.raises(NoWaiter):
            await h.signal("go")


# buffer


async def test_a_buffered_signal_is_kept_for_one_wait_that_comes_in_time(database_url: str) -> None:
    async with harness(waiting_app(), database_url=database_url) as h:
        assert await h.signal("go", "kept", buffer="1h") is None
        await h.advance(timedelta(hours=1) - timedelta(microseconds=1))
        first = await h.start("f")
        assert await first.result(10) == ["go", "kept"]
        second = await h.start("f")
        await h.idle()
        assert await second.status() == "waiting"


async def test_a_buffered_signal_is_gone_after_its_time(database_url: str) -> None:
    async with harness(waiting_app(), database_url=database_url) as h:
        await h.signal("go", "kept", buffer="1h")
        await h.advance("1h")
        run = await h.start("f")
        await h.idle()
        assert await run.status() == "waiting"


async def test_a_second_buffered_signal_is_a_conflict_until_the_first_is_gone(database_url: str) -> None:
    async with harness(waiting_app(), database_url=database_url) as h:
        await h.signal("go", 1, buffer="1h")
        with pytest.raises(SignalConflict):
            await h.signal("go", 2, buffer="1h")
        await h.advance("1h")
        assert await h.signal("go", 3, buffer="1h") is None
        assert await (await h.start("f")).result(10) == ["go", 3]


async def test_with_buffer_a_live_waiter_gets_the_signal_at_once(database_url: str) -> None:
    async with harness(waiting_app(), database_url=database_url) as h:
        run = await h.start("f")
        await h.idle()
        assert await h.signal("go", 1, buffer="1h") == run.id
        assert await run.result(10) == ["go", 1]


@pytest.mark.parametrize("buffer", ["-1h", "P1M", "soon"])
async def test_a_buffer_that_is_no_duration_is_invalid_input(sqlite_url: str, buffer: str) -> None:
    async with harness(waiting_app(), database_url=sqlite_url) as h:
        with pytest.raises(InvalidInput):
            await h.signal("go", buffer=buffer)


async def test_an_empty_name_is_invalid_input(database_url: str) -> None:
    async with harness(waiting_app(), database_url=database_url) as h:
        with pytest.raises(InvalidInput):
            await h.signal("")


# output=


class Reply(BaseModel):
    n: int


async def test_output_gives_the_data_as_that_model(database_url: str) -> None:
    app, seen = App("t"), []

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        seen.append(await step.wait_for_signal("w", signal="go", timeout="1h", output=Reply))
        await step.sleep("s", 60)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        await h.signal("go", {"n": 1})
        await h.advance("2m")
        await run.result(10)
    assert seen == [Signal(name="go", data=Reply(n=1))] * 2


async def test_data_that_does_not_validate_is_invalid_input_in_the_waiter(database_url: str) -> None:
    async with harness(waiting_app(output=Reply), database_url=database_url) as h:
        run = await h.start("f")
        await h.idle()
        await h.signal("go", {"n": "many"})
        assert await run.result(10) == "invalid"


async def test_with_output_a_timeout_is_still_none(database_url: str) -> None:
    async with harness(waiting_app(output=Reply), database_url=database_url) as h:
        run = await h.start("f")
        await h.advance("1h")
        assert await run.result(10) == "nothing"


# step.send_signal


async def test_send_signal_gives_the_run_id_of_the_waiter_and_sends_once(database_url: str) -> None:
    app = waiting_app()

    @app.function
    async def sender(ctx: Context[None], step: Step) -> str | None:
        got = await step.send_signal("send", "go", {"n": 1})
        await step.sleep("s", 60)
        return got

    async with harness(app, database_url=database_url) as h:
        run = await h.start("f")
        await h.idle()
        sending = await h.start(sender)
        await h.idle()
        await restarted(h)
        await h.advance("2m")
        assert await sending.result(10) == run.id
        assert await run.result(10) == ["go", {"n": 1}]
        assert (await steps_of(app, sending))["send"].kind == "send"


async def test_send_signal_to_nobody_is_a_no_waiter_that_can_be_caught(database_url: str) -> None:
    app = App("t")

    @app.function
    async def sender(ctx: Context[None], step: Step) -> list[Any]:
        try:
            await step.send_signal("send", "go")
        except NoWaiter:
            return ["nobody", await step.send_signal("keep", "go", None, "1h")]
        except StepError:
            return ["step error"]
        return []

    async with harness(app, database_url=database_url) as h:
        assert await (await h.start(sender)).result(10) == ["nobody", None]


async def test_gather_of_a_wait_and_a_send_of_one_signal_resolves(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        got, to = await asyncio.gather(
            step.wait_for_signal("w", signal="go", timeout="1h"), step.send_signal("s", "go", 1)
        )
        return [got and got.data, to == ctx.run_id]

    async with harness(app, database_url=database_url) as h:
        assert await (await h.start(f)).result(10) == [1, True]


async def test_data_as_deep_as_a_sender_may_send_it_arrives(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> bool:
        got = await step.wait_for_signal("w", signal="go", timeout="1h")
        return got is not None and got.data == deep

    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    async with harness(app, database_url=database_url) as h:
        run = await h.start("f")
        await h.idle()
        await h.signal("go", deep)
        await h.idle()
        assert await run.result(5)
