"""Sub-agents that are called in one turn share what is left of their parent's limits: none has all of it for itself."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from agentflow import Agent, AgentInput, App, Limits, ModelRequest, ModelResponse, Usage, tool
from agentflow.runs import RunStatus
from agentflow.testing import harness
from tests.agents.support import call

EACH = Usage(input_tokens=60, output_tokens=40)
"""Of every answer here: a hundred tokens, a dollar."""


@tool
async def think() -> str:
    return "hm"


def said(*calls: Any) -> ModelResponse:
    named = [each.model_copy(update={"index": n}) for n, each in enumerate(calls)]
    return ModelResponse(tool_calls=named, usage=EACH, cost=Decimal(1))


async def busy(request: ModelRequest) -> ModelResponse:
    """Never comes to an end by itself."""
    return said(call("think"))


def busy_agents(*, middle: int = 0, beside: int = 3, **limits: Any) -> Agent[Any, Any]:
    """An agent that calls so many others at once; they think, or call so many that think in turn."""

    async def delegate(request: ModelRequest) -> ModelResponse:
        name = request.tools[0].name
        return said(
            *[call(name, prompt="Think.") for _ in range(middle if name == "helper" and middle else beside)]
        )

    helper = Agent("helper", model=busy, tools=[think])
    called = helper
    if middle:
        called = Agent("middle", model=delegate, tools=[helper.as_tool("Helps.")])
    return Agent("top", model=delegate, tools=[called.as_tool("Helps.")], limits=Limits(**limits))


@pytest.mark.parametrize("limits", [{"tokens": 1_000}, {"cost_usd": 10}])
async def test_three_at_once_together_use_what_is_left_and_one_call_each_at_most(
    database_url: str, limits: dict[str, Any]
) -> None:
    top, app = busy_agents(**limits), App("t")
    app.add(top)
    async with harness(app, database_url=database_url) as h:
        run = await h.start(top, "go")
        await h.idle()
        assert await run.status() is RunStatus.FAILED
        error = (await app.runs.get(run.id)).error
        assert error is not None
        assert error.name == "BudgetExceeded"
        assert "which its limits leave to all agents that were called by" in error.message
        calls = (await app.usage(run=run.id)).calls
        assert 10 <= calls <= 10 + 2, "nine were left, and all three may begin their last call at once"
        assert await app.budgets() == []


async def test_one_alone_has_all_that_is_left(database_url: str) -> None:
    top, app = busy_agents(beside=1, tokens=1_000), App("t")
    app.add(top)
    async with harness(app, database_url=database_url) as h:
        run = await h.start(top, "go")
        await h.idle()
        assert (await app.usage(run=run.id)).calls == 10
        [child] = (await app.runs.list(function="agents/helper")).data
        given = AgentInput.model_validate((await app.runs.get(child.id)).input)
        assert given.budget is not None
        assert (given.budget.tokens, given.budget.together) == (900, ())


async def test_those_that_are_called_by_those_that_are_called_share_it_too(database_url: str) -> None:
    top, app = busy_agents(middle=2, beside=3, tokens=2_000), App("t")
    app.add(top)
    async with harness(app, database_url=database_url) as h:
        run = await h.start(top, "go")
        await h.idle()
        assert await run.status() is RunStatus.FAILED
        calls = (await app.usage(run=run.id)).calls
        assert 20 <= calls <= 20 + 9, "two times three think at once, beside the three that called them"
