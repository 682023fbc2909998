"""Rule 28: `ModelRateLimit` is shared by every worker, honoured before a call; a 429 that one sees slows all."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest

from agentflow import Agent, App, Context, ModelRequest, ModelResponse, ModelSettings, Step, Usage
from agentflow.errors import ConfigurationError, ProviderError, RateLimited
from agentflow.flow import ModelRateLimit, RateLimit
from agentflow.runs import RunStatus
from agentflow.testing import ScriptedModel, harness
from agentflow.testing.app_harness import Harness

TEN_A_MINUTE = ModelRateLimit("function", requests=10, period="1m")
"""One at once, then one every six seconds."""


class Asked:
    """A model that notes when it was asked; `failures` come first."""

    def __init__(self, *failures: Exception, usage: Usage | None = None) -> None:
        self.at: list[datetime] = []
        self.failures = list(failures)
        self.usage = usage or Usage()
        self.clock: Harness | None = None

    async def __call__(self, request: ModelRequest) -> ModelResponse:
        assert self.clock is not None
        self.at.append(self.clock.now())
        if self.failures:
            raise self.failures.pop(0)
        return ModelResponse(text="yes", usage=self.usage)

    def seconds(self) -> list[int]:
        """When it was asked, in whole seconds after the first time."""
        return [round((at - self.at[0]).total_seconds()) for at in self.at]


def make(model: Any, *limits: ModelRateLimit, app: str = "t", retries: int = 0, **options: Any) -> App:
    made = App(app, model_limits=list(limits))

    @made.function(retries=retries)
    async def ask(ctx: Context[str], step: Step) -> str:
        response = await step.ai.infer("ask", model=model, messages=ctx.data, **options)
        return response.text

    return made


def too_many(retry_after: float | None = None, **changes: Any) -> RateLimited:
    return RateLimited(
        "too many",
        provider="function",
        model="m",
        status=429,
        retriable=True,
        retry_after=retry_after,
        **changes,
    )


async def test_a_call_over_the_limit_begins_later_and_uses_no_attempt(database_url: str) -> None:
    model = Asked()
    app = make(model, TEN_A_MINUTE)
    async with harness(app, database_url=database_url) as h:
        model.clock = h
        runs = [await h.start("ask", "Well?") for _ in range(4)]
        await h.idle()
        assert len(model.at) == 1
        await h.advance("1m")
        assert model.seconds() == [0, 6, 12, 18]
        for run in runs:
            assert await run.result(5) == "yes"
            [step] = (await app.runs.steps(run.id)).data
            assert step.attempts == 1
        assert (await app.usage()).calls == 4


async def test_a_run_that_waits_for_a_limit_sleeps_and_says_why(database_url: str) -> None:
    model = Asked()
    app = make(model, TEN_A_MINUTE)
    async with harness(app, database_url=database_url) as h:
        model.clock = h
        await h.start("ask", "First?")
        await h.idle()
        run = await h.start("ask", "Second?")
        await h.idle()
        record = await app.runs.get(run.id)
        assert record.status is RunStatus.SLEEPING
        until = (model.at[0] + timedelta(seconds=6)).isoformat(timespec="seconds")
        assert record.reason == (
            f"step 'ask' waits for its turn at function: 10 requests in 0:01:00 are the limit; until {until}"
        )
        await h.advance("6s")
        record = await app.runs.get(run.id)
        assert (record.status, record.reason) == (RunStatus.COMPLETED, None)


async def test_a_run_that_is_cancelled_while_it_waits_for_a_limit_does_not_give_that_as_the_reason(
    database_url: str,
) -> None:
    model = Asked()
    app = make(model, TEN_A_MINUTE)
    async with harness(app, database_url=database_url) as h:
        model.clock = h
        first, second = await h.start("ask", "First?"), await h.start("ask", "Second?")
        await h.idle()
        await first.result(5)
        await app.runs.cancel(second.id)
        record = await app.runs.get(second.id)
        assert (record.status, record.reason) == (RunStatus.CANCELLED, None)
        await h.advance("1m")
        assert len(model.at) == 1


async def test_all_apps_on_a_database_share_a_limit(database_url: str) -> None:
    model = Asked()
    one, other = make(model, TEN_A_MINUTE, app="one"), make(model, TEN_A_MINUTE, app="other")
    async with harness(one, database_url=database_url) as h, harness(other, database_url=database_url) as h2:
        model.clock = h
        first = await h.start("ask", "Here?")
        await h.idle()
        second = await h2.start("ask", "There?")
        await h2.idle()
        assert await first.result(5) == "yes"
        assert await second.status() is RunStatus.SLEEPING
        await h2.advance("7s")
        assert await second.result(5) == "yes"


async def test_a_429_that_one_run_sees_slows_all(database_url: str) -> None:
    model = Asked(too_many(retry_after=30))
    app = make(model, ModelRateLimit("function", requests=1000), retries=2)
    async with harness(app, database_url=database_url) as h:
        model.clock = h
        first = await h.start("ask", "First?")
        await h.idle()
        second = await h.start("ask", "Second?")
        await h.idle()
        record = await app.runs.get(second.id)
        assert record.status is RunStatus.SLEEPING
        told = "step 'ask' waits for function, which has answered that there are too many calls; until "
        assert record.reason is not None
        assert record.reason.startswith(told)
        await h.advance("29s")
        assert len(model.at) == 1
        await h.advance("2s")
        assert model.seconds() == [0, 30, 30]
        assert [await first.result(5), await second.result(5)] == ["yes", "yes"]
        attempts = {run.id: (await app.runs.steps(run.id)).data[0].attempts for run in (first, second)}
        assert attempts == {first.id: 2, second.id: 1}


async def test_a_429_that_an_app_without_a_limit_sees_slows_those_that_have_one(database_url: str) -> None:
    model = Asked(too_many(retry_after=30))
    without = make(model, app="without")
    limited = make(model, ModelRateLimit("function", requests=1000), app="limited")
    async with (
        harness(without, database_url=database_url) as h,
        harness(limited, database_url=database_url) as h2,
    ):
        model.clock = h
        await h.start("ask", "First?")
        await h.idle()
        slowed = await h2.start("ask", "Second?")
        await h2.idle()
        assert await slowed.status() is RunStatus.SLEEPING


async def test_a_429_that_does_not_say_for_how_long_slows_all_for_a_moment(database_url: str) -> None:
    model = Asked(too_many())
    app = make(model, ModelRateLimit("function", requests=1000))
    async with harness(app, database_url=database_url) as h:
        model.clock = h
        failed = await h.start("ask", "First?")
        await h.idle()
        assert await failed.status() is RunStatus.FAILED
        second = await h.start("ask", "Second?")
        await h.advance("4s")
        assert await second.status() is RunStatus.SLEEPING
        await h.advance("1s")
        assert await second.result(5) == "yes"


async def test_a_429_for_want_of_money_slows_nobody(database_url: str) -> None:
    broke = RateLimited("no money left", provider="function", model="m", status=429, retriable=False)
    model = Asked(broke)
    app = make(model, ModelRateLimit("function", requests=1000))
    async with harness(app, database_url=database_url) as h:
        model.clock = h
        await h.start("ask", "First?")
        second = await h.start("ask", "Second?")
        await h.idle()
        assert await second.status() in (RunStatus.COMPLETED, RunStatus.FAILED)
        assert len(model.at) == 2


async def test_a_wait_for_a_limit_survives_a_crash(database_url: str) -> None:
    model = Asked()
    app = make(model, TEN_A_MINUTE)
    async with harness(app, database_url=database_url) as h:
        model.clock = h
        runs = [await h.start("ask", "Well?") for _ in range(2)]
        await h.idle()
        await h.crash()
        await h.advance("5s")
        await h.restart()
        await h.idle()
        assert len(model.at) == 1, "a new worker may not begin it earlier"
        await h.advance("1s")
        assert model.seconds() == [0, 6]
        assert [await run.result(5) for run in runs] == ["yes", "yes"]


async def test_a_call_whose_worker_died_takes_a_turn_again(database_url: str) -> None:
    under_way, hangs = asyncio.Event(), [True]

    async def model(request: ModelRequest) -> str:
        if hangs.pop() if hangs else False:
            under_way.set()
            await asyncio.Event().wait()
        return "yes"

    app = make(model, TEN_A_MINUTE)
    async with harness(app, database_url=database_url) as h:
        run = await h.start("ask", "Well?")
        await asyncio.wait_for(under_way.wait(), 20)
        await h.crash()
        await h.restart()
        await h.idle()
        assert await run.status() is RunStatus.SLEEPING, "what the dead one asked for counts"
        await h.advance("6s")
        assert await run.result(5) == "yes"
        states = [call.state for _, call in await app.client.store.queries.list_model_calls(run=run.id)]
        assert sorted(states) == ["done", "in_doubt"]


async def test_a_run_that_waits_in_memory_is_cancelled_at_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentflow.engine.waits.SHORT_WAIT", 7_200_000_000)
    asked: list[str] = []

    async def yes(request: ModelRequest) -> str:
        asked.append(request.prompt)
        return "yes"

    app = make(yes, ModelRateLimit("function", requests=1, period="1h"))
    async with harness(app, database_url=database_url, clock="system") as h:
        first = await h.start("ask", "First?")
        assert await first.result(20) == "yes"
        second = await h.start("ask", "Second?")
        while not h._worker or not h._worker.running:
            await asyncio.sleep(0.01)
        await app.runs.cancel(second.id)
        await asyncio.wait_for(h.idle(), 20)
        assert await second.status() is RunStatus.CANCELLED
        assert asked == ["First?"]


async def test_tokens_are_taken_by_estimate_and_settled_by_what_was_used(database_url: str) -> None:
    model = Asked(usage=Usage(input_tokens=20, output_tokens=71))
    limit = ModelRateLimit("function", tokens=100)
    app = make(model, limit, settings=ModelSettings(max_tokens=10))
    async with harness(app, database_url=database_url) as h:
        model.clock = h
        await h.start("ask", "x" * 100)
        await h.idle()
        run = await h.start("ask", "x" * 100)
        await h.idle()
        assert "100 tokens in 0:01:00" in str((await app.runs.get(run.id)).reason)
        await h.advance("5m")
        assert await run.result(5) == "yes"
        # 91 used of 91 a minute; the second needs what is left of a burst of ten when it is over.
        assert 55 <= model.seconds()[1] <= 60


async def test_tokens_of_a_call_that_was_not_billed_are_given_back(database_url: str) -> None:
    refused = ProviderError("no such model", provider="function", model="m", status=404, retriable=False)
    model = Asked(refused, usage=Usage(input_tokens=1, output_tokens=1))
    app = make(model, ModelRateLimit("function", tokens=100), settings=ModelSettings(max_tokens=5000))
    async with harness(app, database_url=database_url) as h:
        model.clock = h
        failed = await h.start("ask", "First?")
        await h.idle()
        assert await failed.status() is RunStatus.FAILED
        run = await h.start("ask", "Second?")
        await h.idle()
        assert await run.result(5) == "yes"


async def test_an_agent_s_calls_go_through_the_same_door(database_url: str) -> None:
    app = App("t", model_limits=[ModelRateLimit("scripted", requests=10)])
    model = ScriptedModel(["one", "two"])
    agent = Agent("helper", model=model)
    app.add(agent)
    async with harness(app, database_url=database_url) as h:
        first, second = await h.start(agent, "One?"), await h.start(agent, "Two?")
        await h.idle()
        assert {await first.status(), await second.status()} == {RunStatus.COMPLETED, RunStatus.SLEEPING}
        await h.advance("6s")
        assert sorted([await first.result(5), await second.result(5)]) == ["one", "two"]


async def test_calls_of_one_run_wait_for_the_limit_each_for_itself(database_url: str) -> None:
    model = Asked()
    app = App("t", model_limits=[TEN_A_MINUTE])

    @app.function
    async def ask(ctx: Context[None], step: Step) -> list[str]:
        asked = [step.ai.infer(f"ask-{n}", model=model, messages="Well?") for n in range(3)]
        return [response.text for response in await asyncio.gather(*asked)]

    async with harness(app, database_url=database_url, replay_every_step=True) as h:
        model.clock = h
        run = await h.start(ask)
        await h.advance("1m")
        assert await run.result(5) == ["yes"] * 3
        assert model.seconds() == [0, 6, 12]


async def test_the_limit_of_a_fallback_is_that_of_its_own_provider(database_url: str) -> None:
    scripted = ScriptedModel([too_many(retry_after=40), "never asked"])
    model = Asked()
    app = make(
        scripted,
        ModelRateLimit("scripted", requests=1000),
        TEN_A_MINUTE,
        fallback=[model],
        retries=1,
    )
    async with harness(app, database_url=database_url) as h:
        model.clock = h
        first = await h.start("ask", "First?")
        await h.idle()
        assert await first.result(5) == "yes", "the provider of the fallback is not slowed"
        second = await h.start("ask", "Second?")
        await h.advance("39s")
        assert await second.status() is RunStatus.SLEEPING, "a wait is no failure: no other model is asked"
        await h.advance("2s")
        assert await second.result(5) == "never asked"


async def test_a_fallback_that_has_to_wait_is_asked_in_the_end_and_no_call_is_lost_from_the_ledger(
    database_url: str,
) -> None:
    gone = ProviderError("no such model", provider="scripted", model="m", status=404, retriable=False)
    scripted, model = ScriptedModel([gone, gone, gone]), Asked()
    app = make(scripted, TEN_A_MINUTE, fallback=[model])
    async with harness(app, database_url=database_url) as h:
        model.clock = h
        first = await h.start("ask", "First?")
        await h.idle()
        second = await h.start("ask", "Second?")
        await h.idle()
        assert await second.status() is RunStatus.SLEEPING
        await h.advance("6s")
        assert [await first.result(5), await second.result(5)] == ["yes", "yes"]
        calls = await app.client.store.queries.list_model_calls(run=second.id)
        told = [(call.attempt, call.provider, call.state) for _, call in calls]
        assert sorted(told) == [
            (0, "scripted", "not_billed"),
            (1, "scripted", "not_billed"),
            (2, "function", "done"),
        ]
        assert all(call.ended_at is not None for _, call in calls)


async def test_a_fallback_that_has_to_wait_leaves_a_failure_to_the_step_s_retries(database_url: str) -> None:
    scripted, model = ScriptedModel([too_many(retry_after=3), "again"]), Asked()
    app = make(scripted, TEN_A_MINUTE, fallback=[model], retries=1)
    async with harness(app, database_url=database_url) as h:
        model.clock = h
        filler = make(model, TEN_A_MINUTE, app="filler")
        async with harness(filler, database_url=database_url) as h2:
            await h2.start("ask", "I am first.")
            await h2.idle()
        run = await h.start("ask", "Well?")
        await h.advance("4s")
        assert await run.result(5) == "again"
        [step] = (await app.runs.steps(run.id)).data
        assert step.attempts == 2


async def test_a_timeout_of_the_step_does_not_count_the_wait(database_url: str) -> None:
    model = Asked()
    app = make(model, ModelRateLimit("function", requests=1, period="1h"), timeout="10s")
    async with harness(app, database_url=database_url) as h:
        model.clock = h
        runs = [await h.start("ask", "Well?") for _ in range(2)]
        await h.advance("1h")
        assert [await run.result(5) for run in runs] == ["yes", "yes"]


async def test_a_short_wait_stays_in_memory(database_url: str) -> None:
    begun: list[str] = []
    app = App(
        "t", database_url=database_url, model_limits=[ModelRateLimit("function", requests=8, period="2s")]
    )

    async def yes(request: ModelRequest) -> str:
        return "yes"

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        begun.append(ctx.run_id)
        return (await step.ai.infer("ask", model=yes, messages="Well?")).text

    await app.migrate()
    async with app.running():
        runs = [await app.start(ask) for _ in range(3)]
        assert [await run.result(20) for run in runs] == ["yes"] * 3
    assert len(begun) == 3, "no run was begun from the top again"


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ([TEN_A_MINUTE, ModelRateLimit("function", tokens=5)], "two limits for 'function'"),
        ([ModelRateLimit("opnai", requests=5)], "no provider of that name is known"),
        ([ModelRateLimit("openai:gpt-5", requests=5)], "no provider of that name is known"),
        ([RateLimit(5, period="1m")], "is no ModelRateLimit"),
        (TEN_A_MINUTE, "give a list of ModelRateLimit"),
    ],
)
def test_limits_that_make_no_sense_are_refused_where_the_app_is_made(limits: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        App("t", model_limits=limits)


async def test_without_a_limit_nothing_waits(database_url: str) -> None:
    model = Asked()
    app = make(model)
    async with harness(app, database_url=database_url) as h:
        model.clock = h
        runs = [await h.start("ask", "Well?") for _ in range(20)]
        await h.idle()
        assert [await run.result(5) for run in runs] == ["yes"] * 20
        assert model.at[-1] - model.at[0] == timedelta(0)
