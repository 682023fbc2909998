"""Each operation and the logic that carries it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from agentflow.store import operation_types as ops
from agentflow.store import stored_types
from agentflow.store.operations.approvals import decide
from agentflow.store.operations.budgets import budgets_of
from agentflow.store.operations.effects import mark_effect, unmark_effect
from agentflow.store.operations.functions import pause_function
from agentflow.store.operations.gates import TendLanes, tend_lanes
from agentflow.store.operations.messages import send_events, send_signal
from agentflow.store.operations.model_limits import begin_model_call, settle_model_call, slow_model_calls
from agentflow.store.operations.races import commit_race
from agentflow.store.operations.reclaim import Reclaim, reclaim
from agentflow.store.operations.retention import prune, prune_loose
from agentflow.store.operations.runs import (
    cancel_run,
    finish,
    plan_run,
    release,
    rerun,
    start_run,
    suspend,
)
from agentflow.store.operations.schedules import keep_schedules, list_schedules, tick_schedule
from agentflow.store.operations.steps import (
    append_stream,
    begin_code,
    commit_step,
    end_abandoned_call,
    record_attempt,
    register_functions,
    write_model_call,
)
from agentflow.store.operations.threads import begin_turn, end_turn, forget_thread
from agentflow.store.operations.waits import adopt, register_wait, resolve_wait, withdraw_wait
from agentflow.store.operations.workers import (
    Claim,
    ListMail,
    ListWorkers,
    NextReady,
    Reap,
    RegisterWorker,
    ReleaseOrphans,
    RetireWorker,
    TakeOwnerless,
    claim,
    list_mail,
    list_workers,
    next_ready,
    reap,
    register_worker,
    release_orphans,
    retire_worker,
    take_ownerless,
)
from agentflow.store.transaction import Transaction, Work

_LOGIC: dict[type, Callable[[Transaction, Any], Work[Any]]] = {
    ops.StartRun: start_run,
    ops.Rerun: rerun,
    ops.CommitStep: commit_step,
    ops.CommitRace: commit_race,
    ops.RegisterWait: register_wait,
    ops.ResolveWait: resolve_wait,
    ops.WithdrawWait: withdraw_wait,
    ops.BeginCode: begin_code,
    ops.RecordAttempt: record_attempt,
    ops.WriteModelCall: write_model_call,
    ops.EndAbandonedCall: end_abandoned_call,
    ops.Adopt: adopt,
    ops.Suspend: suspend,
    ops.Release: release,
    ops.Finish: finish,
    ops.SendEvents: send_events,
    ops.SendSignal: send_signal,
    ops.Decide: decide,
    ops.CancelRun: cancel_run,
    ops.AppendStream: append_stream,
    ops.RegisterFunctions: register_functions,
    ops.PauseFunction: pause_function,
    ops.KeepSchedules: keep_schedules,
    ops.ListSchedules: list_schedules,
    ops.TickSchedule: tick_schedule,
    ops.PlanRun: plan_run,
    ops.Prune: prune,
    ops.PruneLoose: prune_loose,
    ops.BeginModelCall: begin_model_call,
    ops.SettleModelCall: settle_model_call,
    ops.SlowModelCalls: slow_model_calls,
    ops.BeginTurn: begin_turn,
    ops.EndTurn: end_turn,
    ops.ForgetThread: forget_thread,
    ops.MarkEffect: mark_effect,
    ops.UnmarkEffect: unmark_effect,
    Claim: claim,
    Reclaim: reclaim,
    ListMail: list_mail,
    ListWorkers: list_workers,
    NextReady: next_ready,
    Reap: reap,
    RegisterWorker: register_worker,
    ReleaseOrphans: release_orphans,
    RetireWorker: retire_worker,
    TakeOwnerless: take_ownerless,
    TendLanes: tend_lanes,
}

_ALWAYS_STRICT = frozenset(
    (ops.SendEvents, ops.SendSignal, ops.Decide, ops.WriteModelCall, ops.MarkEffect, ops.ForgetThread)
)
_NEVER_STRICT = frozenset(
    (
        ops.AppendStream,
        ops.BeginCode,
        ops.ListSchedules,
        ops.Prune,
        ops.PruneLoose,
        ops.BeginModelCall,
        ops.SettleModelCall,
        ops.SlowModelCalls,
        Claim,
        Reclaim,
        ListMail,
        ListWorkers,
        NextReady,
        Reap,
        RegisterWorker,
        ReleaseOrphans,
        RetireWorker,
        TendLanes,
    )
)
"""What a power loss may take without harm: it is done again, or it was only for the eye."""

_READS = frozenset((ListMail, ListWorkers, NextReady, ops.ListSchedules))


def apply(tx: Transaction, operation: Any) -> Work[Any]:
    """The work of one operation; what it returns is the outcome."""
    return _LOGIC[type(operation)](tx, operation)


def is_strict(operation: Any, *, by_default: bool) -> bool:
    """Whether the operation's commit has to reach the disk before it is acknowledged."""
    kind = type(operation)
    if kind in _ALWAYS_STRICT:
        return True
    if kind in _NEVER_STRICT:
        return False
    if by_default:
        return True
    approves = isinstance(operation, ops.RegisterWait) and operation.approval is not None
    return approves or getattr(operation, "model_call", None) is not None


def is_read(operation: Any) -> bool:
    return type(operation) in _READS


def workers_of(operations: Iterable[Any]) -> list[str]:
    """The workers whose lease these operations depend on, in order of their ids."""
    found: set[str] = set()
    for operation in operations:
        key = getattr(operation, "run", None)
        if isinstance(key, stored_types.RunKey):
            found.add(key.worker_id)
        elif isinstance(operation, ops.StartRun):
            if operation.owner is not None:
                found.add(operation.owner)
        elif isinstance(operation, Claim | Reclaim | ReleaseOrphans):
            found.add(operation.worker_id)
    return sorted(found)


def flow_keys_of(operation: Any) -> list[str]:
    """The keys of flow control that an operation is known to look at."""
    if isinstance(operation, ops.Suspend | ops.Release | ops.Finish):
        return list(operation.slots)
    if isinstance(operation, ops.CommitStep | ops.RecordAttempt):
        return budgets_of(operation.model_call)
    if isinstance(operation, ops.WriteModelCall | ops.EndAbandonedCall):
        return budgets_of(operation.call)
    starts: list[stored_types.NewRun] = []
    if isinstance(operation, ops.StartRun | ops.Rerun):
        starts = [operation.run]
    elif isinstance(operation, ops.TickSchedule):
        starts = list(operation.runs)
    elif isinstance(operation, ops.SendEvents):
        starts = [run for event in operation.events for run in event.starts]
    elif isinstance(operation, ops.RegisterWait) and operation.child is not None:
        starts = [operation.child]
    return [key for run in starts if run.admission is not None for key in run.admission.looks_at()]


def weight_of(operation: Any) -> int:
    """Roughly how many bytes an operation brings; what is small anyway counts nothing."""
    weigh = _WEIGHTS.get(type(operation))
    return 0 if weigh is None else weigh(operation)


def _weight_of_step(operation: ops.CommitStep | ops.CommitRace | ops.ResolveWait | ops.EndTurn) -> int:
    return len(operation.step.output or "")


_WEIGHTS: dict[type, Callable[[Any], int]] = {
    ops.CommitStep: _weight_of_step,
    ops.CommitRace: _weight_of_step,
    ops.ResolveWait: _weight_of_step,
    ops.EndTurn: lambda op: _weight_of_step(op) + sum(len(data) for _, data in op.turn.messages),
    ops.StartRun: lambda op: len(op.run.input),
    ops.Rerun: lambda op: len(op.run.input),
    ops.TickSchedule: lambda op: sum(len(run.input) for run in op.runs),
    ops.Finish: lambda op: len(op.output or ""),
    ops.SendEvents: lambda op: sum(len(event.data) * (1 + len(event.starts)) for event in op.events),
    ops.AppendStream: lambda op: sum(len(chunk.data) for chunk in op.chunks),
    ops.RegisterWait: lambda op: 0 if op.child is None else len(op.child.input),
}
