"""What a row of the ledger counts for in budgets: stored with it, a list of `[budget, period's start, cost, tokens]`.

While the row is open that is reserved, from its end on it is spent.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from decimal import ROUND_CEILING, Decimal
from typing import Final, NamedTuple

from agentflow.store.stored_types import Json, Micros, ModelCall, Reservation

NANO: Final = 1_000_000_000
"""Of a US dollar: money is counted in these."""
MOST: Final = 10**17
"""What one call counts for at most, a hundred million dollars: so that no sum overflows, whatever a provider says."""
OF_A_TURN: Final = ""
"""The name of what agents that are called in one turn may use together: it is no budget of an app."""
SUMS: Final = ("spent_cost", "spent_tokens", "reserved_cost", "reserved_tokens")


class Charge(NamedTuple):
    """What a row counts for in one period of a budget."""

    budget: str
    period_start: Micros
    cost: int
    tokens: int


def to_nanos(cost: Decimal) -> int:
    """A number of US dollars in billionths, rounded up."""
    return min(int((cost * NANO).to_integral_value(ROUND_CEILING)), MOST)


def to_usd(nanos: int) -> Decimal:
    """Billionths as a number of US dollars, with no more digits than it has."""
    money = (Decimal(nanos) / NANO).normalize()
    return money.quantize(Decimal(1)) if money == money.to_integral_value() else money


def read_charges(text: Json | None) -> list[Charge]:
    return [] if text is None else [Charge(*each) for each in json.loads(text)]


def write_charges(charges: Iterable[Charge]) -> Json:
    return json.dumps(list(charges))


def charges_of(reservations: Iterable[Reservation]) -> Json | None:
    """What a row counts for as long as it is open."""
    charges = [Charge(each.key, each.period_start, each.cost, each.tokens) for each in reservations]
    return write_charges(charges) if charges else None


def settled(charge: Charge, call: ModelCall) -> Charge:
    """What a row counts for as it stands: what is not known of its end stays as it was reserved."""
    if call.ended_at is None:
        return charge
    if call.billed == "no":
        return charge._replace(cost=0, tokens=0)
    if call.cost is not None:
        charge = charge._replace(cost=to_nanos(Decimal(call.cost)))
    tokens = (call.input_tokens or 0) + (call.output_tokens or 0)
    # An answer that uses nothing is one that does not tell what it used.
    return charge._replace(tokens=min(tokens, MOST)) if tokens else charge


def sums_of(charges: Iterable[Charge], *, is_open: bool) -> Counter[tuple[str, Micros, str]]:
    """What charges add to their budgets, by (budget, period, one of `SUMS`)."""
    kind = "reserved" if is_open else "spent"
    sums: Counter[tuple[str, Micros, str]] = Counter()
    for charge in charges:
        sums[charge.budget, charge.period_start, f"{kind}_cost"] += charge.cost
        sums[charge.budget, charge.period_start, f"{kind}_tokens"] += charge.tokens
    return sums
