"""What a runner gets from the worker that hosts it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol

from agentflow.clock import Clock, VirtualClock
from agentflow.flow import Budget
from agentflow.functions import Registry
from agentflow.model_limits import ModelLimits
from agentflow.runs import End
from agentflow.settings import Settings
from agentflow.store.claim_types import FunctionInfo
from agentflow.store.protocol import Store
from agentflow.store.stored_types import Micros


class TimerHandle(Protocol):
    def cancel(self) -> None: ...


class Timers:
    """Calls something when domain time reaches an instant, on the real clock or on a virtual one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    @property
    def are_moved_by_hand(self) -> bool:
        """Whether time passes only when a test says so: nothing may be waited for in memory then."""
        return isinstance(self._clock, VirtualClock)

    def at(self, micros: Micros, callback: Callable[[], None]) -> TimerHandle:
        loop = asyncio.get_running_loop()
        if isinstance(self._clock, VirtualClock):
            return _VirtualTimer(self._clock, loop, micros, callback)
        return loop.call_later(max(0.0, (micros - self._clock.now()) / 1e6), callback)


class _VirtualTimer:
    def __init__(
        self, clock: VirtualClock, loop: asyncio.AbstractEventLoop, due: Micros, callback: Callable[[], None]
    ) -> None:
        self._callback = callback
        self._due = due
        self._loop = loop
        self._forget = clock.on_advance(self._look)
        self._look(clock.now())

    def _look(self, now: Micros) -> None:
        if now >= self._due:
            self.cancel()
            self._loop.call_soon(self._callback)

    def cancel(self) -> None:
        self._forget()


@dataclass(frozen=True)
class Host:
    """The process around a run."""

    app: str
    store: Store
    registry: Registry
    settings: Settings
    clock: Clock
    timers: Timers
    threads: Executor
    rng: random.Random
    list_functions: Callable[[], Awaitable[Sequence[FunctionInfo]]]
    is_draining: Callable[[], bool]
    on_written: Callable[[str], None]
    """Something was committed of the run of this id."""
    on_ended: Callable[[End], None]
    model_limits: ModelLimits = field(default_factory=dict)
    budgets: tuple[Budget, ...] = ()
    replay_every_step: bool = False
    """Whether a run leaves memory after every new step, and a mismatch fails it."""
