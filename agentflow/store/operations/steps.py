"""What a run writes while it goes: steps, failed attempts, the ledger, its stream; and what functions there are."""

from __future__ import annotations

from agentflow.store.hints import HintKind
from agentflow.store.operation_types import (
    AppendStream,
    BeginCode,
    CommitStep,
    EndAbandonedCall,
    RecordAttempt,
    RegisterFunctions,
    WriteModelCall,
)
from agentflow.store.operations.budgets import reserve, settle
from agentflow.store.outcome_types import Done, Exists, Fenced, OverBudget
from agentflow.store.statements import core as sql
from agentflow.store.stored_types import ModelCall, StoredStep
from agentflow.store.transaction import RunState, Transaction, Work, fence, step_params, stored_step


def commit_step(tx: Transaction, op: CommitStep) -> Work[Done | Exists | Fenced]:
    """Store a step's outcome; one that is there already stands."""
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return state
    outcome = yield from store_step(op.run.run_id, op.step, state)
    if op.model_call is not None:
        yield from _write_call(tx, op.run.run_id, op.model_call)
    return outcome


def store_step(run_id: str, step: StoredStep, state: RunState) -> Work[Done | Exists]:
    """Insert the step; if it has an outcome already, give that with a seq."""
    rows = yield sql.INSERT_STEP, step_params(run_id, step)
    if not rows:
        stored = yield from read_numbered(run_id, step.key, step.seq)
        assert stored is not None  # steps are never deleted while their run is running
        return Exists(stored, state.mail, state.cancel)
    yield from forgive_crashes(run_id, state)
    return Done(state.mail, state.cancel)


def forgive_crashes(run_id: str, state: RunState) -> Work[None]:
    """The run has a new step: what it crashed of before lies behind it."""
    if state.crash_count > 0:
        yield sql.RESET_CRASHES, {"run": run_id}


def read_numbered(run_id: str, key: str, seq: int | None) -> Work[StoredStep | None]:
    """The stored step; if it was delivered and not adopted yet, it gets this seq."""
    rows = yield sql.READ_STEP, {"run": run_id, "key": key}
    if not rows:
        return None
    step = stored_step(rows[0])
    if step.seq is None and seq is not None:
        yield sql.NUMBER_STEP, {"number": seq, "run": run_id, "step": key}
        step = step._replace(seq=seq)
    return step


def begin_code(tx: Transaction, op: BeginCode) -> Work[Done | Fenced]:
    """Note that the run's code is about to be called under this epoch."""
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return state
    yield sql.BEGIN_CODE, {"number": op.run.epoch, "run": op.run.run_id}
    return Done(state.mail, state.cancel)


def record_attempt(tx: Transaction, op: RecordAttempt) -> Work[Done | Fenced]:
    """Store a failed attempt."""
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return state
    yield sql.INSERT_ATTEMPT, {"run_id": op.run.run_id, **op.attempt._asdict()}
    if op.model_call is not None:
        yield from _write_call(tx, op.run.run_id, op.model_call)
    return Done(state.mail, state.cancel)


def write_model_call(tx: Transaction, op: WriteModelCall) -> Work[Done | Fenced | OverBudget]:
    """Insert or update a row of the ledger; a new one with its reservations."""
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return state
    if op.reservations:
        over = yield from reserve(tx, op.run.run_id, op.call, op.reservations)
        if over is not None:
            return over
        yield sql.UPSERT_MODEL_CALL, {"run_id": op.run.run_id, **op.call._asdict()}
    else:
        yield from _write_call(tx, op.run.run_id, op.call)
    return Done(state.mail, state.cancel)


def end_abandoned_call(tx: Transaction, op: EndAbandonedCall) -> Work[Done]:
    """Enter the end of a job that nobody waits for."""
    call = op.call
    if call.charges is not None:
        yield from settle(tx, op.run_id, call)
    yield (
        sql.END_ABANDONED_CALL,
        {
            "becomes": call.state,
            "now": call.ended_at,
            "why": call.error,
            "run": op.run_id,
            "step": call.key,
            "number": call.attempt,
        },
    )
    return Done()


def append_stream(tx: Transaction, op: AppendStream) -> Work[Done | Fenced]:
    """Append to the run's live stream."""
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return state
    for chunk in op.chunks:
        yield sql.INSERT_CHUNK, {"run_id": op.run.run_id, **chunk._asdict()}
    tx.tell(HintKind.STREAM, op.run.run_id)
    return Done(state.mail, state.cancel)


def register_functions(tx: Transaction, op: RegisterFunctions) -> Work[Done]:
    """Make functions known. A paused one stays paused."""
    for function in sorted(op.functions, key=lambda function: (function.app, function.id)):
        yield (
            sql.UPSERT_FUNCTION,
            {
                "app": function.app,
                "id": function.id,
                "version": function.version,
                "triggers": function.triggers,
                "config": function.config,
                "schemas": function.schemas,
                "paused_at": function.paused_at,
                "registered_at": op.now,
            },
        )
    return Done()


def _write_call(tx: Transaction, run_id: str, call: ModelCall) -> Work[None]:
    if call.charges is not None:
        call = call._replace(charges=(yield from settle(tx, run_id, call)))
    yield sql.UPSERT_MODEL_CALL, {"run_id": run_id, **call._asdict()}
