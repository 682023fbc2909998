"""`if_` of a wait: a CEL expression over what started the waiting run and the event that arrives.

It is evaluated in the transaction that stores the event or registers the wait, so that neither misses the other. An
evaluation has a budget; one that fails is false. It needs nothing but rows, and gives nothing but yes or no.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

from agentflow.clock import to_datetime
from agentflow.errors import ConfigurationError
from agentflow.expressions import BOTH_EVENTS, Expression
from agentflow.store.statements import core as sql
from agentflow.store.stored_types import Json
from agentflow.store.transaction import Work


class Arriving:
    """An event as conditions see it; parsed once, and only where somebody asks."""

    def __init__(self, event_id: str, name: str, data: Json, ts: int) -> None:
        self.name = name
        self._id = event_id
        self._data = data
        self._ts = ts

    @cached_property
    def value(self) -> dict[str, Any]:
        ts = to_datetime(self._ts).isoformat()
        return {"id": self._id, "name": self.name, "ts": ts, "data": json.loads(self._data)}


def holds(condition: str | None, run_id: str, arriving: Arriving) -> Work[bool]:
    """Whether the condition of a wait of that run is true. Raises `ConfigurationError` where there is no CEL."""
    if condition is None:
        return True
    try:
        expression = Expression.compile(condition, variables=BOTH_EVENTS)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"event {arriving.name!r} cannot be sent from here, as run {run_id} takes it by a condition: {error}"
        ) from error
    for trigger, input_json in (yield sql.READ_TRIGGER, {"run": run_id}):
        event = ({} if trigger is None else json.loads(trigger)) | {"data": json.loads(input_json)}
        return expression.is_true(event=event, **{"async": arriving.value})
    return False
