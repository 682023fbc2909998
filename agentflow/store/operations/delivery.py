"""Delivery: whoever deletes a wait row has the right to resolve its step, and does it in that transaction.

The outcome is a step row without a seq; `run.mail` is bumped, and a run that sleeps or waits is readied.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any

from agentflow.store.hints import HintKind
from agentflow.store.operations.audit import note
from agentflow.store.statements import core as sql
from agentflow.store.stored_types import Json, Status, StoredStep, StoredWait
from agentflow.store.transaction import Transaction, Work, step_params

Outcome = tuple[bool, Json | None, Json | None]
"""ok, output, error"""


class Delivery(Enum):
    """What became of an attempt to resolve somebody's wait."""

    DONE = 1
    TIMED_OUT = 2
    """Its time was over: it got its own outcome."""
    GONE = 3
    """Somebody else was first."""


def deliver(tx: Transaction, run_id: str, key: str, now: int, outcome: Outcome | None) -> Work[Delivery]:
    """Resolve the wait of another run; `None` gives it its outcome for a timeout."""
    # First the run's row, then the wait's: a claim goes in the same order, so the two never block each other.
    yield sql.LOCK_RUN, {"id": run_id}
    rows = yield sql.TAKE_WAIT, {"run": run_id, "step": key}
    if not rows:
        return Delivery.GONE
    wait = stored_wait(rows[0])
    if wait.deadline <= now or outcome is None:
        step = yield from timed_out_step(wait, now)
        delivery = Delivery.TIMED_OUT
    else:
        ok, output, error = outcome
        step = StoredStep(key, None, wait.kind, wait.name, ok, output, error, 1, wait.since, now)
        delivery = Delivery.DONE
    yield sql.INSERT_STEP, step_params(run_id, step)
    woken = yield sql.WAKE_RUN_WITH_STEP, {"now": now, "run": run_id}
    if woken:
        tx.tell(HintKind.MAIL if woken[0][0] == Status.RUNNING else HintKind.READY, run_id)
    return delivery


def timed_out_step(wait: StoredWait, now: int) -> Work[StoredStep]:
    """The outcome that was fixed for the end of the wait's time; its approval expires with it."""
    if wait.kind == "approval" and wait.topic is not None:
        yield sql.CLOSE_APPROVAL, {"to": "expired", "now": now, "approval": wait.topic}
        yield from note(at=now, who="agentflow", what="approval.expired", subject=wait.topic)
    ended_at = max(wait.since, min(wait.deadline, now))
    return StoredStep(
        wait.key,
        None,
        wait.kind,
        wait.name,
        wait.timeout_ok,
        wait.timeout_output,
        wait.timeout_error,
        1,
        wait.since,
        ended_at,
    )


def adopt_unread(run_id: str, steps: list[StoredStep], next_seq: int) -> Work[tuple[StoredStep, ...]]:
    """Give delivered steps their seq, in order of their end."""
    adopted = number_unread(steps, next_seq)
    yield from store_numbers((run_id, step) for step in adopted)
    return adopted


def number_unread(steps: Iterable[StoredStep], next_seq: int) -> tuple[StoredStep, ...]:
    """Delivered steps with their seq, in order of their end."""
    in_order = sorted(steps, key=lambda step: (step.ended_at, step.key))
    return tuple(step._replace(seq=seq) for seq, step in enumerate(in_order, next_seq))


def store_numbers(numbered: Iterable[tuple[str, StoredStep]]) -> Work[None]:
    """Store the seq of these steps of these runs, unless they have one."""
    numbers = [{"number": step.seq, "run": run_id, "step": step.key} for run_id, step in numbered]
    if numbers:
        yield sql.NUMBER_STEP, numbers


def stored_wait(row: Any) -> StoredWait:
    """A wait from a row of `WAIT_COLUMNS`."""
    key, kind, name, topic, correlation, deadline, since, timeout_ok, *rest = row
    return StoredWait(key, kind, name, topic, correlation, deadline, since, bool(timeout_ok), *rest)
