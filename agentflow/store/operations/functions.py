"""Functions are paused and resumed: a paused one's runs are stored, and stay queued."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agentflow.store.hints import HintKind
from agentflow.store.operation_types import PauseFunction
from agentflow.store.outcome_types import Done
from agentflow.store.statements import core as sql
from agentflow.store.stored_types import NewRun
from agentflow.store.transaction import Transaction, Work


def pause_function(tx: Transaction, op: PauseFunction) -> Work[Done]:
    """Claims leave the runs of a paused function alone; they look for themselves."""
    of_function = {"of_app": op.app, "of_id": op.function}
    if op.resume:
        yield sql.RESUME_FUNCTION, of_function
        tx.tell(HintKind.READY)
    else:
        yield sql.PAUSE_FUNCTION, {**of_function, "now": op.now}
    tx.paused = None
    return Done()


def is_paused(tx: Transaction, run: NewRun) -> Work[bool]:
    """Whether the run has to stay queued."""
    return (run.app, run.function) in (yield from read_paused(tx))


def read_paused(tx: Transaction) -> Work[frozenset[tuple[str, str]]]:
    """The functions that are paused. Read once in a transaction, however many runs it starts."""
    if tx.paused is None:
        tx.paused = paused_functions((yield sql.READ_PAUSED, {}))
    return tx.paused


def paused_functions(rows: Iterable[Any]) -> frozenset[tuple[str, str]]:
    """The functions, from rows of `READ_PAUSED`."""
    return frozenset((app, function) for app, function in rows)
