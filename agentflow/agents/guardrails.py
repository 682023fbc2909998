"""Guardrails: functions that look at what goes into an agent, comes out of it, and into its tools."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from agentflow.agents.tools import ToolContext
from agentflow.errors import ConfigurationError
from agentflow.step import is_async
from agentflow.step_runner import Attempt

On: TypeAlias = Literal["input", "output", "tool"]
GuardFunction: TypeAlias = Callable[[ToolContext[Any], Any], Any | Awaitable[Any]]

_PLACES: tuple[On, ...] = ("input", "output", "tool")


@dataclass(frozen=True)
class Guardrail:
    """A function `(ctx, value) -> value` and where it looks.

    On `"input"` the value is the prompt, on `"output"` the agent's output, on `"tool"` the arguments of a tool call,
    a dict (`ctx.tool` is the tool). It returns the value, changed or not, or raises `GuardrailTripped`. Each time it
    looks is a step.
    """

    fn: GuardFunction
    on: tuple[On, ...] = _PLACES

    def __post_init__(self) -> None:
        given: Any = self.on
        places = (given,) if isinstance(given, str) else tuple(given)
        object.__setattr__(self, "on", places)
        if not callable(self.fn):
            raise ConfigurationError(f"Guardrail({self.fn!r}): give a function (ctx, value) -> value")
        if unknown := set(places) - set(_PLACES):
            raise ConfigurationError(
                f"Guardrail({self.name}, on={sorted(unknown)}): there are {', '.join(_PLACES)}"
            )

    @property
    def name(self) -> str:
        return str(getattr(self.fn, "__name__", type(self.fn).__name__))

    async def look(self, attempt: Attempt, context: ToolContext[Any], value: Any) -> Any:
        """The value, as the guardrail lets it pass."""
        if is_async(self.fn):
            return await self.fn(context, value)
        passed = await attempt.in_thread(functools.partial(self.fn, context, value))
        return await passed if inspect.isawaitable(passed) else passed


def as_guardrails(given: Sequence[Guardrail | GuardFunction]) -> tuple[Guardrail, ...]:
    """Guardrails, from guardrails and plain functions, which look everywhere."""
    return tuple(item if isinstance(item, Guardrail) else Guardrail(item) for item in given)
