"""Which operations of a batch are carried out together, by few statements for all of them: starts, steps, finishes,
and what runs write beside their steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentflow.store.operation_types import (
    AppendStream,
    CommitStep,
    Finish,
    PauseFunction,
    StartRun,
    WriteModelCall,
)
from agentflow.store.stored_types import ModelCall, NewRun, Status


class Plan:
    """Which operations of a batch go together, ahead of the others: nothing before them concerns their run."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.asides: list[int] = []
        """Rows of the ledger and pieces of streams. They are written before steps and finishes."""
        self.steps: list[int] = []
        self.finishes: list[int] = []

    def is_one_kind(self, operations: Sequence[Any]) -> bool:
        """Whether the operations are all starts, steps or finishes, and nothing beside is to be written."""
        most = max(len(self.starts), len(self.steps), len(self.finishes))
        has_more = any(operations[index].has_parent for index in self.finishes) or any(
            operations[index].model_call is not None for index in self.steps
        )
        return most == len(operations) and not has_more

    @classmethod
    def of(cls, operations: Sequence[Any]) -> Plan:
        plan = cls()
        touched: set[str] = set()
        started: set[str] = set()
        finished: set[str] = set()
        keys: set[tuple[str, str]] = set()
        calls: set[tuple[str, str, int]] = set()
        # Whether a start comes before a pause or after it matters: then they are taken in their order.
        has_pause = any(type(operation) is PauseFunction for operation in operations)
        for index, operation in enumerate(operations):
            kind = type(operation)
            if kind is CommitStep:
                run_id = operation.run.run_id
                key = (run_id, operation.step.key)
                is_free = run_id not in touched and run_id not in finished and key not in keys
                call = operation.model_call
                if is_free and (call is None or _is_new_row(run_id, call, calls)):
                    keys.add(key)
                    plan.steps.append(index)
                    continue
            elif kind is AppendStream or kind is WriteModelCall:
                run_id = operation.run.run_id
                is_free = run_id not in touched and run_id not in finished
                if is_free and (
                    kind is AppendStream
                    or (not operation.reservations and _is_new_row(run_id, operation.call, calls))
                ):
                    plan.asides.append(index)
                    continue
            elif kind is StartRun:
                run_id = operation.run.id
                is_plain = _is_plain(operation.run)
                if run_id not in touched and run_id not in started and is_plain and not has_pause:
                    started.add(run_id)
                    plan.starts.append(index)
                    continue
            elif kind is Finish:
                run_id = operation.run.run_id
                is_plain = (
                    operation.status != Status.CANCELLED
                    and operation.follow_up is None
                    and not operation.slots
                )
                if run_id not in touched and run_id not in finished and is_plain:
                    finished.add(run_id)
                    plan.finishes.append(index)
                    continue
            else:
                run = getattr(operation, "run", None)
                run_id = getattr(run, "run_id", None) or getattr(operation, "run_id", None)
            if run_id is not None:
                touched.add(run_id)
        return plan


def _is_new_row(run_id: str, call: ModelCall, calls: set[tuple[str, str, int]]) -> bool:
    """Whether the row is written for the first time in the batch, and nothing else (a budget) hears of it."""
    row = (run_id, call.key, call.attempt)
    if call.charges is not None or row in calls:
        return False
    calls.add(row)
    return True


def _is_plain(run: NewRun) -> bool:
    """Whether nothing but the run itself is written when it starts."""
    is_free = run.admission is None and not run.is_unplanned and run.start_by is None
    is_free = is_free and run.started_by is None
    return is_free and run.idempotency_key is None and not run.cancel_on
