"""Tools whose effect may happen once: marked before they run, and a person decides where nobody knows how it ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from agentflow.agents.tools import Tool
from agentflow.approvals import Approval, Decision
from agentflow.errors import InDoubt, ModelRetry, NonRetriable, RetryAfter, StepError, ToolFailed
from agentflow.step_runner import Attempt

CHOICES: Final = {
    "approve": "run it again",
    "respond": "it has happened: this is its result",
    "deny": "give up: the run fails",
}

_KNOWN = (ModelRetry, ToolFailed, NonRetriable)
"""What a tool raises when it knows what has become of its effect."""
_NEVER_ENDED = ("TimeoutError", "SystemExit")
"""Errors of an attempt that was ended from outside of the tool."""

Call = Callable[[], Awaitable[Any]]


async def call_once(attempt: Attempt, call: Call, *, tool: Tool[..., Any]) -> Any:
    """Make the call, unless an attempt before this one has begun it. Raises `InDoubt`."""
    if not await attempt.mark_effect():
        raise InDoubt(
            f"step {attempt.key!r}: an earlier attempt had begun to run tool {tool.name!r} and did not come to its "
            "end (its process died or was stopped, or its time was over)"
        )
    try:
        return await call()
    except RetryAfter:
        await attempt.unmark_effect()  # who asks to be called again says that nothing has happened
        raise
    except _KNOWN:
        raise
    except Exception as error:
        raise InDoubt(
            f"step {attempt.key!r}: tool {tool.name!r} raised {type(error).__name__}: {error}"
        ) from error


def is_in_doubt(error: InDoubt | StepError) -> bool:
    """Whether nobody knows what became of the effect of the call that ended so."""
    return isinstance(error, InDoubt) or error.name in _NEVER_ENDED


def policy_in_doubt(tool: Tool[..., Any]) -> Approval:
    """Who is asked about a call that is in doubt: those who decide about the tool's calls. Nothing may be edited."""
    return replace(tool.approval or Approval(), when=None, editable=())


def result_of(decision: Decision, error: Exception) -> Any:
    """What a person says the call's result is. Raises `InDoubt` when they give up."""
    if decision.reason is None:
        return decision.value
    if decision.reason == "timeout":
        raise InDoubt(f"{error}; nobody decided in time what has become of it")
    told = f": {decision.comment}" if decision.comment else ""
    raise InDoubt(f"{error}; {decision.by} gave it up{told}")
