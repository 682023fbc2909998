"""The public names are those of the contract, and each of them is there."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import agentflow
from agentflow import providers, testing

GUIDE = Path(__file__).parent.parent / "providers" / "README.md"

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


def test_every_name_that_the_guide_for_providers_imports_or_spells_out_is_there() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    spelled_out = re.findall(r"`((?:agentflow|agentflow_\w+)(?:\.\w+)+)", guide)
    assert len(spelled_out) > 5
    assert [name for name in spelled_out if not is_there(name)] == []


def test_every_function_that_the_guide_for_providers_calls_by_name_is_there() -> None:
    called = set(re.findall(r"`(\w+)\(", GUIDE.read_text(encoding="utf-8")))
    optional = (providers.SdkUsage, providers.ContentCheck, providers.PricedApart)
    methods = {name for protocol in optional for name in dir(protocol)}
    known = {*dir(providers), *methods, *testing.__all__, "OpenAIChat", "make"}
    assert called >= {"provider_contract", "fake_provider", "lower_output"}
    assert called - known == set()


def is_there(name: str) -> bool:
    """Whether the dotted name is something in a module, or a module."""
    module, _, attribute = name.rpartition(".")
    return hasattr(import_module(module), attribute) or find_spec(name) is not None
