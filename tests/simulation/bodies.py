"""The bodies of simulated steps: they say that they begin, take their time, and fail as often as they are to."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any, Protocol

from agentflow.context import Context
from agentflow.info import step_info
from agentflow.step import Step


class Witness(Protocol):
    """Who sees what user code sees."""

    def pause(self) -> float:
        """How long a body takes."""
        ...

    def body_begins(self, run_id: str, key: str) -> int:
        """The number of this execution."""
        ...

    def got(self, run_id: str, value: Any) -> None:
        """User code goes on with the outcome of a step."""
        ...


witness: ContextVar[Witness] = ContextVar("witness")


async def body(value: str, failures: int) -> dict[str, Any]:
    info, seen_by = step_info(), witness.get()
    execution = seen_by.body_begins(info.run_id, info.step_id)
    await asyncio.sleep(seen_by.pause())
    if info.attempt < failures:
        raise ValueError(value)
    return {"value": value, "execution": execution}


def sync_body(value: str, failures: int) -> dict[str, Any]:
    info = step_info()
    execution = witness.get().body_begins(info.run_id, info.step_id)
    if info.attempt < failures:
        raise ValueError(value)
    return {"value": value, "execution": execution}


async def work(ctx: Context[Any], step: Step, name: str, failures: int, *, is_sync: bool = False) -> Any:
    """One such step, twice retried. Raises `StepError`."""
    value = await step.run(name, sync_body if is_sync else body, name, failures, retry=2)
    witness.get().got(ctx.run_id, value)
    return value
