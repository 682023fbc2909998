"""`step_info()`: where a body finds out in which step, and in which attempt of it, it runs."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple

from agentflow.errors import ConfigurationError


class StepInfo(NamedTuple):
    """The step whose body runs now."""

    run_id: str
    step_id: str
    """The step's key: unique in its run."""
    attempt: int
    """0 for the first."""

    @property
    def idempotency_key(self) -> str:
        """The same in every attempt, and unlike any other step's: give it to services that deduplicate."""
        return f"{self.run_id}:{self.step_id}"


current_body: ContextVar[StepInfo | None] = ContextVar("agentflow_current_body", default=None)


def step_info() -> StepInfo:
    """The step whose body calls this; also from threads and tasks that the body started.

    Raises `ConfigurationError` outside of a body.
    """
    info = current_body.get()
    if info is None:
        raise ConfigurationError(
            "step_info() was called outside of a step's body: call it inside the function you give to step.run"
        )
    return info
