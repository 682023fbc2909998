"""agentflow: agents and LLM pipelines on durable steps. Each public name is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentflow import errors
    from agentflow.agents import Agent, AgentInput, AgentResult, Limits, Tool, ToolContext, tool
    from agentflow.app import App
    from agentflow.approvals import Approval, ApprovalRequest, Approve, Decision, Deny, Edit, Respond
    from agentflow.context import Context
    from agentflow.events import Event, Signal
    from agentflow.functions import Function, FunctionRef
    from agentflow.handles import RunHandle
    from agentflow.info import step_info
    from agentflow.models.messages import Message, ToolCall, ToolResult
    from agentflow.models.protocol import Model
    from agentflow.models.response import ModelRequest, ModelResponse, ModelSettings, Usage
    from agentflow.runs import Run, RunStatus, StepRecord
    from agentflow.settings import Settings
    from agentflow.step import Step
    from agentflow.triggers import cron, on_event

_PLACES = {
    "agentflow.agents": ("Agent", "AgentInput", "AgentResult", "Limits", "Tool", "ToolContext", "tool"),
    "agentflow.app": ("App",),
    "agentflow.approvals": ("Approval", "ApprovalRequest", "Approve", "Decision", "Deny", "Edit", "Respond"),
    "agentflow.context": ("Context",),
    "agentflow.events": ("Event", "Signal"),
    "agentflow.functions": ("Function", "FunctionRef"),
    "agentflow.handles": ("RunHandle",),
    "agentflow.info": ("step_info",),
    "agentflow.models.messages": ("Message", "ToolCall", "ToolResult"),
    "agentflow.models.protocol": ("Model",),
    "agentflow.models.response": ("ModelRequest", "ModelResponse", "ModelSettings", "Usage"),
    "agentflow.runs": ("Run", "RunStatus", "StepRecord"),
    "agentflow.settings": ("Settings",),
    "agentflow.step": ("Step",),
    "agentflow.triggers": ("cron", "on_event"),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
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


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("agentflow.errors")
    place = _PLACE_OF.get(name)
    if place is None:
        raise AttributeError(f"module 'agentflow' has no attribute {name!r}")
    value = getattr(import_module(place), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
