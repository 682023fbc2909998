"""`Context`: what a function knows of the run it is in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from agentflow.events import Event

T = TypeVar("T")


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs with the run's id, and is silent while the function replays what it has done before."""

    def __init__(
        self, logger: logging.Logger, *, run_id: str, function: str, is_replaying: Callable[[], bool]
    ) -> None:
        super().__init__(logger, {"run_id": run_id, "function": function})
        self._is_replaying = is_replaying

    def isEnabledFor(self, level: int) -> bool:
        return not self._is_replaying() and super().isEnabledFor(level)


@dataclass(frozen=True, kw_only=True)
class Context(Generic[T]):
    """The input and the circumstances of a run."""

    data: T
    """The validated input."""
    run_id: str
    function_id: str
    attempt: int = 0
    """0-based: how often the code between steps has failed since the last new step."""
    event: Event | None = None
    """The event that started the run; `None` when it was started directly."""
    events: Sequence[Event] = ()
    """All events of a batch."""
    logger: logging.LoggerAdapter[logging.Logger] = field(repr=False)
