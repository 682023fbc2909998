"""What a call costs, by the table of `genai-prices`; its background updater stays off.

An unknown model costs None, never 0: a limit on money then fails closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from importlib.metadata import version

from agentflow.models.response import Usage

# Chat Completions and Responses are two doors to the same models at the same price.
_PRICED_AS = {"openai-chat": "openai"}


def cost_of(
    provider: str, model: str, usage: Usage, *, apart: Mapping[str, int] | None = None
) -> Decimal | None:
    """The cost of `usage` in US dollars, or None when the model or a price is not known. `apart` are those of its
    tokens that have another price than their kind (`PricedApart`)."""
    from genai_prices import Usage as PricedUsage
    from genai_prices import calc_price

    try:
        price = calc_price(
            PricedUsage(
                input_tokens=usage.input_tokens,
                cache_read_tokens=usage.cached_tokens,
                cache_write_tokens=usage.cache_write_tokens,
                output_tokens=usage.output_tokens,
                **(apart or {}),
            ),
            model,
            provider_id=_PRICED_AS.get(provider, provider),
        )
    except (LookupError, ValueError):
        return None
    return price.total_price


@cache
def prices_version() -> str:
    """Which table of prices `cost_of` uses; stored beside each cost."""
    return f"genai-prices {version('genai-prices')}"
