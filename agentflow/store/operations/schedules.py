"""Schedules: kept for the functions that have them, and moved on together with the runs they start."""

from __future__ import annotations

from agentflow.store.operation_types import KeepSchedules, ListSchedules, TickSchedule
from agentflow.store.operations.runs import insert_run
from agentflow.store.outcome_types import Done, Schedules, Started, Ticked
from agentflow.store.statements import schedules as sql
from agentflow.store.transaction import Transaction, Work


def keep_schedules(tx: Transaction, op: KeepSchedules) -> Work[Done]:
    """Forget what the functions no longer have, and insert what is new."""
    kept = {schedule.id for schedule in op.schedules}
    if op.functions:
        for (schedule_id,) in (yield sql.FIND_SCHEDULES, {"app": op.app, "functions": op.functions}):
            if schedule_id not in kept:
                yield sql.FORGET_SCHEDULE, {"schedule": schedule_id}
    for schedule in sorted(op.schedules):
        yield sql.INSERT_SCHEDULE, {**schedule._asdict(), "last_nominal": None}
    return Done()


def list_schedules(tx: Transaction, op: ListSchedules) -> Work[Schedules]:
    """When each is due."""
    rows = yield sql.READ_SCHEDULES, {"ids": op.ids}
    return Schedules(tuple((schedule_id, next_at) for schedule_id, next_at in rows))


def tick_schedule(tx: Transaction, op: TickSchedule) -> Work[Ticked]:
    """Move the schedule on and start its runs, unless somebody else has."""
    moved = yield (
        sql.MOVE_SCHEDULE,
        {"following": op.next_at, "nominal": op.last_nominal, "schedule": op.id, "due": op.due_at},
    )
    if not moved:
        return Ticked((), moved=False)
    started: list[str] = []
    for run in op.runs:
        # There already when the schedule was forgotten and kept again between two of its times.
        outcome = yield from insert_run(tx, run, op.now)
        if isinstance(outcome, Started) and outcome.created:
            started.append(run.id)
    return Ticked(tuple(started), moved=True)
