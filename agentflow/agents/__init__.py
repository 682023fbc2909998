"""Agents: a loop of model calls and tool calls, each of them a durable step."""

from agentflow.agents.agent import Agent
from agentflow.agents.compaction import Compaction
from agentflow.agents.guardrails import Guardrail
from agentflow.agents.limits import Limits
from agentflow.agents.result import AgentResult
from agentflow.agents.subagents import AgentInput
from agentflow.agents.tools import Tool, ToolContext, tool

__all__ = [
    "Agent",
    "AgentInput",
    "AgentResult",
    "Compaction",
    "Guardrail",
    "Limits",
    "Tool",
    "ToolContext",
    "tool",
]
