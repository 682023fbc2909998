"""What a stored outcome means to user code, and how an error is kept for the run and for its parent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from agentflow.engine.policy import leaves
from agentflow.errors import AgentflowError, InvalidInput, StepError
from agentflow.store.stored_types import Json, StoredStep
from agentflow.stored_errors import decode_error, encode_error, error_from


def stored_error(step: StoredStep) -> AgentflowError:
    """What a failed step raises, on the first run and on replay alike."""
    error = error_from(decode_error(step.error or "{}"), step_id=step.key, attempts=step.attempt)
    return _memoized(error, step.key)


def outside_value(step: StoredStep, decode: Callable[[Json], Any]) -> Any:
    """The value of an outcome that somebody else delivered. Raises `InvalidInput` when it does not validate."""
    if not step.ok:
        raise stored_error(step)
    try:
        return decode(step.output or "null")
    except InvalidInput as error:
        invalid = InvalidInput(f"what step {step.key!r} has received is not valid: {error}")
        raise _memoized(invalid, step.key) from error


def is_timeout(step: StoredStep) -> bool:
    """Whether an invoke's own timeout was its outcome."""
    return not step.ok and decode_error(step.error or "{}").own == "InvokeTimeout"


def _memoized(error: AgentflowError, key: str) -> AgentflowError:
    error.__agentflow_memo__ = key  # type: ignore[attr-defined]
    return error


def is_memoized(error: BaseException) -> bool:
    """Whether it is a step's stored outcome: uncaught, it ends the run without a retry."""
    return _failing_step(error) is not None


def _failing_step(error: BaseException) -> str | None:
    return getattr(error, "__agentflow_memo__", None)


def only_cause(error: BaseException) -> BaseException:
    """A group of nothing but stored outcomes is as final as one of them; anything else is itself."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    found = list(leaves(error))
    return found[0] if all(map(is_memoized, found)) else error


def error_of_run(error: BaseException) -> Json:
    """The error as the run keeps it: the original's name and message, and the step that failed."""
    if isinstance(error, StepError):
        stored = {
            "name": error.name,
            "message": error.message,
            "traceback": error.traceback,
            "attributes": error.attributes,
            "own": None,
        }
    else:
        stored = json.loads(encode_error(error))
    return json.dumps(stored | {"step_id": getattr(error, "step_id", None) or _failing_step(error)})


def error_for_parent(error: Json) -> Json:
    """A child's error is not the parent's own: the parent's step raises it as `StepError`."""
    stored = json.loads(error)
    stored.pop("step_id", None)
    return json.dumps(stored | {"own": None})
