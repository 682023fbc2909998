"""Effects that may happen once: marked before they happen, so that a crash in between is known of."""

from __future__ import annotations

from agentflow.store.operation_types import MarkEffect, UnmarkEffect
from agentflow.store.outcome_types import AlreadyMarked, Done, Fenced
from agentflow.store.statements import effects as sql
from agentflow.store.transaction import Transaction, Work, fence


def mark_effect(tx: Transaction, op: MarkEffect) -> Work[Done | AlreadyMarked | Fenced]:
    """Mark the step's effect, unless an attempt before this one has."""
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return state
    new = {"run_id": op.run.run_id, "key": op.key, "epoch": op.run.epoch}
    made = yield sql.INSERT_MARK, {**new, "attempt": op.attempt, "marked_at": op.now}
    if not made:
        [(epoch, attempt, marked_at)] = yield sql.READ_MARK, {"run": op.run.run_id, "key": op.key}
        # Its own mark: the commit was lost sight of, and is played again.
        if (epoch, attempt) != (op.run.epoch, op.attempt):
            return AlreadyMarked(marked_at)
    return Done(state.mail, state.cancel)


def unmark_effect(tx: Transaction, op: UnmarkEffect) -> Work[Done | Fenced]:
    """Take the mark away: the effect has not happened."""
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return state
    yield sql.DELETE_MARK, {"run": op.run.run_id, "step": op.key}
    return Done(state.mail, state.cancel)
