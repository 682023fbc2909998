"""Events and signals: facts that start or wake runs, and messages to the one run that waits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from agentflow.durations import Duration


class Event(BaseModel):
    """A fact that happened; immutable.

    `id` deduplicates for 24 hours. `ts` in the future delays the runs it starts. Names that begin with `agentflow/`
    are the framework's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=512)
    data: dict[str, Any] = {}
    id: str | None = Field(default=None, min_length=1, max_length=512)
    ts: AwareDatetime | None = None


class EventRecord(BaseModel):
    """An event as it is stored."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    data: Any
    ts: datetime
    received_at: datetime


class Signal(BaseModel):
    """What `step.wait_for_signal` returns."""

    model_config = ConfigDict(frozen=True)

    name: str
    data: Any = None


class EventTrigger(BaseModel):
    """A function's trigger: an event name, exact or `app/*`, with an optional condition."""

    model_config = ConfigDict(frozen=True)

    name: str
    if_: str | None = None

    def fits(self, event_name: str) -> bool:
        """Whether an event of that name may start the function; `app/*` spans everything after the slash."""
        if self.name.endswith("/*"):
            return event_name.startswith(self.name[:-1])
        return event_name == self.name


@dataclass(frozen=True)
class CronTrigger:
    """What `cron(...)` was given; it is checked when the function is registered, whose name the error then has."""

    expr: str
    tz: str | None = None
    jitter: Duration | None = None
    catch_up: str = "skip"
