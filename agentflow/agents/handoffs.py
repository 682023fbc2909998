"""Handoffs: tools of no effect but that another agent goes on with the same conversation."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from agentflow.models.response import ToolSpec

if TYPE_CHECKING:
    from agentflow.agents.agent import Agent


def handoff_name(agent: str) -> str:
    """The name of the tool that hands over to the agent of that name."""
    return f"transfer_to_{re.sub(r'[^a-zA-Z0-9_-]', '_', agent)}"[:64]


def handoff_spec(agent: Agent[Any, Any]) -> ToolSpec:
    """The tool as a model is told of it."""
    return ToolSpec(
        name=handoff_name(agent.name),
        description=f"Hand the conversation over to {agent.name}, who goes on with it in your place.",
        schema={"type": "object", "properties": {}, "additionalProperties": False},
    )
