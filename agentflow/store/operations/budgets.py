"""Budgets: what a model call may cost is reserved with its row in the ledger, and settled with the row's end.

What a budget has spent and reserved is the sum over the rows that name it in their `charges`, kept beside them. So each
write of a row moves its budgets by the difference to what was stored of it: played again, by nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from agentflow.store.charges import SUMS, read_charges, settled, sums_of, write_charges
from agentflow.store.outcome_types import OverBudget
from agentflow.store.statements import budgets as sql
from agentflow.store.stored_types import Json, Micros, ModelCall, Reservation
from agentflow.store.transaction import Transaction, Work, lock_keys


def budgets_of(call: ModelCall | None) -> list[str]:
    """The names by which the budgets of a row are locked."""
    return [] if call is None else [f"budget:{charge.budget}" for charge in read_charges(call.charges)]


def reserve(
    tx: Transaction, run_id: str, call: ModelCall, reservations: Sequence[Reservation]
) -> Work[OverBudget | None]:
    """Set aside what the row's request may cost, of all budgets or of none. A row that is there has it already."""
    yield from lock_keys(tx, budgets_of(call))
    if (yield from _stored(run_id, call)) is not None:
        return None
    for wanted in reservations:
        rows = yield sql.READ_BUDGET, {"of": wanted.key, "start": wanted.period_start}
        over = _over(wanted, *(rows[0] if rows else (0, 0, 0, 0)))
        if over is not None:
            return over
    for wanted in reservations:
        yield (
            sql.RESERVE,
            {
                "key": wanted.key,
                "period_start": wanted.period_start,
                "ends_at": wanted.ends_at,
                "name": wanted.name,
                "value": wanted.value,
                "cost_limit": wanted.cost_limit,
                "token_limit": wanted.token_limit,
                "spent_cost": 0,
                "spent_tokens": 0,
                "reserved_cost": wanted.cost,
                "reserved_tokens": wanted.tokens,
            },
        )
    return None


def settle(tx: Transaction, run_id: str, call: ModelCall) -> Work[Json | None]:
    """Move the row's budgets to what it counts for now, which is to be stored with it."""
    yield from lock_keys(tx, budgets_of(call))
    stored = yield from _stored(run_id, call)
    if stored is None:
        return call.charges
    charges = [settled(charge, call) for charge in read_charges(call.charges)]
    before = sums_of(read_charges(stored.charges), is_open=stored.ended_at is None)
    after = sums_of(charges, is_open=call.ended_at is None)
    for budget, start in sorted({(name, start) for name, start, _ in (*before, *after)}):
        more = {f"more_{what}": after[budget, start, what] - before[budget, start, what] for what in SUMS}
        if any(more.values()):
            yield sql.MOVE_BUDGET, {"of": budget, "start": start, **more}
    return write_charges(charges)


class _Stored(NamedTuple):
    charges: Json | None
    ended_at: Micros | None


def _stored(run_id: str, call: ModelCall) -> Work[_Stored | None]:
    rows = yield sql.READ_CHARGES, {"run": run_id, "step": call.key, "number": call.attempt}
    return _Stored(*rows[0]) if rows else None


def _over(
    wanted: Reservation, spent_cost: int, spent_tokens: int, reserved_cost: int, reserved_tokens: int
) -> OverBudget | None:
    sums = (spent_cost, spent_tokens, reserved_cost, reserved_tokens)
    if _passes(wanted.cost_limit, spent_cost + reserved_cost, wanted.cost):
        return OverBudget(wanted, *sums, is_of_cost=True)
    if _passes(wanted.token_limit, spent_tokens + reserved_tokens, wanted.tokens):
        return OverBudget(wanted, *sums, is_of_cost=False)
    return None


def _passes(limit: int | None, used: int, more: int) -> bool:
    # Where nothing is left, a call for which nothing is to be reserved does not pass either.
    return limit is not None and (used + more > limit or used >= limit)
