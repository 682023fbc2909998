"""Agents on the real providers, over HTTP: what they say of failures decides what is asked again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from agentflow import Agent, App, Approve, tool
from agentflow.errors import RunFailed
from agentflow.models.clients import close_clients
from agentflow.testing import fake_provider, harness
from agentflow.testing.provider_server import BrokenStream, Cut, FakeProvider, HttpError
from tests.agents.support import call, steps_of

MODELS = [
    "openai:gpt-5-mini",
    "openai-chat:gpt-4o",
    "anthropic:claude-sonnet-4-5",
    "anthropic:claude-sonnet-4-0",
]


class Resolution(BaseModel):
    reply: str
    refunded: Decimal


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    async with fake_provider([]) as provider:
        for name, value in provider.environment().items():
            monkeypatch.setenv(name, value)
        yield provider
        await close_clients()


@pytest.mark.parametrize("model", MODELS)
async def test_tools_approval_and_output_work_with_every_provider(
    sqlite_url: str, server: FakeProvider, model: str
) -> None:
    app, paid = App("t"), []

    @tool
    async def lookup(order_id: str) -> dict[str, Any]:
        """Find an order by its id."""
        return {"id": order_id, "total": 12}

    @tool(approval=True)
    async def refund(order_id: str, amount: Decimal) -> str:
        """Pay money back."""
        paid.append((order_id, amount))
        return "paid"

    agent = Agent("support", model=model, instructions="Help.", tools=[lookup, refund], output=Resolution)
    app.add(agent)
    server.add(
        [call("lookup", order_id="7"), call("refund", order_id="7", amount=12)],
        {"reply": "sorry", "refunded": "much"},
        {"reply": "sorry", "refunded": "12"},
    )
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(agent, "It is broken.")
        await h.idle()
        [request] = (await app.approvals.list(status="pending")).data
        await h.crash()
        await h.restart()
        await app.approvals.decide(request.id, Approve(), by="ana", args_digest=request.args_digest)
        assert await run.result(10) == Resolution(reply="sorry", refunded=Decimal(12))
        usage = await app.usage(run=run.id)
        assert list(await steps_of(app, run.id))[-1] == "support#0/turn2/model"
    assert paid == [("7", Decimal(12))]
    assert (server.generations, usage.calls, usage.billed) == (3, 3, 3)
    assert usage.cost is not None
    assert usage.cost > 0


@pytest.mark.parametrize("model", MODELS[:3])
async def test_what_was_not_billed_and_what_may_have_been_is_asked_again(
    sqlite_url: str, server: FakeProvider, model: str
) -> None:
    app = App("t")
    agent = Agent("support", model=model)
    app.add(agent)
    server.add(
        HttpError(429, retry_after=30.0), HttpError(529), Cut("half of it"), BrokenStream("a part"), "done"
    )
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(agent, "Hello.")
        await h.advance("1d")
        assert await run.result(10) == "done"
        usage = await app.usage(run=run.id)
    assert (server.generations, usage.calls, usage.billed) == (3, 5, 1)
    assert usage.billed + usage.possibly_billed >= server.generations


@pytest.mark.parametrize("model", MODELS[:3])
async def test_what_can_never_succeed_is_asked_once(
    sqlite_url: str, server: FakeProvider, model: str
) -> None:
    app = App("t")
    agent = Agent("support", model=model)
    app.add(agent)
    server.add(HttpError(401, "no such key"), "never")
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(agent, "Hello.")
        await h.advance("1d")
        with pytest.raises(RunFailed, match=r"ProviderError.*401.*no such key"):
            await run.result(10)
    assert server.generations == 0
