"""What a worker gets with a run that it takes, and what it makes known of its functions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from agentflow.store.stored_types import (
    Json,
    Micros,
    ModelCall,
    RunKey,
    StoredAttempt,
    StoredStep,
    StoredWait,
)


class Plan(StrEnum):
    """What a claimed run's worker has to find out of its admission: all of it, or only the gates (it was stored before
    its function had any)."""

    WHOLE = "whole"
    GATES = "gates"


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run that now belongs to this worker, with all it needs to go on."""

    key: RunKey
    app: str
    function: str
    input: Json
    trigger: Json | None
    created_at: Micros
    started_at: Micros | None
    parent_id: str | None
    parent_key: str | None
    root_id: str
    depth: int
    tags: tuple[str, ...]
    mail: int
    crash_count: int
    cancel_at: Micros | None
    reason: str | None
    next_seq: int
    """One more than the highest seq of its steps and stream chunks."""
    steps: tuple[StoredStep, ...] = ()
    """All with a seq: what was delivered or had timed out is adopted by the claim, in order of `ended_at`."""
    attempts: tuple[StoredAttempt, ...] = ()
    waits: tuple[StoredWait, ...] = ()
    model_calls: tuple[ModelCall, ...] = ()
    """Only calls whose end is not known."""
    slots: tuple[str, ...] = ()
    """The concurrency keys under which it executes; whoever lets the run go gives them back."""
    batch: tuple[Json, ...] = ()
    """The events that joined it after the first one."""
    start_by: Micros | None = None
    """When it had to have begun."""
    plan: Plan | None = None
    """What its worker has to find out before it may begin."""


class Reclaimed(NamedTuple):
    """What is new of a run that was taken up again where it left memory."""

    epoch: int
    mail: int
    steps: tuple[StoredStep, ...]
    """What was delivered meanwhile, numbered."""


class Origin(NamedTuple):
    """What a run was started with: what a rerun needs of it, and what never changes."""

    run_id: str
    app: str
    function: str
    input: Json
    trigger: Json | None
    tags: tuple[str, ...]
    event_id: str | None
    """The stored event that started it."""
    parent_id: str | None = None


@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """A function as others see it who do not import it."""

    app: str
    id: str
    version: str
    triggers: Json
    config: Json
    schemas: Json
    """`{"input": JSON Schema, "output": JSON Schema, "agent": bool, "description": str}`"""
    paused_at: Micros | None = None
    rules: Any = None
    """The function's own `FlowControl`, with its keys as they are, where this process has the function."""
