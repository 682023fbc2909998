"""What model calls have used: sums over the ledger, and how budgets stand."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict

from agentflow.clock import to_datetime
from agentflow.errors import InvalidInput
from agentflow.store.charges import to_usd
from agentflow.store.stored_types import BudgetState, ModelCall

Grouping: TypeAlias = Literal["run", "agent", "model", "day"]

NO_AGENT = "(no agent)"


class UsageReport(BaseModel):
    """What model calls used. `cost` in US dollars, `None` when a price is not known."""

    model_config = ConfigDict(frozen=True)

    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost: Decimal | None = Decimal(0)
    billed: int = 0
    possibly_billed: int = 0

    @staticmethod
    def of(calls: Iterable[Any]) -> UsageReport:
        """Add up rows of the ledger."""
        rows = list(calls)
        counters = (
            "input_tokens",
            "cached_tokens",
            "cache_write_tokens",
            "output_tokens",
            "reasoning_tokens",
        )
        paid = [row for row in rows if row.billed != "no"]
        unknown = any(row.cost is None for row in paid)
        return UsageReport(
            calls=len(rows),
            cost=None if unknown else sum((Decimal(row.cost) for row in paid), Decimal(0)),
            billed=sum(row.billed == "yes" for row in rows),
            possibly_billed=sum(row.billed == "possible" for row in rows),
            **{name: sum(getattr(row, name) or 0 for row in rows) for name in counters},
        )


class BudgetReport(BaseModel):
    """How a budget stands in its present period; with a key, for one of its values. Money in US dollars."""

    model_config = ConfigDict(frozen=True)

    name: str
    value: str | None
    """Of the budget's key, as JSON."""
    begins_at: datetime | None
    """`None`: it is the budget of all times."""
    ends_at: datetime | None
    cost_usd: Decimal | None
    """The limit of the last call that was made; `None`: there is none."""
    spent_usd: Decimal
    reserved_usd: Decimal
    """For calls under way, or lost and not asked again yet."""
    tokens: int | None
    spent_tokens: int
    reserved_tokens: int

    @staticmethod
    def of(state: BudgetState) -> BudgetReport:
        ends = state.ends_at
        return BudgetReport(
            name=state.name,
            value=state.value,
            begins_at=None if ends is None else to_datetime(state.period_start),
            ends_at=None if ends is None else to_datetime(ends),
            cost_usd=None if state.cost_limit is None else to_usd(state.cost_limit),
            spent_usd=to_usd(state.spent_cost),
            reserved_usd=to_usd(state.reserved_cost),
            tokens=state.token_limit,
            spent_tokens=state.spent_tokens,
            reserved_tokens=state.reserved_tokens,
        )


def grouped(calls: Iterable[tuple[str, ModelCall]], by: str) -> dict[str, list[ModelCall]]:
    """The calls of each run, agent, model or day (UTC), in order of its name. Raises `InvalidInput`."""
    if by not in get_args(Grouping):
        raise InvalidInput(f"usage by {by!r}: there is {', '.join(get_args(Grouping))}")
    groups: dict[str, list[ModelCall]] = {}
    for run_id, call in calls:
        groups.setdefault(_group(run_id, call, by), []).append(call)
    return {name: groups[name] for name in sorted(groups)}


def _group(run_id: str, call: ModelCall, by: str) -> str:
    match by:
        case "run":
            return run_id
        case "agent":
            return call.agent or NO_AGENT
        case "model":
            return f"{call.provider}:{call.model}"
        case _:
            return to_datetime(call.started_at).date().isoformat()
