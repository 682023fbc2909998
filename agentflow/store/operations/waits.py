"""A run's waits: register, resolve, withdraw, and adopt what others delivered."""

from __future__ import annotations

import json

from agentflow.store.operation_types import Adopt, RegisterWait, ResolveWait, WithdrawWait
from agentflow.store.operations.delivery import adopt_unread, deliver, stored_wait, timed_out_step
from agentflow.store.operations.messages import event_output, find_matching_event, signal_output
from agentflow.store.operations.runs import child_outcome, insert_run
from agentflow.store.operations.steps import forgive_crashes, read_numbered, store_step
from agentflow.store.outcome_types import Adopted, Done, Exists, Fenced, SignalTaken, Waits
from agentflow.store.statements import core as sql
from agentflow.store.stored_types import NewApproval, Status, StoredStep
from agentflow.store.transaction import Transaction, Work, fence, step_params, stored_step


def register_wait(tx: Transaction, op: RegisterWait) -> Work[Waits | Exists | SignalTaken | Fenced]:
    """Register a wait once, with what it waits for; resolve it at once by what is there already."""
    wait, run_id = op.wait, op.run.run_id
    if wait.kind == "signal":
        yield sql.LOCK_NAME, {"name": f"signal:{wait.topic}"}
    elif op.lookback_from is not None:
        yield sql.LOCK_NAME, {"name": f"event:{wait.topic}"}
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return state
    stored = yield from read_numbered(run_id, wait.key, op.seq)
    if stored is not None:
        return Exists(stored, state.mail, state.cancel)
    rows = yield sql.READ_WAIT, {"run": run_id, "key": wait.key}
    if rows:
        return Waits(stored_wait(rows[0]).deadline, state.mail, state.cancel)

    if wait.kind == "signal":
        taken_by = yield from _free_name(tx, op)
        if taken_by is not None:
            return SignalTaken(taken_by)
    if op.child is not None:
        yield from insert_run(tx, op.child, op.now)
    outcome = yield from _what_is_there(op)
    if outcome is not None:
        ok, output, error = outcome
        step = StoredStep(wait.key, op.seq, wait.kind, wait.name, ok, output, error, 1, wait.since, op.now)
        yield sql.INSERT_STEP, step_params(run_id, step)
        yield from forgive_crashes(run_id, state)
        return Exists(step, state.mail, state.cancel)
    if op.approval is not None:
        yield sql.INSERT_APPROVAL, _approval_params(run_id, wait.key, op.approval)
    yield sql.INSERT_WAIT, {"run_id": run_id, **wait._asdict()}
    return Waits(wait.deadline, state.mail, state.cancel)


def resolve_wait(tx: Transaction, op: ResolveWait) -> Work[Done | Exists | Fenced]:
    """End one's own wait with an outcome of one's own."""
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return state
    yield from take_own_wait(op.run.run_id, op.step.key, op.step.ended_at)
    return (yield from store_step(op.run.run_id, op.step, state))


def withdraw_wait(tx: Transaction, op: WithdrawWait) -> Work[Done | Fenced]:
    """Forget a wait. What was delivered before stays, for whoever asks for that step again."""
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return state
    yield from take_own_wait(op.run.run_id, op.key, op.now)
    return Done(state.mail, state.cancel)


def adopt(tx: Transaction, op: Adopt) -> Work[Adopted | Fenced]:
    """Number what was delivered and what is due."""
    # The fence reads `mail` first, the outcomes after it: what comes between is read now and announced again.
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return state
    run_id = op.run.run_id
    due = yield sql.TAKE_DUE_WAITS, {"run": run_id, "now": op.now}
    for row in due:
        step = yield from timed_out_step(stored_wait(row), op.now)
        yield sql.INSERT_STEP, step_params(run_id, step)
    if due:
        yield from forgive_crashes(run_id, state)
    rows = yield sql.READ_UNREAD, {"run": run_id, "first": op.next_seq, "beyond": op.next_seq + op.room}
    steps = [stored_step(row) for row in rows]
    # Played again: nobody has been told yet of what was adopted the first time.
    before = sorted((step for step in steps if step.seq is not None), key=lambda step: step.seq or 0)
    next_seq = (before[-1].seq or 0) + 1 if before else op.next_seq
    adopted = yield from adopt_unread(run_id, [step for step in steps if step.seq is None], next_seq)
    return Adopted((*before, *adopted), state.mail, state.cancel)


def _free_name(tx: Transaction, op: RegisterWait) -> Work[str | None]:
    """Make sure that no other live wait has the signal's name; the run that has it, if it may keep it."""
    assert op.wait.topic is not None
    for run_id, key in (yield sql.FIND_SIGNAL_WAIT, {"name": op.wait.topic}):
        if not op.replace:
            [row] = yield sql.READ_WAIT, {"run": run_id, "key": key}
            if stored_wait(row).deadline > op.now:
                return str(run_id)
        yield from deliver(tx, run_id, key, op.now, None)
    return None


def _what_is_there(op: RegisterWait) -> Work[tuple[bool, str | None, str | None] | None]:
    """What already resolves the wait: a buffered signal, an earlier event, a child that has ended."""
    wait = op.wait
    if wait.kind == "signal" and wait.topic is not None:
        yield sql.EXPIRE_BUFFERED, {"of_name": wait.topic, "now": op.now}
        rows = yield sql.TAKE_BUFFERED, {"to_run": op.run.run_id, "of_name": wait.topic}
        if rows:
            return True, signal_output(wait.topic, rows[0][0]), None
    if wait.kind == "event" and wait.topic is not None and op.lookback_from is not None:
        event = yield from find_matching_event(
            wait.topic, wait.correlation, wait.condition, since=op.lookback_from, run_id=op.run.run_id
        )
        if event is not None:
            return True, event_output(*event), None
    if op.child is not None and op.child.parent_key is not None:
        rows = yield sql.READ_RESULT, {"id": op.child.id}
        if rows:
            status, _, reason, output, error, for_parent = rows[0]
            if status >= Status.COMPLETED:
                return child_outcome(
                    op.child.id, Status(status), output=output, error=for_parent or error, reason=reason
                )
    return None


def take_own_wait(run_id: str, key: str, now: int) -> Work[None]:
    """Take back a wait of one's own, if it is still there; its approval is closed."""
    rows = yield sql.TAKE_WAIT, {"run": run_id, "step": key}
    if rows:
        wait = stored_wait(rows[0])
        if wait.kind == "approval" and wait.topic is not None:
            status = "expired" if wait.deadline <= now else "cancelled"
            yield sql.CLOSE_APPROVAL, {"to": status, "now": now, "approval": wait.topic}


def _approval_params(run_id: str, key: str, new: NewApproval) -> dict[str, object]:
    return {
        **new._asdict(),
        "approvers": json.dumps(new.approvers, ensure_ascii=False),
        "editable": None if new.editable is None else json.dumps(new.editable, ensure_ascii=False),
        "run_id": run_id,
        "step_key": key,
        "status": "pending",
        "decisions": "[]",
        "edited_args": None,
        "decided_at": None,
    }
