"""What an agent began with, stored beside its first answer: a deploy meanwhile changes nothing of it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from agentflow.agents.handoffs import handoff_spec
from agentflow.agents.limits import SubAgents
from agentflow.context import Context
from agentflow.errors import ConfigurationError
from agentflow.models.protocol import Model, model_ref
from agentflow.models.registry import resolve_model
from agentflow.models.response import ToolSpec

if TYPE_CHECKING:
    from agentflow.agents.agent import Agent
    from agentflow.agents.tools import Tool


class Pinned(BaseModel):
    """Version, model, rendered instructions and tools, as they were at the agent's first call in the run."""

    version: str | None = None
    model: str
    instructions: str | None
    tools: list[ToolSpec]
    started_at: int


class Kept(BaseModel):
    """What is stored beside a model's answer."""

    pinned: Pinned | None = None
    sub_agents: SubAgents | None = None
    """What the sub-agents of the turn before have used."""


async def pin(
    agent: Agent[Any, Any], tools: Sequence[Tool[..., Any]], context: Context[Any], now: int
) -> Pinned:
    """What the agent begins with now; these are its tools."""
    model = resolve_model(agent.model)
    specs = [tool.spec for tool in tools] + [handoff_spec(other) for other in agent.handoffs]
    if specs and not model.capabilities.tools:
        raise ConfigurationError(f"agent {agent.name!r} has tools, and {model_ref(model)} cannot call any")
    instructions = await _rendered(agent, context)
    return Pinned(
        version=agent.version,
        model=model_ref(model),
        instructions=instructions,
        tools=specs,
        started_at=now,
    )


def told_of_version(agent: Agent[Any, Any], pinned: Pinned) -> str:
    """That the code has another version of the agent now than the run began with; "" where it has the same."""
    if pinned.version == agent.version:
        return ""
    began, now = (
        "no version" if version is None else f"version {version!r}"
        for version in (pinned.version, agent.version)
    )
    return f"it began with {began} of agent {agent.name!r}, of which the code has {now} now"


def pinned_models(agent: Agent[Any, Any], pinned: Pinned) -> list[Model]:
    """The model that the agent began with, and its fallbacks."""
    first = _found(pinned.model, resolve_model(agent.model))
    return [first, *map(resolve_model, agent.fallback)]


async def _rendered(agent: Agent[Any, Any], context: Context[Any]) -> str | None:
    given = agent.instructions
    if not callable(given):
        return given
    rendered: Any = given(context)
    text = await rendered if inspect.isawaitable(rendered) else rendered
    if not isinstance(text, str):
        raise ConfigurationError(
            f"the instructions of agent {agent.name!r} came out as {type(text).__name__}: they have to be a str"
        )
    return text


def _found(ref: str, current: Model) -> Model:
    """The model of that name where it can be found; else the one that the agent has now."""
    if model_ref(current) == ref:
        return current
    try:
        return resolve_model(ref)
    except ConfigurationError:
        return current
