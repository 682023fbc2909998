"""The public names are those of the contract, and each of them is there."""

from __future__ import annotations

import agentflow

PUBLIC = [
    "Agent",
    "AgentInput",
    "AgentResult",
    "App",
    "Approval",
    "ApprovalRequest",
    "Approve",
    "Context",
    "Decision",
    "Deny",
    "Edit",
    "Event",
    "Function",
    "FunctionRef",
    "Limits",
    "Message",
    "Model",
    "ModelRequest",
    "ModelResponse",
    "ModelSettings",
    "Respond",
    "Run",
    "RunHandle",
    "RunStatus",
    "Settings",
    "Signal",
    "Step",
    "StepRecord",
    "Tool",
    "ToolCall",
    "ToolContext",
    "ToolResult",
    "Usage",
    "cron",
    "errors",
    "on_event",
    "step_info",
    "tool",
]


def test_the_public_names_are_those_of_the_contract() -> None:
    assert agentflow.__all__ == PUBLIC


def test_every_public_name_can_be_imported() -> None:
    assert [name for name in agentflow.__all__ if getattr(agentflow, name, None) is None] == []
