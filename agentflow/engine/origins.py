"""What started a run, and those that invoked it: by that it is known whose money, say, its model calls spend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentflow.admission import find_value
from agentflow.engine.reading import undisturbed
from agentflow.flow import Key
from agentflow.starts import trigger_event

if TYPE_CHECKING:
    from agentflow.engine.runner import Runner

NO_VALUE = "null"
"""As for every key of flow control: those that have no value have this one in common."""


class Origins:
    """The event of one run and of the runs above it; these are read when they are asked for, once."""

    __slots__ = ("_above", "_next_id", "_runner")

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._above: list[tuple[str, dict[str, Any]]] = []
        self._next_id = runner.claimed.parent_id

    async def find(self, key: Key) -> str:
        """The key's value by what started the run, or else the nearest of those above it of which it has one."""
        value = find_value(key, self._runner.trigger_event, self._runner.function.id)
        place = 0
        while value is None and (place < len(self._above) or await self._read_next()):
            function, event = self._above[place]
            value = find_value(key, event, function)
            place += 1
        return NO_VALUE if value is None else value

    async def _read_next(self) -> bool:
        if self._next_id is None:
            return False
        wanted = self._next_id
        origin = await undisturbed(self._runner.host.store.queries.get_origin(wanted))
        if self._next_id != wanted:  # another call has read it meanwhile
            return True
        if origin is None:  # it has ended long ago, and is not kept
            self._next_id = None
            return False
        self._next_id = origin.parent_id
        self._above.append((origin.function, trigger_event(origin.trigger, origin.input)[1]))
        return True
