"""The records a user sees of a run: what `app.runs` returns and the HTTP API shows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class RunStatus(StrEnum):
    """Where a run stands. `sleeping`: only timers are outstanding, retries too."""

    QUEUED = "queued"
    RUNNING = "running"
    SLEEPING = "sleeping"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"

    @property
    def is_final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.SKIPPED})


class StepStatus(StrEnum):
    """Where a step stands; a step that waits for its next attempt is `waiting`."""

    COMPLETED = "completed"
    FAILED = "failed"
    RUNNING = "running"
    WAITING = "waiting"


class StepKind(StrEnum):
    """What a step does."""

    RUN = "run"
    SLEEP = "sleep"
    EVENT = "event"
    SIGNAL = "signal"
    APPROVAL = "approval"
    INVOKE = "invoke"
    SEND = "send"
    INFER = "infer"
    RACE = "race"
    PUBLISH = "publish"
    RETRY = "retry"


class Record(BaseModel):
    """A frozen value read from the database."""

    model_config = ConfigDict(frozen=True)


class ErrorInfo(Record):
    """An exception as it is stored. `step_id` is the failing step, where one failed."""

    name: str
    message: str
    traceback: str | None = None
    attributes: dict[str, Any] = {}
    step_id: str | None = None


class Waiting(Record):
    """One thing a run waits for. `name` is the signal, event or function; `until` is the deadline."""

    step_key: str
    kind: StepKind
    name: str | None
    since: datetime
    until: datetime | None


class Run(Record):
    """One execution of a function with one input. Lists leave `input`, `output` and `error` out."""

    id: str
    app: str
    function: str
    status: RunStatus
    reason: str | None = None
    input: Any = None
    output: Any = None
    error: ErrorInfo | None = None
    tags: tuple[str, ...] = ()
    parent_id: str | None = None
    root_id: str
    rerun_of: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    waiting: list[Waiting] = []


class StepRecord(Record):
    """One step of a run, its output decoded from JSON."""

    run_id: str
    key: str
    id: str
    kind: StepKind
    name: str | None = None
    status: StepStatus
    output: Any = None
    error: ErrorInfo | None = None
    attempts: int
    seq: int | None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    cost: Decimal | None = None


class StreamItem(Record):
    """One item of a run's live stream; `seq` numbers them, so a reader resumes after any of them."""

    seq: int
    kind: str
    step_key: str | None = None
    attempt: int = 0
    data: Any = None


class End(NamedTuple):
    """How a run ended; payloads as JSON text."""

    run_id: str
    status: RunStatus
    output: str | None
    error: str | None
    reason: str | None


class Look(NamedTuple):
    """What somebody who follows a run finds when looking at it."""

    last_seq: int
    """Of its last item, 0 where it has none."""
    is_final: bool
    """Whether it has ended."""
    standing: tuple[int | str | None, ...]
    """Changes with all that is told but text: steps, the status, what the run waits for."""
    chunks: list[StreamItem]
    """Where that has not changed, all items that are new, or the first of them; else there may be steps among them."""


class Page(BaseModel, Generic[T]):
    """One page of a list. Give `cursor` back for the next one."""

    data: Sequence[T]
    cursor: str | None = None
    has_more: bool = False
