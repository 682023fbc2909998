"""`on_failure`: the run that a failed run starts, once, whatever crashes."""

from __future__ import annotations

import json
from typing import Any

from agentflow.errors import AgentflowError
from agentflow.flow import RunFailure
from agentflow.functions import Function
from agentflow.runs import ErrorInfo
from agentflow.starts import trigger_event
from agentflow.step import child_run_id
from agentflow.store.claim_types import ClaimedRun
from agentflow.store.stored_types import Json, Micros, NewRun


def failure_run(
    function: Function[Any, Any], failed: ClaimedRun, error: Json, *, now: Micros
) -> NewRun | None:
    """The run of `<id>-failure`; its id follows from the failed run's, so that there is one."""
    if function.on_failure is None:
        return None
    run_id = child_run_id(failed.key.run_id, "@failure")  # no step has a key that begins so
    return NewRun(
        id=run_id,
        app=failed.app,
        function=function.on_failure.id,
        input=_input(function.on_failure, failed, error),
        created_at=now,
        ready_at=now,
        root_id=run_id,
        tags=failed.tags,
    )


def _input(on_failure: Function[RunFailure, Any], failed: ClaimedRun, error: Json) -> Json:
    stored = json.loads(error)
    info = ErrorInfo(**{name: stored[name] for name in ErrorInfo.model_fields if name in stored})
    failure = RunFailure(run_id=failed.key.run_id, error=info)
    where = f"the input of {on_failure.id!r}"
    try:
        event, _ = trigger_event(failed.trigger, failed.input)
        return on_failure.input_codec.encode(failure.model_copy(update={"event": event}), where)
    except (
        AgentflowError,
        ValueError,
    ):  # an event that nests as deep as is possible does not fit into another value
        return on_failure.input_codec.encode(failure, where)
