"""`timeouts`: a run that begins too late, or takes too long, is cancelled.

Nothing sweeps: a run that waits is ready again at its deadline, and whoever claims it then ends it; while it is in
memory a timer does.
"""

from __future__ import annotations

from collections.abc import Callable

from agentflow.clock import NEVER
from agentflow.durations import to_micros
from agentflow.engine.host import Host, TimerHandle
from agentflow.engine.verdicts import Cancelled
from agentflow.flow import Timeouts
from agentflow.store.claim_types import ClaimedRun
from agentflow.store.stored_types import Micros


class TimeLimit:
    """How long one run may take, counted from the times that the database has of it."""

    def __init__(
        self,
        timeouts: Timeouts | None,
        claimed: ClaimedRun,
        host: Host,
        *,
        on_over: Callable[[Cancelled], None],
    ) -> None:
        self._timeouts = timeouts
        self._claimed = claimed
        self._host = host
        self._on_over = on_over
        self._timer: TimerHandle | None = None
        self._began_at = claimed.created_at if claimed.started_at is None else claimed.started_at
        finish = None if timeouts is None else timeouts.finish
        self.deadline: Micros = NEVER if finish is None else self._began_at + to_micros(finish)
        """When the run has to have ended."""

    def watch(self) -> bool:
        """End the run if its time is over, and give True; else see to it that it ends in time."""
        if self._timeouts is None:
            return False
        start_by = self._claimed.start_by
        if self._timeouts.start is not None and start_by is not None and self._began_at >= start_by:
            self._on_over(Cancelled(f"it had not begun within {self._timeouts.start} (timeouts.start)"))
            return True
        if self.deadline <= self._host.clock.now():
            self._end()
            return True
        if self.deadline < NEVER:
            self._timer = self._host.timers.at(self.deadline, self._end)
        return False

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        assert self._timeouts is not None
        self._on_over(Cancelled(f"it had not ended within {self._timeouts.finish} (timeouts.finish)"))
