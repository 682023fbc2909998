"""How a behaviour is looked at from outside: a run's steps, how it failed, when it was entered."""

from __future__ import annotations

from typing import Any

import pytest

from agentflow import App, RunHandle, StepRecord
from agentflow.errors import RunFailed
from agentflow.testing import Harness


async def steps_of(app: App, run: RunHandle[Any]) -> dict[str, StepRecord]:
    """The run's steps by their keys, in their order."""
    return {record.key: record for record in (await app.runs.steps(run.id)).data}


async def failure_of(run: RunHandle[Any]) -> Any:
    """The error of a run that fails."""
    with pytest.raises(RunFailed) as raised:
        await run.result(10)
    return raised.value.error


async def restarted(h: Harness) -> None:
    """The worker dies and another one takes over."""
    await h.crash()
    await h.restart()
    await h.idle()
