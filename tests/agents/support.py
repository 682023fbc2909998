"""What the tests of agents share: a look at a run's steps, and replies written short."""

from __future__ import annotations

from typing import Any

from agentflow.app import App
from agentflow.models.messages import ToolCall
from agentflow.models.response import ModelRequest
from agentflow.runs import StepRecord


def call(name: str, /, **args: Any) -> ToolCall:
    return ToolCall(name=name, args=args)


async def steps_of(app: App, run_id: str) -> dict[str, StepRecord]:
    """The run's steps by key, in their order."""
    return {step.key: step for step in (await app.runs.steps(run_id)).data}


def results_in(request: ModelRequest) -> list[Any]:
    """What the model is told of the calls it has just made, in order."""
    return [result.content for result in request.messages[-1].tool_results]
