"""Engines without one protection of flow control, events, approvals, schedules or reruns, and what each is about."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

from sqlalchemy import literal_column as raw
from sqlalchemy import select, update

from agentflow.store.operation_types import Finish, TickSchedule
from agentflow.store.operations import admission as operations_admission
from agentflow.store.operations import approvals as operations_approvals
from agentflow.store.operations import dispatch as operations
from agentflow.store.operations import gates as operations_gates
from agentflow.store.operations import messages as operations_messages
from agentflow.store.operations.runs import finish
from agentflow.store.operations.schedules import tick_schedule
from agentflow.store.rows import RunRow, ScheduleRow, table_of
from agentflow.store.statements import core as sql
from agentflow.store.statements import flow as statements_flow
from agentflow.store.statements import schedules as statements_schedules
from agentflow.store.statements import workers as worker_sql
from agentflow.store.statements.statement import Statement, big, text
from agentflow.store.transaction import Work
from tests.simulation.altering import text_changed
from tests.simulation.world import Mutant, World

FLOW_MUTANTS: dict[str, tuple[Mutant, tuple[str, ...]]] = {}
"""With the kinds of traffic in which it shows soonest."""

_NOTHING = Statement(lambda _: select(raw("1")).where(raw("0") == raw("1")))


def about(
    *kinds: str,
) -> Callable[[Callable[[World], Iterator[None]]], Callable[[World], AbstractContextManager[None]]]:
    def register(
        function: Callable[[World], Iterator[None]],
    ) -> Callable[[World], AbstractContextManager[None]]:
        made = contextmanager(function)
        FLOW_MUTANTS[function.__name__.replace("_", " ")] = made, kinds
        return made

    return register


def _nothing_done(*_: Any, **__: Any) -> Work[None]:
    return None
    yield


@about("shared")
def slots_are_not_looked_at(world: World) -> Iterator[None]:
    with patch.object(operations_gates._Visit, "full_slot", lambda self, candidate: None):
        yield


@about("shared")
def slots_are_not_taken(world: World) -> Iterator[None]:
    with patch.object(statements_flow, "INSERT_SLOT", _NOTHING):
        yield


@about("throttle")
def a_throttle_does_not_step(world: World) -> Iterator[None]:
    with patch.object(operations_gates._Throttle, "_step", lambda self: None):
        yield


@about("throttle")
def who_waits_at_a_throttle_is_given_no_time(world: World) -> Iterator[None]:
    with patch.object(statements_flow, "SCHEDULE_RUN", _NOTHING):
        yield


@about("debounce")
def a_debounce_loses_the_last_event(world: World) -> Iterator[None]:
    with patch.object(operations_admission, "_replace_input", _nothing_done):
        yield


@about("debounce", "batch")
def a_run_collects_while_it_executes(world: World) -> Iterator[None]:
    run = table_of(RunRow)
    blind = Statement(
        lambda _: (
            update(run)
            .values(reason=run.c.reason)
            .where(run.c.id == text("run"), run.c.status < raw("4"))
            .returning(run.c.id)
        )
    )
    with patch.object(statements_flow, "PUT_OFF", blind):
        yield


@about("batch")
def a_full_batch_goes_on_collecting(world: World) -> Iterator[None]:
    with patch.object(statements_flow, "DROP_HOLDER", _NOTHING):
        yield


@about("batch")
def a_batch_begins_with_its_first_event(world: World) -> Iterator[None]:
    with patch.object(operations_admission, "_due_at", lambda run, ready_at: run):
        yield


@about("rate")
def a_rate_limit_does_not_count(world: World) -> Iterator[None]:
    with patch.object(statements_flow, "WRITE_RATE", _NOTHING):
        yield


@about("single")
def a_singleton_does_not_look(world: World) -> Iterator[None]:
    with patch.object(operations_admission, "_holder_of", _nothing_done):
        yield


@about("idempotency")
def an_idempotency_key_is_not_kept(world: World) -> Iterator[None]:
    with patch.object(operations_admission, "_keep_idempotency", _nothing_done):
        yield


@about("priority")
def a_lane_goes_by_age_alone(world: World) -> Iterator[None]:
    old = "ORDER BY lane.order_at, lane.id"
    with text_changed(statements_flow.LET_THROUGH, old, "ORDER BY lane.id"):
        yield


@about("if")
def conditions_are_not_looked_at(world: World) -> Iterator[None]:
    def holds(*_: Any) -> Work[bool]:
        return True
        yield

    with patch.object(operations_messages, "holds", holds):
        yield


@about("cancel-on")
def an_event_cancels_nothing(world: World) -> Iterator[None]:
    with patch.object(operations_messages, "cancel_tree", _nothing_done):
        yield


@about("batch", "throttle")
def an_event_is_not_known_again(world: World) -> Iterator[None]:
    real = operations_messages._send_event

    def send(tx: Any, event: Any, now: int) -> Work[Any]:
        return (yield from real(tx, event._replace(dedup_key=None), now))

    with patch.object(operations_messages, "_send_event", send):
        yield


@about("failure")
def a_failure_starts_nothing(world: World) -> Iterator[None]:
    with patch.dict(operations._LOGIC, {Finish: lambda tx, op: finish(tx, op._replace(follow_up=None))}):
        yield


@about()
def a_decision_is_taken_twice(world: World) -> Iterator[None]:
    with patch.object(operations_approvals, "_refuse", lambda asked, op: None):
        yield


@about()
def a_paused_function_is_claimed(world: World) -> Iterator[None]:
    paused = "agentflow_function.paused_at IS NOT NULL"
    with text_changed(worker_sql.CLAIM_RUNS, paused, f"{paused} AND 0"):
        yield


@about()
def a_rerun_does_everything_again(world: World) -> Iterator[None]:
    with patch.object(sql, "COPY_STEPS", _NOTHING):
        yield


@about("cron")
def a_tick_is_not_known_again(world: World) -> Iterator[None]:
    """Who looks late moves the schedule back; and a run's id says nothing of its time."""
    numbers = itertools.count()
    schedule = table_of(ScheduleRow)
    blind = Statement(
        lambda _: (
            update(schedule)
            .values(next_at=big("following"), last_nominal=big("nominal"))
            .where(schedule.c.id == text("schedule"))
            .returning(schedule.c.id)
        )
    )
    new_id = patch("agentflow.starts.derived_id", lambda *_: f"run_{next(numbers):032}")
    with patch.object(statements_schedules, "MOVE_SCHEDULE", blind), new_id:
        yield


@about("cron")
def a_tick_moves_the_schedule_and_starts_nothing(world: World) -> Iterator[None]:
    with patch.dict(
        operations._LOGIC, {TickSchedule: lambda tx, op: tick_schedule(tx, op._replace(runs=()))}
    ):
        yield
