"""Every error agentflow raises, as one tree.

A message says what happened, with ids, then what to do. What unwinds a run (`Suspend`, `LeaseLost`) is not here:
it is private to the engine and derives from `BaseException`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from agentflow.approvals import ApprovalRequest
    from agentflow.models.response import ModelResponse
    from agentflow.runs import ErrorInfo

Billed = Literal["no", "possible", "yes"]


class AgentflowError(Exception):
    """The root of all errors of agentflow."""


class ConfigurationError(AgentflowError):
    """The program is put together wrongly; the message names the place and the remedy."""


class DatabaseUnavailable(AgentflowError):
    """The database did not answer for so long that it was given up; nothing is known to be wrong with what was asked.

    A write waits for the database as long as the App is open, so this comes from reads, and from writes when the App is
    closed meanwhile: such a write may have been carried out all the same.
    """


class NotFound(AgentflowError):
    """Nothing of that id exists (or the caller may not see it)."""


class InvalidInput(AgentflowError):
    """Data that does not validate, or a value that can have no meaning (a naive datetime, a negative duration)."""


class IdempotencyConflict(AgentflowError):
    """The idempotency key was used before with other data."""


class NoWaiter(AgentflowError):
    """Nobody waits for the signal, and it was not to be buffered."""


class SignalConflict(AgentflowError):
    """A second live waiter, or a second buffered signal, of one name."""


class RunFailed(AgentflowError):
    """The run ended as failed."""

    def __init__(self, run_id: str, error: ErrorInfo) -> None:
        super().__init__(f"run {run_id} failed: {error.name}: {error.message}")
        self.run_id = run_id
        self.error = error


class RunCancelled(AgentflowError):
    """The run was cancelled."""

    def __init__(self, run_id: str, reason: str | None = None) -> None:
        super().__init__(f"run {run_id} was cancelled" + (f": {reason}" if reason else ""))
        self.run_id = run_id
        self.reason = reason


class RunSkipped(AgentflowError):
    """Flow control dropped the run before it began."""

    def __init__(self, run_id: str, reason: str | None = None) -> None:
        super().__init__(f"run {run_id} was skipped" + (f": {reason}" if reason else ""))
        self.run_id = run_id
        self.reason = reason


class StepError(AgentflowError):
    """A step failed for good: its attempts are used up, or it raised `NonRetriable`.

    Raised at the step's call, on the first run and on replay alike; caught, the run goes on and the body is not called
    again. `name` and `message` are the original exception's.
    """

    def __init__(
        self,
        step_id: str,
        *,
        name: str,
        message: str,
        attempts: int = 1,
        attributes: Mapping[str, Any] | None = None,
        traceback: str | None = None,
    ) -> None:
        super().__init__(f"step {step_id!r} failed after {attempts} attempt(s): {name}: {message}")
        self.step_id = step_id
        self.name = name
        self.message = message
        self.attempts = attempts
        self.attributes: dict[str, Any] = dict(attributes or {})
        self.traceback = traceback


class NonRetriable(AgentflowError):
    """Raised by user code: no further attempt, whatever the policy says."""


class RetryAfter(AgentflowError):
    """Raised by user code: try again after `delay` (a timedelta, seconds, or "30s"). The attempt counts."""

    def __init__(self, delay: timedelta | float | str, message: str = "") -> None:
        super().__init__(message or f"retry after {delay}")
        self.delay = delay


class NestedStep(AgentflowError):
    """A step was called inside the body of another one. Fails the run, whatever the body catches."""


class ExpressionFailed(AgentflowError):
    """A CEL expression has no value for this data: a missing field, the wrong type, or more work than its budget."""


class Unserialisable(AgentflowError):
    """A value that would not come back equal from JSON; the message names the step and the path."""


class LimitExceeded(AgentflowError):
    """A limit of the settings was passed; the message names the step and the figure. Fails the run at once."""


class InvokeTimeout(AgentflowError):
    """An invoked run did not end within the timeout of `step.invoke`."""


class ReplayMismatch(AgentflowError):
    """The code no longer fits the stored steps. Retried with back-off, so that a fixed deploy heals the run."""


class Poisoned(AgentflowError):
    """The run's process died again and again while it executed the run, and at last nothing else."""


class AlreadyDecided(AgentflowError):
    """The approval was decided before; `request` tells by whom and how."""

    def __init__(self, message: str, *, request: ApprovalRequest) -> None:
        super().__init__(message)
        self.request = request


class ApprovalExpired(AgentflowError):
    """The approval's time is over, or its run has ended."""


class NotPermitted(AgentflowError):
    """This person or key may not do that."""


class DigestMismatch(AgentflowError):
    """The decision was made for other arguments than those that would run."""


class BudgetExceeded(AgentflowError):
    """The next model or tool call would pass one of the agent's `Limits`, or a `Budget`.

    Of a `Budget`, `budget` is its name and `resets_at` when its next period begins, `None` for one of all times.
    """

    def __init__(self, message: str, *, budget: str | None = None, resets_at: datetime | None = None) -> None:
        super().__init__(message)
        self.budget = budget
        self.resets_at = resets_at


class OutputInvalid(AgentflowError):
    """A model's answer does not validate. It is stored and paid; `response` holds it."""

    def __init__(self, message: str, *, response: ModelResponse | None = None) -> None:
        super().__init__(message)
        self.response = response


class GuardrailTripped(AgentflowError):
    """A guardrail refused a value."""


class InDoubt(AgentflowError):
    """A call may have been made and billed, and nothing can tell; a person who was asked did not let it be made again.

    `model` is "provider:model", `provider_id` the provider's own id of it where that is known.
    """

    def __init__(self, message: str, *, model: str | None = None, provider_id: str | None = None) -> None:
        super().__init__(message)
        self.model = model
        self.provider_id = provider_id


class ModelRetry(AgentflowError):
    """Raised in a tool: tell the model what was wrong, so that it asks again."""


class ToolFailed(AgentflowError):
    """Raised in a tool: tell the model that the tool failed. The step is not retried."""


class ProviderError(AgentflowError):
    """A model API refused or failed.

    `billed` says whether the provider may charge for it, `retriable` whether the same request may succeed later,
    `retry_after` the provider's own wish in seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        provider: str | None = None,
        model: str | None = None,
        status: int | None = None,
        code: str | None = None,
        billed: Billed = "no",
        retriable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.model = model
        self.status = status
        self.code = code
        self.billed: Billed = billed
        self.retriable = retriable
        self.retry_after = retry_after


class RateLimited(ProviderError):
    """The provider asked for fewer requests (429)."""


class Refused(ProviderError):
    """The model refused to answer; the refusal is stored and paid."""


class ContextTooLong(ProviderError):
    """The conversation does not fit the model's context."""


__all__ = [
    "AgentflowError",
    "AlreadyDecided",
    "ApprovalExpired",
    "BudgetExceeded",
    "ConfigurationError",
    "ContextTooLong",
    "DatabaseUnavailable",
    "DigestMismatch",
    "ExpressionFailed",
    "GuardrailTripped",
    "IdempotencyConflict",
    "InDoubt",
    "InvalidInput",
    "InvokeTimeout",
    "LimitExceeded",
    "ModelRetry",
    "NestedStep",
    "NoWaiter",
    "NonRetriable",
    "NotFound",
    "NotPermitted",
    "OutputInvalid",
    "Poisoned",
    "ProviderError",
    "RateLimited",
    "Refused",
    "ReplayMismatch",
    "RetryAfter",
    "RunCancelled",
    "RunFailed",
    "RunSkipped",
    "SignalConflict",
    "StepError",
    "ToolFailed",
    "Unserialisable",
]
