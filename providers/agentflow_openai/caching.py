"""What both APIs are told of the cache: they keep the beginnings of prompts by themselves. Pure."""

from __future__ import annotations

from agentflow.providers import Item, ModelSettings


def cache_fields(settings: ModelSettings) -> Item:
    """How requests that begin alike find each other, and for how long; nothing where their own ways will do."""
    fields: Item = {}
    if settings.cache_key is not None:
        fields["prompt_cache_key"] = settings.cache_key
    if settings.cache == "24h":
        fields["prompt_cache_retention"] = "24h"
    return fields
