"""The loop that starts the runs of schedules, each at its time and once, however many workers look."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Final

from agentflow.clock import NEVER, Clock, VirtualClock, to_datetime
from agentflow.functions import Function, Registry
from agentflow.starts import scheduled_run
from agentflow.store.operation_types import KeepSchedules, ListSchedules, TickSchedule
from agentflow.store.outcome_types import Ticked
from agentflow.store.protocol import Store
from agentflow.store.stored_types import Micros, NewSchedule
from agentflow.timetable import SECOND, Schedule

logger = logging.getLogger("agentflow.engine")

MOST_AT_ONCE: Final = 1_000
"""So many missed times are caught up with by `catch_up="all"`."""
LATE: Final = 60 * SECOND
"""A time that a worker was there for is not missed when it is only so late: a busy loop, a database that was away."""
JUST_NOW: Final = 5 * SECOND
"""Nor is one that came just before a worker began: another one may be about to take it."""
LONGEST_POLL: Final = 30.0
SHORTEST_POLL: Final = 0.01
AFTER_FAILURE: Final = 5.0


@dataclass(frozen=True)
class _Known:
    """A schedule of a function of this process."""

    id: str
    function: Function[Any, Any]
    schedule: Schedule

    def __str__(self) -> str:
        zone = "" if self.schedule.tz is None else f" in {self.schedule.tz}"
        return f"schedule {self.schedule.expr!r}{zone} of function {self.function.id!r}"


class Schedules:
    """Looks which of the app's schedules are due. It needs no lease: whoever is first stores the runs, once."""

    def __init__(self, store: Store, clock: Clock, registry: Registry, *, app: str) -> None:
        self._store = store
        self._clock = clock
        self._registry = registry
        self._app = app
        self._known: dict[str, _Known] = {}
        self._began_at = clock.now()
        self._one_at_a_time = asyncio.Lock()
        self.next_at: Micros | None = None
        """When the next one is due, as of the last look."""

    async def begin(self) -> None:
        """Make the app's schedules known; one that no function has any more goes."""
        self._began_at = self._clock.now()
        self._known = {
            known.id: known
            for function in self._registry
            for schedule in function.schedules
            for known in [_Known(schedule.id_in(self._app, function.id), function, schedule)]
        }
        await self._keep(list(self._known.values()), functions=self._registry.ids())

    async def run_once(self) -> int:
        """Start what is due; how many runs that were."""
        if not self._known:
            return 0
        async with self._one_at_a_time:
            return await self._look()

    async def run(self) -> None:
        moved = asyncio.Event()
        clock = self._clock
        forget = clock.on_advance(lambda _: moved.set()) if isinstance(clock, VirtualClock) else None
        try:
            while self._known:
                moved.clear()
                try:
                    await self.run_once()
                    pause = self._seconds_until_due()
                except Exception:
                    logger.exception("could not look for schedules that are due; trying again")
                    pause = AFTER_FAILURE
                try:
                    async with asyncio.timeout(pause):
                        await moved.wait()
                except TimeoutError:
                    pass
        finally:
            if forget is not None:
                forget()

    def _seconds_until_due(self) -> float:
        if self.next_at is None or isinstance(self._clock, VirtualClock):
            return LONGEST_POLL  # whoever moves a virtual clock tells us
        return max(SHORTEST_POLL, min(LONGEST_POLL, (self.next_at - self._clock.now()) / SECOND))

    async def _look(self) -> int:
        now = self._clock.now()
        due = await self._due()
        missing = [known for known in self._known.values() if known.id not in due]
        if missing:
            # A worker with another version of the code, which began after this one, has another schedule.
            await self._keep(missing, functions=())
            due = await self._due()
        started = 0
        for schedule_id, due_at in sorted(due.items(), key=lambda entry: (entry[1], entry[0])):
            if due_at <= now:
                ticked, due[schedule_id] = await self._tick(self._known[schedule_id], due_at, now)
                started += len(ticked.run_ids)
        self.next_at = min((at for at in due.values() if at < NEVER), default=None)
        return started

    async def _due(self) -> dict[str, Micros]:
        return dict((await self._store.submit(ListSchedules(tuple(self._known)))).due)

    async def _keep(self, wanted: list[_Known], *, functions: tuple[str, ...]) -> None:
        now = self._clock.now()
        schedules = tuple(
            NewSchedule(
                known.id,
                self._app,
                known.function.id,
                known.schedule.expr,
                known.schedule.tz,
                _or_never(known.schedule.next_after(now)),
            )
            for known in wanted
        )
        if schedules or functions:
            await self._store.submit(KeepSchedules(self._app, functions, schedules))

    async def _tick(self, known: _Known, due_at: Micros, now: Micros) -> tuple[Ticked, Micros]:
        nominal = self._wanted(known, due_at, now)
        following = _or_never(known.schedule.next_after(now))
        runs = tuple(
            scheduled_run(known.function, known.schedule, schedule_id=known.id, nominal=at, now=now)
            for at in nominal
        )
        last = nominal[-1] if nominal else None
        ticked: Ticked = await self._store.submit(TickSchedule(known.id, due_at, following, runs, last, now))
        return ticked, following

    def _wanted(self, known: _Known, due_at: Micros, now: Micros) -> list[Micros]:
        """The nominal times that get a run, of those that have come since `due_at`."""
        schedule = known.schedule
        on_time_from = max(due_at, min(now, max(now - LATE, self._began_at - JUST_NOW)))
        if schedule.catch_up == "all":
            found = schedule.latest(due_at, now, most=MOST_AT_ONCE + 1)
            if len(found) > MOST_AT_ONCE:
                logger.warning(
                    "%s: more than %d times since %s were missed; only the last %d of them get a run",
                    known,
                    MOST_AT_ONCE,
                    to_datetime(due_at).isoformat(),
                    MOST_AT_ONCE,
                )
            return found[-MOST_AT_ONCE:]
        missed = schedule.latest(due_at, on_time_from - 1, most=1)
        on_time = list(schedule.between(on_time_from, now))
        if missed and (schedule.catch_up == "skip" or missed[0] > due_at):
            logger.warning(
                "%s: no worker was there for its times from %s to %s; %s (catch_up=%r)",
                known,
                to_datetime(due_at).isoformat(),
                to_datetime(missed[-1]).isoformat(),
                "they get no run" if schedule.catch_up == "skip" else "only the last one gets a run",
                schedule.catch_up,
            )
        return on_time if schedule.catch_up == "skip" else missed + on_time


def _or_never(at: Micros | None) -> Micros:
    return NEVER if at is None else at
