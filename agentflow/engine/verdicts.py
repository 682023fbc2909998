"""What becomes of a run in this process. The first verdict stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentflow.errors import ReplayMismatch
from agentflow.store.stored_types import Micros


@dataclass(frozen=True, slots=True)
class Returned:
    """The function has returned."""

    value: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """The function has raised, or did something that nothing it catches may hide."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Suspended:
    """It left memory; the database knows."""

    ready_at: Micros


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody cancelled it, or its time is over; without a reason the database has one."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Somebody else owns it: nothing is written any more."""

    why: str


@dataclass(frozen=True, slots=True)
class Mismatched:
    """The code does not fit the history."""

    error: ReplayMismatch


@dataclass(frozen=True, slots=True)
class Drained:
    """The worker stops: the run is given back."""


Verdict = Returned | Raised | Suspended | Cancelled | Lost | Mismatched | Drained
