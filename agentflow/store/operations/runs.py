"""A run's life: start, suspend, release, finish, cancel."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from agentflow.clock import NEVER
from agentflow.runs import RunStatus
from agentflow.store.hints import HintKind
from agentflow.store.operation_types import CancelRun, Finish, PlanRun, Release, Rerun, StartRun, Suspend
from agentflow.store.operations.admission import LAG, Dropped, Fresh, Joined, admit
from agentflow.store.operations.delivery import deliver
from agentflow.store.operations.functions import is_paused
from agentflow.store.operations.gates import free_slots, leave_lanes
from agentflow.store.outcome_types import (
    Cancelled,
    Done,
    Fenced,
    KeyConflict,
    MailChanged,
    NoSuchStep,
    Started,
)
from agentflow.store.statements import core as sql
from agentflow.store.statements import flow as flow_sql
from agentflow.store.stored_types import UNPLANNED, Json, NewRun, Status
from agentflow.store.transaction import RunState, Transaction, Work, fence


def start_run(tx: Transaction, op: StartRun) -> Work[Started | KeyConflict]:
    """Store a run: running and owned when its worker's lease holds, else queued."""
    owner = op.owner if op.owner in tx.alive else None
    if owner is not None and (yield from is_paused(tx, op.run)):
        owner = None
    outcome = yield from insert_run(tx, op.run, op.now, owner=owner)
    if isinstance(outcome, KeyConflict) or outcome.created or op.owner is None:
        return outcome
    # Played again: if our first try was committed, the run is ours and runs.
    rows = yield sql.READ_RUN, {"id": op.run.id}
    state = RunState(*rows[0]) if rows else None
    if state and state.owner == op.owner and state.epoch == 1 and state.status == Status.RUNNING:
        return outcome._replace(epoch=1)
    return outcome


def rerun(tx: Transaction, op: Rerun) -> Work[Started | NoSuchStep | KeyConflict]:
    """Store a run that does another one's work again, with that one's steps before `from_step`."""
    origin = op.run.rerun_of
    before = None
    if op.from_step is not None:
        found = yield sql.READ_SEQ, {"of_run": origin, "of_key": op.from_step}
        known = [seq for (seq,) in found if seq is not None]
        if not known or op.from_step.startswith(
            "@"
        ):  # failures of the code between steps are kept under @<seq>
            return NoSuchStep()
        before = min(known)
    started = yield from insert_run(tx, op.run, op.now)
    if isinstance(started, Started) and started.created and before is not None:
        yield sql.COPY_STEPS, {"to_run": op.run.id, "of_run": origin, "before": before}
        yield sql.COPY_MARKS, {"to_run": op.run.id, "of_run": origin, "before": before}
    if isinstance(started, Started) and started.created:
        yield flow_sql.COPY_BATCH, {"to_run": op.run.id, "of_run": origin}
    return started


def insert_run(
    tx: Transaction, run: NewRun, now: int, *, owner: str | None = None
) -> Work[Started | KeyConflict]:
    """Insert a run with its payload, unless its id or its idempotency key is there, or flow control has it join."""
    if run.idempotency_key is not None:
        known = yield from _claim_key(run, now)
        if known is not None:
            return known
    if run.admission is not None:
        return (yield from _insert_admitted(tx, run, now))
    return (yield from _insert(tx, run, _run_params(run, now, owner)))


def plan_run(tx: Transaction, op: PlanRun) -> Work[Done | Fenced]:
    """Apply flow control to a run that its sender could not plan."""
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return state
    run_id = op.run.run_id
    [(app, function, text, trigger, tags, start_by)] = yield flow_sql.READ_ORIGIN, {"id": run_id}
    run = NewRun(
        id=run_id,
        app=app,
        function=function,
        input=text,
        created_at=op.now,
        ready_at=op.ready_at,
        root_id=run_id,
        trigger=trigger,
        tags=tuple(json.loads(tags or "[]")),
        admission=op.admission,
        start_by=start_by,
    )
    verdict = yield from admit(tx, run, op.now, epoch=op.run.epoch)
    match verdict:
        case Joined(run_id=other):
            yield from _drop(tx, run_id, f"joined run {other}", state, op.now)
        case Dropped(reason=reason):
            yield from _drop(tx, run_id, reason, state, op.now)
        case Fresh(cancels=cancels):
            planned = {"new_gates": op.admission.gates.to_json(), "start_by": verdict.run.start_by}
            yield flow_sql.PLAN_RUN, {"run": run_id, **planned, **_place_of(verdict)}
            yield from cancel_tree(tx, list(cancels), f"singleton: run {run_id} takes its place", op.now)
            tx.tell(HintKind.READY)
    return Done(state.mail, state.cancel)


def _drop(tx: Transaction, run_id: str, reason: str, state: RunState, now: int) -> Work[None]:
    *_, error = child_outcome(run_id, Status.SKIPPED, output=None, error=None, reason=reason)
    result = (None, None, error if state.parent_key else None)
    yield from end_run(tx, run_id, Status.SKIPPED, now=now, reason=reason, result=result)
    yield from wake_parent(
        tx, run_id, state.parent_id, state.parent_key, Status.SKIPPED, now=now, output=None, error=error
    )


def _insert_admitted(tx: Transaction, run: NewRun, now: int) -> Work[Started]:
    """Insert a run as flow control has it: to be claimed, or skipped; or let another one do its work."""
    assert run.admission is not None
    if (yield sql.READ_RUN, {"id": run.id}):  # played again
        return Started(run.id, created=False, epoch=0)
    verdict = yield from admit(tx, run, now)
    if isinstance(verdict, Joined):
        if run.event_id is not None:
            yield sql.INSERT_EVENT_RUN, {"event_id": run.event_id, "run_id": verdict.run_id}
        if run.idempotency_key is not None:
            yield from _hand_key_to(run, verdict.run_id)
        return Started(verdict.run_id, created=False, epoch=0)
    if isinstance(verdict, Dropped):
        skipped = _run_params(run, now, None) | {
            "status": int(Status.SKIPPED),
            "ready_at": NEVER,
            "reason": verdict.reason,
            "ended_at": now,
        }
        started = yield from _insert(tx, run._replace(cancel_on=()), skipped)
        tx.tell(HintKind.ENDED, run.id)
        return started
    planned = verdict.run
    params = _run_params(planned, now, None) | _place_of(verdict)
    started = yield from _insert(tx, planned, params)
    if verdict.cancels:
        yield from cancel_tree(tx, list(verdict.cancels), f"singleton: run {run.id} takes its place", now)
    return started


def _place_of(verdict: Fresh) -> dict[str, Any]:
    """Where a run stands that was admitted: in a lane, or among those that claims look at."""
    run, lane = verdict.run, verdict.lane
    # Who is behind others only is claimed when its time comes; from another lane it has to be let through.
    is_out = lane is not None and not lane.startswith(LAG)
    return {
        "ready_at": (run.start_by or NEVER) if is_out else run.ready_at,
        "blocked_on": lane,
        "order_at": None if lane is None else run.ready_at,
        "reason": verdict.reason,
    }


def _insert(tx: Transaction, run: NewRun, params: dict[str, Any]) -> Work[Started]:
    rows = yield sql.INSERT_RUN, params
    if not rows:
        return Started(run.id, created=False, epoch=0)
    yield (
        sql.INSERT_RUN_IO,
        {
            "run_id": run.id,
            "input": run.input,
            "trigger": run.trigger,
            "tags": json.dumps(run.tags, ensure_ascii=False) if run.tags else None,
            "started_by": run.started_by,
            "output": None,
            "error": None,
            "parent_error": None,
        },
    )
    for wait in run.cancel_on:
        yield sql.INSERT_WAIT, {"run_id": run.id, **wait._asdict()}
    if run.event_id is not None:
        yield sql.INSERT_EVENT_RUN, {"event_id": run.event_id, "run_id": run.id}
    if params["owner"] is None:
        tx.tell(HintKind.READY)
    return Started(run.id, created=True, epoch=params["epoch"])


def suspend(tx: Transaction, op: Suspend) -> Work[Done | MailChanged | Fenced]:
    """Let go of a waiting run, if nothing was delivered since its owner last looked."""
    state = yield from fence(tx, op.run)
    if isinstance(state, RunState):
        rows = yield (
            sql.SUSPEND_RUN,
            {
                "to": int(op.status),
                "ready": op.ready_at,
                "why": op.reason,
                "run": op.run.run_id,
                "at_epoch": op.run.epoch,
                "by": op.run.worker_id,
                "seen": op.mail,
            },
        )
        if rows:
            if op.slots:
                yield from free_slots(tx, [op.run.run_id], op.now, op.slots)
            tx.tell(HintKind.READY)
            return Done(mail=op.mail)
        # Nothing was hit: look again, for what came between the two statements.
        state = yield from fence(tx, op.run)
    if isinstance(state, RunState):
        return MailChanged(state.mail, state.cancel)
    return (yield from _let_go_before(op, state))


def release(tx: Transaction, op: Release) -> Work[Done | Fenced]:
    """Give a run back, ready at once."""
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return (yield from _let_go_before(op, state))
    yield (
        sql.RELEASE_RUN,
        {"now": op.now, "run": op.run.run_id, "at_epoch": op.run.epoch, "by": op.run.worker_id},
    )
    if op.slots:
        yield from free_slots(tx, [op.run.run_id], op.now, op.slots)
    tx.tell(HintKind.READY)
    return Done(state.mail, state.cancel)


def finish(tx: Transaction, op: Finish) -> Work[Done | Fenced]:
    """End a run and tell its parent."""
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return (yield from _finished_before(op, state))
    run_id = op.run.run_id
    yield from end_run(
        tx, run_id, op.status, now=op.now, reason=op.reason, result=(op.output, op.error, op.parent_error)
    )
    yield from wake_parent(
        tx,
        run_id,
        state.parent_id,
        state.parent_key,
        op.status,
        now=op.now,
        output=op.output,
        error=op.parent_error or op.error,
    )
    if op.status == Status.CANCELLED:
        yield from _cancel_children(tx, run_id, op.reason, op.now)
    if op.slots:
        yield from free_slots(tx, [run_id], op.now, op.slots)
    if op.follow_up is not None:
        yield from insert_run(tx, op.follow_up, op.now)
    return Done(state.mail, state.cancel)


def cancel_run(tx: Transaction, op: CancelRun) -> Work[Cancelled]:
    """Cancel a run and, down the tree, its children that are not detached."""
    yield sql.LOCK_RUN, {"id": op.run_id}
    rows = yield sql.READ_RUN, {"id": op.run_id}
    if not rows:
        return Cancelled(None, (), ())
    before = Status(RunState(*rows[0]).status)
    if before >= Status.COMPLETED:
        return Cancelled(run_status(before), (), ())
    ended, asked = yield from cancel_tree(tx, [op.run_id], op.reason, op.now)
    return Cancelled(run_status(before), tuple(ended), tuple(asked))


def run_status(status: int) -> RunStatus:
    return RunStatus(Status(status).name.lower())


def end_run(
    tx: Transaction,
    run_id: str,
    status: Status,
    *,
    now: int,
    reason: str | None,
    result: tuple[Json | None, Json | None, Json | None],
) -> Work[bool]:
    """Make a run final: nothing waits for anything any more. False when it was final already."""
    rows = yield sql.END_RUN, {"to": int(status), "why": reason, "now": now, "run": run_id}
    if not rows:
        return False
    output, error, for_parent = result
    if output is not None or error is not None or for_parent is not None:
        yield sql.SET_RESULT, {"result": output, "failure": error, "for_parent": for_parent, "run": run_id}
    kinds = yield sql.DELETE_WAITS, {"run": run_id}
    if any(kind == "approval" for (kind,) in kinds):
        yield sql.CLOSE_APPROVALS, {"to": "cancelled", "now": now, "run": run_id}
    tx.tell(HintKind.ENDED, run_id)
    return True


def wake_parent(
    tx: Transaction,
    run_id: str,
    parent_id: str | None,
    parent_key: str | None,
    status: Status,
    *,
    now: int,
    output: Json | None,
    error: Json | None,
) -> Work[None]:
    """Hand the child's end to the parent's step, if that still waits for it."""
    if parent_id is None or parent_key is None:
        return
    outcome = child_outcome(run_id, status, output=output, error=error, reason=None)
    yield from deliver(tx, parent_id, parent_key, now, outcome)


def wake_parents(tx: Transaction, parents: Sequence[tuple[str, str, Finish]]) -> Work[None]:
    """Hand these ends to those who wait for them."""
    for parent_id, parent_key, op in parents:
        error = op.parent_error or op.error
        yield from wake_parent(
            tx, op.run.run_id, parent_id, parent_key, op.status, now=op.now, output=op.output, error=error
        )


def child_outcome(
    run_id: str, status: Status, *, output: Json | None, error: Json | None, reason: str | None
) -> tuple[bool, Json | None, Json | None]:
    """What the parent's step becomes: the output, or an error."""
    if status == Status.COMPLETED:
        return True, output if output is not None else "null", None
    if error is not None:
        return False, None, error
    word = status.name.lower()
    stored = {
        "name": f"Run{word.capitalize()}",
        "message": f"run {run_id} was {word}" + (f": {reason}" if reason else ""),
        "traceback": None,
        "attributes": {"run_id": run_id, "reason": reason},
        "own": None,
    }
    return False, None, json.dumps(stored, ensure_ascii=False)


def cancel_tree(
    tx: Transaction, roots: list[str], reason: str | None, now: int
) -> Work[tuple[list[str], list[str]]]:
    """Cancel these runs and what hangs on them, parents first; which ended at once and which were asked."""
    ended: list[str] = []
    asked: list[str] = []
    todo = list(roots)
    while todo:
        run_id = todo.pop(0)
        yield sql.LOCK_RUN, {"id": run_id}
        rows = yield sql.READ_RUN, {"id": run_id}
        if not rows:
            continue
        state = RunState(*rows[0])
        if state.status >= Status.COMPLETED:
            continue
        if state.status == Status.RUNNING:
            yield sql.ASK_TO_CANCEL, {"now": now, "why": reason, "run": run_id}
            tx.tell(HintKind.MAIL, run_id)
            asked.append(run_id)
        else:
            if state.is_gated and state.status == Status.QUEUED:
                yield from leave_lanes(tx, run_id, now)
            *_, error = child_outcome(run_id, Status.CANCELLED, output=None, error=None, reason=reason)
            yield from end_run(
                tx,
                run_id,
                Status.CANCELLED,
                now=now,
                reason=reason,
                result=(None, None, error if state.parent_key else None),
            )
            yield from wake_parent(
                tx,
                run_id,
                state.parent_id,
                state.parent_key,
                Status.CANCELLED,
                now=now,
                output=None,
                error=error,
            )
            ended.append(run_id)
        children = yield sql.READ_CHILDREN, {"id": run_id}
        todo.extend(child for child, _ in children)
    return ended, asked


def _cancel_children(tx: Transaction, run_id: str, reason: str | None, now: int) -> Work[None]:
    children = yield sql.READ_CHILDREN, {"id": run_id}
    yield from cancel_tree(tx, [child for child, _ in children], reason, now)


def _claim_key(run: NewRun, now: int) -> Work[Started | KeyConflict | None]:
    """Take the idempotency key for this run; what is there already, if it is still held."""
    assert run.idempotency_key is not None
    digest, until = run.idempotency_digest or "", run.idempotency_until or NEVER
    key = {"app": run.app, "function": run.function, "key": run.idempotency_key}
    rows = yield sql.INSERT_KEY, {**key, "run_id": run.id, "digest": digest, "until": until}
    if rows:
        return None
    [(held_by, held_digest, held_until)] = yield sql.READ_KEY, key
    if held_by == run.id:
        return Started(run.id, created=False, epoch=0)
    if held_until > now:
        if held_digest != digest:
            return KeyConflict(held_by)
        return Started(held_by, created=False, epoch=0)
    yield (
        sql.RENEW_KEY,
        {
            "new_run": run.id,
            "new_digest": digest,
            "new_until": until,
            "of_app": run.app,
            "of_function": run.function,
            "of_key": run.idempotency_key,
        },
    )
    return None


def _run_params(run: NewRun, now: int, owner: str | None) -> dict[str, Any]:
    return {
        "id": run.id,
        "app": run.app,
        "function": run.function,
        "status": int(Status.QUEUED if owner is None else Status.RUNNING),
        "ready_at": run.ready_at,
        "blocked_on": None,
        "order_at": None,
        "gates": _gates_of(run),
        "owner": owner,
        "epoch": 0 if owner is None else 1,
        "mail": 0,
        "crash_count": 0,
        "begun_epoch": None,
        "depth": run.depth,
        "version": run.version,
        "parent_id": run.parent_id,
        "parent_key": run.parent_key,
        "root_id": run.root_id,
        "rerun_of": run.rerun_of,
        "idempotency_key": run.idempotency_key,
        "cancel_at": None,
        "deadline": run.start_by,
        "reason": None,
        "created_at": run.created_at,
        "started_at": None if owner is None else now,
        "ended_at": None,
    }


def _gates_of(run: NewRun) -> Json | None:
    if run.is_unplanned:
        return UNPLANNED
    return None if run.admission is None else run.admission.gates.to_json()


def _hand_key_to(run: NewRun, run_id: str) -> Work[None]:
    """The idempotency key of a start that joined another run leads to that one."""
    yield (
        sql.RENEW_KEY,
        {
            "new_run": run_id,
            "new_digest": run.idempotency_digest or "",
            "new_until": run.idempotency_until or NEVER,
            "of_app": run.app,
            "of_function": run.function,
            "of_key": run.idempotency_key,
        },
    )


def _let_go_before(op: Suspend | Release, why: Fenced) -> Work[Done | Fenced]:
    """Nothing was hit: did the same operation do it before? At its epoch nobody else lets a run go."""
    rows = yield sql.READ_RUN, {"id": op.run.run_id}
    if rows:
        state = RunState(*rows[0])
        if state.epoch == op.run.epoch and state.owner is None and state.status < Status.COMPLETED:
            return Done(state.mail, state.cancel)
    return why


def _finished_before(op: Finish, why: Fenced) -> Work[Done | Fenced]:
    rows = yield sql.READ_RUN, {"id": op.run.run_id}
    if rows:
        state = RunState(*rows[0])
        if state.epoch == op.run.epoch and state.status == op.status:
            return Done(state.mail, state.cancel)
    return why
