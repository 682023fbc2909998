"""An agent's loop: model calls and tool calls are steps with fixed keys, and no answer is asked for twice."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from agentflow import Agent, AgentResult, App, Context, Limits, ModelRequest, ModelResponse, Step, Usage, tool
from agentflow.errors import (
    BudgetExceeded,
    ConfigurationError,
    ModelRetry,
    OutputInvalid,
    RateLimited,
    RunFailed,
    ToolFailed,
)
from agentflow.runs import RunStatus
from agentflow.testing import ScriptedModel, harness
from tests.agents.support import call, results_in, steps_of


class Resolution(BaseModel):
    reply: str
    refunded: Decimal


@tool
async def lookup(order_id: str) -> dict[str, Any]:
    """Find an order by its id."""
    return {"id": order_id, "total": 12}


async def test_model_and_tool_calls_are_steps_with_the_documented_keys(database_url: str) -> None:
    app = App("t")
    agent = Agent(
        "support", model="openai:gpt-5-mini", instructions="Help.", tools=[lookup], output=Resolution
    )
    app.add(agent)
    model = ScriptedModel(
        [call("lookup", order_id="7"), Resolution(reply="It is on its way.", refunded=Decimal("1.50"))]
    )
    async with harness(app, model=model, database_url=database_url) as h:
        run = await h.start(agent, "Where is my order?")
        assert await run.result(5) == Resolution(reply="It is on its way.", refunded=Decimal("1.50"))
        assert list(await steps_of(app, run.id)) == [
            "support#0/turn0/model",
            "support#0/turn0/0:lookup",
            "support#0/turn1/model",
        ]
        first, second = model.requests
        assert (first.prompt, first.instructions) == ("Where is my order?", "Help.")
        assert [spec.name for spec in first.tools] == ["lookup"]
        assert results_in(second) == [{"id": "7", "total": 12}]
        assert (await app.runs.get(run.id)).input == {"prompt": "Where is my order?", "thread": None}


async def test_an_agent_in_a_function_gives_output_messages_usage_and_steps(sqlite_url: str) -> None:
    app = App("t")
    agent = Agent("support", model="openai:gpt-5-mini", tools=[lookup])
    results: list[AgentResult[str]] = []

    @app.function
    async def ask(ctx: Context[str], step: Step) -> str:
        results.append(await agent.run(step, ctx.data))
        again = await agent.run(step, "And now?")
        return results[-1].output + again.output

    used = Usage(input_tokens=10, output_tokens=5)
    model = ScriptedModel(
        [
            ModelResponse(tool_calls=[call("lookup", order_id="7")], usage=used, cost=Decimal("0.25")),
            ModelResponse(text="a", usage=used, cost=Decimal("0.5")),
            "b",
        ]
    )
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(ask, "Where is it?")
        assert await run.result(5) == "ab"
        steps = await steps_of(app, run.id)
        assert list(steps)[-1] == "support#1/turn0/model"
        assert steps["support#0/turn0/model"].cost == Decimal("0.25")
    [result] = results
    assert (result.usage, result.cost) == (used + used, Decimal("0.75"))
    assert [message.role for message in result.messages] == ["user", "assistant", "tool", "assistant"]
    assert result.steps == ["support#0/turn0/model", "support#0/turn0/0:lookup", "support#0/turn1/model"]


async def test_tool_calls_of_one_turn_run_at_once_and_answer_in_their_order(sqlite_url: str) -> None:
    app, running = App("t"), asyncio.Barrier(2)

    @tool
    async def meet(name: str) -> str:
        await running.wait()  # would never return, were the calls made one after the other
        return name

    agent = Agent("support", model="openai:gpt-5-mini", tools=[meet])
    app.add(agent)
    model = ScriptedModel([[call("meet", name="first"), call("meet", name="second")], "done"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(agent, "go")
        assert await run.result(5) == "done"
        assert set(await steps_of(app, run.id)) == {
            "support#0/turn0/model",
            "support#0/turn0/0:meet",
            "support#0/turn0/1:meet",
            "support#0/turn1/model",
        }
    assert results_in(model.requests[1]) == ["first", "second"]


async def test_two_runs_of_an_agent_under_gather_do_not_share_steps(sqlite_url: str) -> None:
    app = App("t")
    agent = Agent("echo", model="openai:gpt-5-mini")

    @app.function
    async def both(ctx: Context[None], step: Step) -> list[str]:
        results = await asyncio.gather(agent.run(step, "one"), agent.run(step, "two"))
        await step.sleep("nap", "1h")
        return [result.output for result in results]

    model = ScriptedModel([lambda request: request.prompt] * 2)
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(both)
        await h.advance("1h")
        assert await run.result(5) == ["one", "two"]
    assert len(model.requests) == 2


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (call("find", order_id="7"), "There is no tool 'find'. There is: lookup."),
        (call("lookup"), "The arguments do not validate: order_id: Field required"),
        (
            call("lookup", order_id="7", more=1),
            "The arguments do not validate: more: Extra inputs are not permitted",
        ),
    ],
)
async def test_calls_that_cannot_be_made_are_answered_to_the_model(
    sqlite_url: str, reply: Any, told: str
) -> None:
    app = App("t")
    agent = Agent("support", model="openai:gpt-5-mini", tools=[lookup])
    app.add(agent)
    model = ScriptedModel([reply, "sorry"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(agent, "go")
        assert await run.result(5) == "sorry"
        assert list(await steps_of(app, run.id)) == ["support#0/turn0/model", "support#0/turn1/model"]
    [result] = model.requests[1].messages[-1].tool_results
    assert (result.content, result.is_error) == (told, True)


@pytest.mark.parametrize("error", [ModelRetry("Give the full id."), ToolFailed("The shop is closed.")])
async def test_what_a_tool_raises_for_the_model_is_told_to_it_without_a_retry(
    sqlite_url: str, error: Exception
) -> None:
    app, calls = App("t"), 0

    @tool
    def find(order_id: str) -> str:
        nonlocal calls
        calls += 1
        raise error

    agent = Agent("support", model="openai:gpt-5-mini", tools=[find])
    app.add(agent)
    model = ScriptedModel([call("find", order_id="7"), "sorry"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(agent, "go")
        assert await run.result(5) == "sorry"
    assert (calls, results_in(model.requests[1])) == (1, [str(error)])


async def test_another_exception_of_a_tool_is_retried_and_then_fails_the_run(sqlite_url: str) -> None:
    app, calls = App("t"), 0

    @tool(retry=2)
    async def find(order_id: str) -> str:
        nonlocal calls
        calls += 1
        raise OSError("no route")

    agent = Agent("support", model="openai:gpt-5-mini", tools=[find])
    app.add(agent)
    async with harness(app, model=ScriptedModel([call("find", order_id="7")]), database_url=sqlite_url) as h:
        run = await h.start(agent, "go")
        await h.advance("1h")
        with pytest.raises(RunFailed) as failed:
            await run.result(5)
    assert calls == 3
    assert (failed.value.error.name, failed.value.error.message) == ("OSError", "no route")
    assert failed.value.error.step_id == "support#0/turn0/0:find"


async def test_a_tool_that_takes_the_step_runs_steps_of_its_own(sqlite_url: str) -> None:
    app = App("t")

    @tool
    async def research(topic: str, step: Step) -> str:
        found = await step.run("search", lambda: [topic, topic])
        await step.sleep("pause", "1h")
        return "+".join(found)

    agent = Agent("support", model="openai:gpt-5-mini", tools=[research])
    app.add(agent)
    model = ScriptedModel([call("research", topic="a"), "done"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(agent, "go")
        await h.advance("1h")
        assert await run.result(5) == "done"
        assert "support#0/turn0/0:research/search" in await steps_of(app, run.id)
    assert results_in(model.requests[1]) == ["a+a"]


async def test_an_invalid_output_is_asked_for_again_as_a_new_step(sqlite_url: str) -> None:
    app = App("t")
    agent = Agent("support", model="openai:gpt-5-mini", output=Resolution)
    app.add(agent)
    model = ScriptedModel(["no json", {"reply": "x"}, {"reply": "x", "refunded": "1"}])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(agent, "go")
        assert await run.result(5) == Resolution(reply="x", refunded=Decimal(1))
        assert list(await steps_of(app, run.id)) == [f"support#0/turn{turn}/model" for turn in range(3)]
    assert "not valid JSON" in model.requests[1].prompt
    assert "refunded: Field required" in model.requests[2].prompt


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("output", "reply", "value"),
    [
        (int, 3, 3),
        (list[Resolution], [{"reply": "a", "refunded": 1}], [Resolution(reply="a", refunded=Decimal(1))]),
        (Literal["yes", "no"], "yes", "yes"),
        (Resolution | Point, {"x": 1}, Point(1)),
        (dict[str, dt.date], {"a": "2026-01-02"}, {"a": dt.date(2026, 1, 2)}),
        (bool | None, None, None),
    ],
    ids=str,
)
async def test_the_output_may_be_any_type(sqlite_url: str, output: Any, reply: Any, value: Any) -> None:
    app = App("t")
    agent = Agent("support", model="openai:gpt-5-mini", output=output)
    app.add(agent)
    model = ScriptedModel([lambda request: _as_asked(request, reply)])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        assert await (await h.start(agent, "go")).result(5) == value


def _as_asked(request: ModelRequest, reply: Any) -> str:
    """The JSON text of the reply, in the wrapper that the schema demands."""
    assert request.output is not None
    return json.dumps({"value": reply} if request.output.wrapped else reply)


async def test_an_output_that_stays_invalid_fails_the_run_with_what_the_model_said(sqlite_url: str) -> None:
    app, responses = App("t"), []
    agent = Agent("support", model="openai:gpt-5-mini", output=Resolution)

    @app.function
    async def ask(ctx: Context[None], step: Step) -> None:
        try:
            await agent.run(step, "go")
        except OutputInvalid as error:
            responses.append(error.response)
            raise

    model = ScriptedModel(["one", "two", "three"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(ask)
        with pytest.raises(RunFailed, match="OutputInvalid"):
            await run.result(5)
        assert len(await steps_of(app, run.id)) == 3
    assert [response.text for response in responses] == ["three"]
    assert "mend this" in model.requests[1].prompt


async def test_a_refusal_raises_refused_and_is_not_asked_again(sqlite_url: str) -> None:
    app = App("t")
    agent = Agent("support", model="openai:gpt-5-mini")
    app.add(agent)
    model = ScriptedModel([ModelResponse(text="I will not.", finish_reason="refusal")])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(agent, "go")
        await h.advance("1d")
        with pytest.raises(RunFailed, match=r"Refused.*I will not"):
            await run.result(5)
    assert len(model.requests) == 1


async def test_a_pause_is_continued(sqlite_url: str) -> None:
    app = App("t")
    agent = Agent("support", model="openai:gpt-5-mini")
    app.add(agent)

    def go_on(request: ModelRequest) -> str:
        assert [message.role for message in request.messages] == ["user", "assistant"]
        return f"{request.messages[-1].text} end"

    pause = ModelResponse(text="begin", finish_reason="pause")
    async with harness(app, model=ScriptedModel([pause, go_on]), database_url=sqlite_url) as h:
        assert await (await h.start(agent, "go")).result(5) == "begin end"


async def test_the_run_of_an_agent_replays_without_asking_again(sqlite_url: str) -> None:
    app = App("t")
    agent = Agent("support", model="openai:gpt-5-mini", tools=[lookup])

    @app.function
    async def ask(ctx: Context[str], step: Step) -> str:
        result = await agent.run(step, ctx.data)
        await step.sleep("nap", "1h")
        return result.output

    model = ScriptedModel([call("lookup", order_id="7"), "found"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(ask, "go")
        await h.idle()
        assert await run.status() is RunStatus.SLEEPING
        await h.crash()
        await h.restart()
        await h.advance("1h")
        assert await run.result(5) == "found"
    assert len(model.requests) == 2


async def test_a_crash_between_steps_repeats_no_model_call(sqlite_url: str) -> None:
    app, reached, calls = App("t"), asyncio.Event(), 0

    @tool
    async def slow(order_id: str) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            reached.set()
            await asyncio.Event().wait()  # the worker dies in here
        return "done"

    agent = Agent("support", model="openai:gpt-5-mini", tools=[slow])
    app.add(agent)
    model = ScriptedModel([call("slow", order_id="7"), "found"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(agent, "go")
        await reached.wait()
        await h.crash()
        assert len(model.requests) == 1
        await h.restart()
        await h.advance("1m")
        assert await run.result(5) == "found"
    assert (len(model.requests), calls) == (2, 2)


async def test_a_run_goes_on_with_the_instructions_it_began_with(sqlite_url: str) -> None:
    app, rendered = App("t"), []

    def instructions(ctx: Context[Any]) -> str:
        rendered.append(ctx.run_id)
        return f"Time {len(rendered)}."

    @tool
    async def wait(step: Step) -> str:
        await step.sleep("nap", "1h")
        return "waited"

    agent = Agent("support", model="openai:gpt-5-mini", instructions=instructions, tools=[wait])
    app.add(agent)
    model = ScriptedModel([call("wait"), "done"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(agent, "go")
        await h.advance("1h")
        assert await run.result(5) == "done"
    assert rendered == [run.id]
    assert [request.instructions for request in model.requests] == ["Time 1.", "Time 1."]


async def test_an_agent_needs_its_sub_agents_registered_before_the_first_call(sqlite_url: str) -> None:
    app = App("t")
    other = Agent("other", model="openai:gpt-5-mini")
    agent = Agent("support", model="openai:gpt-5-mini", tools=[other.as_tool("Ask it.")])

    @app.function(retries=0)
    async def ask(ctx: Context[None], step: Step) -> None:
        await agent.run(step, "go")

    model = ScriptedModel(["never"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        with pytest.raises(RunFailed, match=r"ConfigurationError.*'support' needs agent 'other'"):
            await (await h.start(ask)).result(5)
    assert model.requests == []


def test_what_this_version_cannot_do_is_refused_in_words() -> None:
    with pytest.raises(ConfigurationError, match="compaction"):
        Agent("support", model="openai:gpt-5-mini", compaction=object())


class TestLimits:
    @pytest.mark.parametrize(
        ("limits", "requests", "why"),
        [
            (Limits(turns=2), 2, "turn 3 would pass turns=2"),
            (Limits(tool_calls=1), 2, "1 tool calls are made, 1 more would pass tool_calls=1"),
            (Limits(tokens=30), 2, "30 tokens are used"),
            (Limits(cost_usd=0.5), 2, "0.50 US dollars are spent"),
            (Limits(deadline="1h"), 1, "its deadline was"),
        ],
    )
    async def test_are_checked_before_the_call_that_would_pass_them(
        self, sqlite_url: str, limits: Limits, requests: int, why: str
    ) -> None:
        app = App("t")

        @tool
        async def again(step: Step) -> str:
            await step.sleep("nap", "1h")
            return "again"

        agent = Agent("support", model="openai:gpt-5-mini", tools=[again], limits=limits)

        @app.function
        async def ask(ctx: Context[None], step: Step) -> str:
            try:
                await agent.run(step, "go")
            except BudgetExceeded as error:
                return str(error)
            return "no limit"

        reply = ModelResponse(
            tool_calls=[call("again")], usage=Usage(input_tokens=10, output_tokens=5), cost=Decimal("0.25")
        )
        model = ScriptedModel([reply] * 9)
        async with harness(app, model=model, database_url=sqlite_url) as h:
            run = await h.start(ask)
            await h.advance("12h")
            assert why in await run.result(5)
        assert len(model.requests) == requests

    async def test_on_money_fail_closed_when_a_cost_is_not_known(self, sqlite_url: str) -> None:
        app = App("t")
        agent = Agent("support", model="openai:gpt-5-mini", tools=[lookup], limits=Limits(cost_usd=1))
        app.add(agent)
        model = ScriptedModel([call("lookup", order_id="7"), "never"])
        async with harness(app, model=model, database_url=sqlite_url) as h:
            with pytest.raises(RunFailed, match=r"BudgetExceeded.*the cost of a model call is not known"):
                await (await h.start(agent, "go")).result(5)
        assert len(model.requests) == 1

    async def test_hold_for_sub_agents_too(self, database_url: str) -> None:
        app = App("t")
        helper = Agent("helper", model="openai:gpt-5-mini", tools=[lookup])
        agent = Agent(
            "support", model="openai:gpt-5-mini", tools=[helper.as_tool("Ask.")], limits=Limits(tokens=40)
        )
        app.add(agent)
        used = Usage(input_tokens=10, output_tokens=5)

        def reply(*calls: Any, text: str = "") -> ModelResponse:
            return ModelResponse(text=text, tool_calls=list(calls), usage=used)

        model = ScriptedModel(
            [
                reply(call("helper", prompt="help")),
                reply(call("lookup", order_id="7")),  # the helper's first call: 15 of its 25 tokens
                reply(text="helped"),  # its second: 30, over the rest it was given, but begun before
                reply(text="never"),
            ]
        )
        async with harness(app, model=model, database_url=database_url) as h:
            run = await h.start(agent, "go")
            with pytest.raises(RunFailed, match=r"BudgetExceeded.*45 tokens are used"):
                await run.result(5)
            [child] = (await app.runs.list(function="agents/helper")).data
            assert child.parent_id == run.id
            assert (await app.runs.get(child.id)).input["budget"]["tokens"] == 25
        assert len(model.requests) == 3


async def test_a_provider_that_fails_for_good_raises_its_own_error_also_on_replay(sqlite_url: str) -> None:
    app, seen = App("t"), []
    agent = Agent("support", model="openai:gpt-5-mini")

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        try:
            await agent.run(step, "go")
        except RateLimited as error:
            seen.append((error.status, error.billed))
        await step.sleep("nap", "1h")
        return "went on"

    limited = RateLimited("slow down", status=429, retriable=False)
    async with harness(app, model=ScriptedModel([limited]), database_url=sqlite_url) as h:
        run = await h.start(ask)
        await h.advance("1h")
        assert await run.result(5) == "went on"
    assert seen == [(429, "no"), (429, "no")]


async def test_an_answer_that_was_cut_is_told_of_once(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = App("t")
    agent = Agent("talker", model=ScriptedModel([ModelResponse(text="And so", finish_reason="length")]))

    @app.function
    async def talk(ctx: Context[str], step: Step) -> str:
        result = await agent.run(step, ctx.data)
        await step.sleep("nap", "1h")
        return result.output

    async with harness(app, database_url=database_url) as h:
        run = await h.start(talk, "Go on.")
        await h.advance("1h")
        assert await run.result(5) == "And so"
    [told] = [record.getMessage() for record in caplog.records if "was cut" in record.getMessage()]
    assert f"of agent 'talker' in run {run.id} was cut at max_tokens" in told
