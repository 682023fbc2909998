"""What a call costs, by the table of `genai-prices`; its background updater stays off.

An unknown model costs None, never 0: a limit on money then fails closed. What an answer that comes later costs is in
the table for batches of most models; else it is the share of the price that the vendors publish (docs/decisions/0015).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import cache, lru_cache
from importlib.metadata import version

from agentflow.models.response import Usage

# Chat Completions and Responses are two doors to the same models at the same price.
_PRICED_AS = {"openai-chat": "openai"}
_SHARES = {"batch": Decimal("0.5"), "2h": Decimal("0.7"), "8h": Decimal("0.6")}


def cost_of(
    provider: str,
    model: str,
    usage: Usage,
    *,
    apart: Mapping[str, int] | None = None,
    latency: str | None = None,
) -> Decimal | None:
    """The cost of `usage` in US dollars, or None when the model or a price is not known. `apart` are those of its
    tokens that have another price than their kind (`PricedApart`)."""
    tokens = {
        "input_tokens": usage.input_tokens,
        "cache_read_tokens": usage.cached_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "output_tokens": usage.output_tokens,
        **(apart or {}),
    }
    standard = _calculated(provider, model, tokens, {})
    if standard is None or latency is None:
        return standard
    if latency == "batch":
        own = _calculated(provider, model, tokens, {"processing": "batch"})
        # Of a model that the table has no batch price for, it tells the standard one.
        if own is not None and own != standard:
            return own
    return standard * _SHARES[latency]


def _calculated(
    provider: str, model: str, tokens: Mapping[str, int], context: dict[str, str]
) -> Decimal | None:
    from genai_prices import Usage as PricedUsage
    from genai_prices import calc_price

    if not _is_known(provider, model):
        return None
    try:
        price = calc_price(
            PricedUsage(**tokens),
            model,
            provider_id=_PRICED_AS.get(provider, provider),
            price_context=context,
        )
    except (LookupError, ValueError):
        return None
    return price.total_price


@lru_cache(maxsize=1_000)
def _is_known(provider: str, model: str) -> bool:
    """Whether the table has the model. What is not there is looked for all over it, so it is asked once."""
    from genai_prices import Usage as PricedUsage
    from genai_prices import calc_price

    try:
        calc_price(PricedUsage(), model, provider_id=_PRICED_AS.get(provider, provider))
    except LookupError:
        return False
    except ValueError:
        pass
    return True


@cache
def prices_version(latency: str | None = None) -> str:
    """Which table of prices `cost_of` uses, and for what; stored beside each cost."""
    return f"genai-prices {version('genai-prices')}" + (f", {latency}" if latency is not None else "")
