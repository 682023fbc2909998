"""Where Anthropic is told to keep the beginning of a prompt: it keeps nothing that is not marked. Pure.

Four marks are what a request may have: the tools, which runs of an agent share; the instructions, which the turns of a
run share; the user's last message, up to where the next turn reads; and the one before it, up to where this turn does.
Their search from a mark goes back twenty blocks, which a turn of many tool calls passes: hence the last of the four.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentflow.providers import Item

_MARKED_MESSAGES = 2


def with_breakpoints(body: Item, lifetime: str) -> Item:
    """The body, its marks set. They hold for 5 minutes, and for an hour when more than that is asked for."""
    mark: Item = {"type": "ephemeral"} if lifetime == "5m" else {"type": "ephemeral", "ttl": "1h"}
    marked = dict(body)
    if body.get("tools"):
        marked["tools"] = _last_marked(body["tools"], mark)
    if str(body.get("system") or "").strip():
        marked["system"] = [{"type": "text", "text": body["system"], "cache_control": mark}]
    messages: list[Item] = list(body["messages"])
    # Not the model's own: what it wrote goes back untouched, and its thinking cannot be marked.
    places = [place for place, message in enumerate(messages) if message["role"] == "user"]
    for place in places[-_MARKED_MESSAGES:]:
        messages[place] = {
            **messages[place],
            "content": _last_marked(messages[place]["content"], mark),
        }
    return {**marked, "messages": messages}


def _last_marked(items: Sequence[Item], mark: Item) -> list[Item]:
    return [*items[:-1], {**items[-1], "cache_control": mark}]
