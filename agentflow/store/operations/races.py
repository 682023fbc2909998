"""The end of a race: its outcome, and that nothing its branches have begun is left, in one transaction."""

from __future__ import annotations

from agentflow.store.operation_types import CommitRace
from agentflow.store.operations.runs import cancel_tree
from agentflow.store.operations.steps import store_step
from agentflow.store.operations.threads import leave_turns
from agentflow.store.operations.waits import take_own_wait
from agentflow.store.outcome_types import Done, Exists, Fenced
from agentflow.store.statements import races as sql
from agentflow.store.statements.core import LOCK_RUN, READ_RUN
from agentflow.store.transaction import RunState, Transaction, Work, fence


def commit_race(tx: Transaction, op: CommitRace) -> Work[Done | Exists | Fenced]:
    """Store the outcome of a race and withdraw its branches."""
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return state
    outcome = yield from store_step(op.run.run_id, op.step, state)
    yield from _withdraw_waits(tx, op)
    yield from leave_turns(tx, op.run.run_id, op.scopes, op.step.ended_at)
    for (key,) in (yield sql.LIST_OPEN_ATTEMPTS, {"run": op.run.run_id}):
        if key.startswith(op.scopes):
            yield sql.FORGET_ATTEMPTS, {"run": op.run.run_id, "step": key}
    return outcome


def _withdraw_waits(tx: Transaction, op: CommitRace) -> Work[None]:
    run_id = op.run.run_id
    rows = yield sql.LIST_WAITS, {"run": run_id}
    waits = [row for row in rows if row[0].startswith(op.scopes)]
    children = sorted((topic, key) for key, kind, topic in waits if kind == "invoke")
    # First the children's rows, then the waits: a child that ends goes in the same order.
    for child, _ in children:
        yield LOCK_RUN, {"id": child}
    for key, *_ in waits:
        yield from take_own_wait(run_id, key, op.step.ended_at)
    # Their waits are gone: no child's end comes back to this run.
    for child, key in children:
        if (yield from _hangs_on(child, key)):
            reason = f"run {run_id} does not wait for it any more: race {op.step.key!r} is decided"
            yield from cancel_tree(tx, [child], reason, op.step.ended_at)


def _hangs_on(child: str, key: str) -> Work[bool]:
    """Whether the child is not detached."""
    rows = yield READ_RUN, {"id": child}
    return bool(rows) and RunState(*rows[0]).parent_key == key
