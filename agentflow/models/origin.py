"""Reading a provider's content items and sending them back, as every mapping must."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from agentflow.models.messages import Message, Part, ToolCall
from agentflow.roundtrip import find_fault

Item = dict[str, Any]


def items_to_send_back(
    message: Message, provider: str, parts_of: Callable[[Sequence[Item]], list[Part]]
) -> list[Item] | None:
    """The provider's own items of an assistant's message, or None when it has to be rebuilt from its parts.

    That is so when another provider wrote it, and when somebody changed the parts since: what they say now
    counts.
    """
    if message.origin is None or message.origin.provider != provider:
        return None
    items = message.origin.items
    return items if _as_sent(parts_of(items)) == _as_sent(message.parts) else None


def _as_sent(parts: Sequence[Part]) -> list[Part]:
    # Arguments that were no JSON object are kept beside the items, not in them.
    return [
        part.model_copy(update={"invalid_args": None}) if isinstance(part, ToolCall) else part
        for part in parts
    ]


def tool_call(index: int, id: str, name: str, arguments: str | dict[str, Any] | None) -> ToolCall:
    """A tool call from its arguments as the provider wrote them; nothing at all counts as no arguments."""
    if isinstance(arguments, dict):
        return ToolCall(index=index, id=id, name=name, args=arguments)
    args = read_arguments(arguments or "")
    if args is None:
        return ToolCall(index=index, id=id, name=name, args={}, invalid_args=arguments)
    return ToolCall(index=index, id=id, name=name, args=args)


def read_arguments(written: str) -> dict[str, Any] | None:
    """The arguments that a model wrote. None when they are no JSON object, or hold what can be neither stored nor sent
    back: NaN, NUL, half a surrogate pair, nesting without an end.
    """
    arguments = _json_or_none(written) if written.strip() else {}
    return arguments if isinstance(arguments, dict) and find_fault(arguments) is None else None


def why_unreadable(written: str) -> str:
    """What is wrong with arguments that `read_arguments` does not take, for the model."""
    arguments = _json_or_none(written)
    fault = find_fault(arguments) if isinstance(arguments, dict) else None
    if fault is None:
        return f"The arguments are not a JSON object: {written[:200]!r}"
    return f"The arguments cannot be taken: at {fault.path}: {fault.reason}"


def _json_or_none(written: str) -> Any:
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return None


def with_unique_ids(items: Sequence[Item], key: str, *, is_call: Callable[[Item], bool]) -> list[Item]:
    """The items, with an id of its own for every tool call: some gateways send empty ones, or the same one
    twice.
    """
    told = {str(item.get(key) or "") for item in items if is_call(item)}
    taken: set[str] = set()
    repaired: list[Item] = []
    for item in items:
        if is_call(item):
            id = str(item.get(key) or "")
            if not id or id in taken:
                numbered = (f"{id or 'call'}_{number}" for number in count(len(taken)))
                id = next(candidate for candidate in numbered if candidate not in told)
                item = {**item, key: id}
            taken.add(id)
        repaired.append(item)
    return repaired
