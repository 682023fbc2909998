"""The statements of budgets: what is spent and reserved of each in its periods, and what a ledger row counts for."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update

from agentflow.store.rows import BudgetRow, table_of
from agentflow.store.statements.core import model_call
from agentflow.store.statements.statement import Flavour, Statement, big, text

_BUDGET = table_of(BudgetRow)
budget = _BUDGET.c

_SUMS = ("spent_cost", "spent_tokens", "reserved_cost", "reserved_tokens")

READ_CHARGES = Statement(
    lambda _: select(model_call.charges, model_call.ended_at).where(
        model_call.run_id == text("run"),
        model_call.key == text("step"),
        model_call.attempt == big("number"),
    )
)
READ_BUDGET = Statement(
    lambda _: select(*(budget[name] for name in _SUMS)).where(
        budget.key == text("of"), budget.period_start == big("start")
    )
)


def _reserve(d: Flavour) -> Any:
    made = d.insert(_BUDGET)
    return made.on_conflict_do_update(
        index_elements=("key", "period_start"),
        set_={
            "cost_limit": made.excluded.cost_limit,
            "token_limit": made.excluded.token_limit,
            "reserved_cost": budget.reserved_cost + made.excluded.reserved_cost,
            "reserved_tokens": budget.reserved_tokens + made.excluded.reserved_tokens,
        },
    )


RESERVE = Statement(_reserve)
MOVE_BUDGET = Statement(
    lambda _: (
        update(_BUDGET)
        .values({name: budget[name] + big(f"more_{name}") for name in _SUMS})
        .where(budget.key == text("of"), budget.period_start == big("start"))
    )
)
"""A period that is over and forgotten stays so."""
