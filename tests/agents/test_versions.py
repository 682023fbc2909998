"""A run keeps the version of an agent that it began with, and what belongs to it, whatever is deployed meanwhile."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

# Imported here: it takes longer than the timeouts of these tests.
import genai_prices  # noqa: F401
import openai.resources.responses  # noqa: F401
import pytest

from agentflow import Agent, App, Context, ModelRequest, ModelSettings, Step, tool
from agentflow.agents.pins import Kept
from agentflow.errors import ConfigurationError
from agentflow.models.clients import close_clients
from agentflow.runs import RunStatus
from agentflow.testing import ScriptedModel, harness
from agentflow.testing.provider_server import FakeProvider, fake_provider
from tests.agents.support import call, steps_of


@tool
async def wait(step: Step) -> str:
    """Wait."""
    await step.sleep("nap", "1h")
    return "waited"


@tool
async def look(order_id: str) -> str:
    """Look."""
    return f"order {order_id}"


@tool
async def search(words: str) -> str:
    """Search."""
    return "found"


@pytest.fixture
async def provider(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    async with fake_provider() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
        await close_clients()


class Deployed:
    """An app whose function runs the agent that is deployed now."""

    def __init__(self, **first: Any) -> None:
        self.app = App("t")
        self.deploy(**first)

        @self.app.function(retries=0)
        async def ask(ctx: Context[None], step: Step) -> str:
            return str((await self.agent.run(step, "go")).output)

        self.ask = ask

    def deploy(self, **options: Any) -> None:
        self.agent: Agent[Any] = Agent(
            "support", **{"model": "openai:gpt-5-mini", "tools": [wait], **options}
        )


async def test_a_run_goes_on_with_the_version_it_began_with(
    provider: FakeProvider, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    deployed = Deployed(version="1", instructions="Be brief.", tools=[wait, look])
    asked: list[ModelRequest] = []
    replies = iter([call("wait"), call("look", order_id="7"), "done", "new"])

    def reply(request: ModelRequest) -> Any:
        asked.append(request)
        return next(replies)

    provider.add(*[reply] * 4)
    caplog.set_level(logging.INFO, "agentflow.agents")
    async with harness(deployed.app, database_url=database_url, strict_replay=True) as h:
        run = await h.start(deployed.ask)
        await h.idle()
        assert "version" not in caplog.text
        deployed.deploy(
            version="2",
            model="anthropic:claude-sonnet-4-5",
            instructions="Be long.",
            tools=[wait, search, look],
        )
        await h.advance("1h")
        assert await run.result(5) == "done"
        stored = (await steps_of(deployed.app, run.id))["support#0/turn0/model"]
        later = await h.start(deployed.ask)
        assert await later.result(5) == "new"
        fresh = (await steps_of(deployed.app, later.id))["support#0/turn0/model"]

    began, after, last, new = asked
    for request in (began, after, last):
        assert request.model == "openai:gpt-5-mini"
        assert request.instructions == "Be brief."
        assert [spec.name for spec in request.tools] == ["wait", "look"]
    assert new.model == "anthropic:claude-sonnet-4-5"
    assert (new.instructions, [spec.name for spec in new.tools]) == ("Be long.", ["wait", "search", "look"])

    def version(step: Any) -> Any:
        pinned = Kept.model_validate(step.output["keep"]).pinned
        return None if pinned is None else pinned.version

    assert (version(stored), version(fresh)) == ("1", "2")
    told = (
        f"run {run.id} goes on with what it pinned: it began with version '1' of agent 'support', "
        "of which the code has version '2' now"
    )
    assert told in caplog.text
    assert later.id not in caplog.text


@pytest.mark.parametrize("strict", [True, False])
async def test_what_is_not_pinned_and_differs_is_told_with_both_versions(
    sqlite_url: str, caplog: pytest.LogCaptureFixture, strict: bool
) -> None:
    deployed = Deployed(version="1")
    model = ScriptedModel([call("wait"), "done"])
    told = (
        "model call 'support#0/turn0/model' would ask something else now than what its stored answer answers "
        "(it began with version '1' of agent 'support', of which the code has version '2' now)"
    )
    async with harness(deployed.app, model=model, database_url=sqlite_url, strict_replay=strict) as h:
        run = await h.start(deployed.ask)
        await h.idle()
        deployed.deploy(version="2", settings=ModelSettings(temperature=0.5))
        await h.advance("1h")
        if strict:
            assert told in str((await deployed.app.runs.get(run.id)).reason)
            deployed.deploy(version="1")
            await h.advance("1h")
        else:
            assert told in caplog.text
        assert await run.status() == RunStatus.COMPLETED


async def test_an_agent_that_had_no_version_may_get_one(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    deployed = Deployed()
    caplog.set_level(logging.INFO, "agentflow.agents")
    async with harness(
        deployed.app, model=ScriptedModel([call("wait"), "done"]), database_url=sqlite_url
    ) as h:
        run = await h.start(deployed.ask)
        await h.idle()
        deployed.deploy(version="1")
        await h.advance("1h")
        assert await run.result(5) == "done"
    assert "it began with no version of agent 'support', of which the code has version '1' now" in caplog.text


async def test_a_pinned_tool_that_is_gone_is_not_named_as_one_that_is_there(sqlite_url: str) -> None:
    deployed = Deployed(version="1", tools=[wait, look])
    model = ScriptedModel([call("wait"), call("look", order_id="7"), "done"])
    async with harness(deployed.app, model=model, database_url=sqlite_url) as h:
        run = await h.start(deployed.ask)
        await h.idle()
        deployed.deploy(version="2", tools=[wait])
        await h.advance("1h")
        assert await run.result(5) == "done"
    [result] = model.requests[-1].messages[-1].tool_results
    assert result.content == "There is no tool 'look'. There is: wait."


def test_a_version_is_a_text_and_can_be_overridden() -> None:
    agent = Agent("support", model="openai:gpt-5-mini", version="1")
    assert (agent.version, agent.override(version="2").version, agent.override(model="a:b").version) == (
        "1",
        "2",
        "1",
    )
    for wrong in ("", 1):
        with pytest.raises(ConfigurationError, match="version="):
            Agent("support", model="openai:gpt-5-mini", version=wrong)  # type: ignore[arg-type]
