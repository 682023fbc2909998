"""What model calls cost, in the same words everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agentflow.cli.output import money

if TYPE_CHECKING:
    from agentflow.store.stored_types import ModelCall

OFFLINE = "scripted"
"""The provider that reaches no API: nobody sends a bill for it. Of all others an unknown price is unknown."""


def with_known_costs(calls: Sequence[ModelCall]) -> list[ModelCall]:
    """The calls, with the cost of those that are free by their nature."""
    return [
        call._replace(cost="0") if call.cost is None and call.provider == OFFLINE else call for call in calls
    ]


def cost_in_words(calls: Sequence[ModelCall]) -> str:
    """`$0.0004`, `unknown`, or `no cost` where nothing but the scripted model was asked."""
    from agentflow.usage import UsageReport

    if calls and all(call.provider == OFFLINE for call in calls):
        return "no cost"
    return money(UsageReport.of(with_known_costs(calls)).cost)
