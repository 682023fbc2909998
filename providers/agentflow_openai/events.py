"""Event streams of OpenAI's two APIs, put together to the object they tell. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from agentflow.providers import Delta, Item, ReasoningDelta, TextDelta, ToolArgsDelta


def events_in(text: str) -> Iterator[Item]:
    """The events of a stream that came in one piece."""
    for line in text.split("\n"):
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


_ENDS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")


class ResponseAssembly:
    """Takes the events of a Responses stream; the last one tells the whole response."""

    def __init__(self) -> None:
        self.response: Item | None = None
        self.failure: Item | None = None
        self._done: dict[int, Item] = {}
        self._call_of_item: dict[int, int] = {}

    def add(self, event: Item) -> Delta | None:
        """Take in one event; what of it is worth showing comes back."""
        kind = event.get("type")
        if kind == "response.output_item.done":
            self._done[event["output_index"]] = event["item"]
        elif kind in _ENDS:
            self.response = event["response"]
            if self._done and not self.response.get("output"):  # some servers tell no item twice
                self.response = self.response | {"output": [self._done[at] for at in sorted(self._done)]}
        elif kind == "error":
            self.failure = event["error"] if isinstance(event.get("error"), dict) else event
        return self._shown(kind, event)

    def _shown(self, kind: str | None, event: Item) -> Delta | None:
        number = event.get("sequence_number")
        match kind:
            case "response.output_text.delta" | "response.refusal.delta":
                return TextDelta(text=event["delta"], number=number)
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                return ReasoningDelta(text=event["delta"], number=number)
            case "response.output_item.added" if event["item"].get("type") == "function_call":
                index = self._call_of_item.setdefault(event["output_index"], len(self._call_of_item))
                return ToolArgsDelta(index=index, text="", name=event["item"].get("name"), number=number)
            case "response.function_call_arguments.delta":
                # A stream that is resumed may begin after the call was announced.
                index = self._call_of_item.setdefault(event["output_index"], len(self._call_of_item))
                return ToolArgsDelta(index=index, text=event["delta"], number=number)
            case _:
                return None


class ChatAssembly:
    """Takes the chunks of a chat completion; `completion` is the whole when `is_complete`."""

    def __init__(self) -> None:
        self.completion: Item = {}
        self.is_complete = False
        self._message: Item = {"role": "assistant", "content": None}
        self._choice: Item = {"index": 0, "message": self._message, "finish_reason": None}

    def add(self, chunk: Item) -> list[Delta]:
        """Take in one chunk; what of it is worth showing comes back."""
        for key, value in chunk.items():
            if key not in ("choices", "object", "obfuscation") and value is not None:
                self.completion[key] = value
        choice: Item = next((choice for choice in chunk.get("choices") or [] if not choice.get("index")), {})
        deltas = self._extend(choice.get("delta") or {})
        _merge(self._choice, choice, but=("index", "delta", "message"))
        self.is_complete = bool(self._choice["finish_reason"])
        self.completion["object"] = "chat.completion"
        self.completion["choices"] = [self._choice]
        return deltas

    def _extend(self, delta: Item) -> list[Delta]:
        shown: list[Delta] = []
        for key, value in delta.items():
            if key == "tool_calls":
                shown.extend(self._extend_call(call) for call in value or [])
            elif key in ("content", "refusal") and value and isinstance(value, str):
                shown.append(TextDelta(text=value))
            elif key in ("reasoning_content", "reasoning") and value and isinstance(value, str):
                shown.append(ReasoningDelta(text=value))
        _merge(self._message, delta, but=("tool_calls",))
        return shown

    def _extend_call(self, piece: Item) -> Delta:
        calls: list[Item] = self._message.setdefault("tool_calls", [])
        index = self._position(calls, piece)
        if index == len(calls):
            is_custom = piece.get("type") == "custom" or "custom" in piece
            calls.append(
                {"id": "", "type": "custom", "custom": {"name": "", "input": ""}}
                if is_custom
                else {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            )
        told = piece.get("function") or piece.get("custom") or {}
        known = calls[index].get("function") or calls[index].get("custom") or {}
        if told.get("name") and told["name"] == known.get("name") and piece.get("id") == calls[index]["id"]:
            # Some gateways name the call in every piece of it.
            known["name"] = ""
        _merge(calls[index], piece, but=("index",))
        text = told.get("arguments") or told.get("input")
        text = text if isinstance(text, str) else ""  # some gateways send the object itself
        return ToolArgsDelta(index=index, text=text, name=told.get("name") or None)

    @staticmethod
    def _position(calls: list[Item], piece: Item) -> int:
        """Which call a piece belongs to; gateways that send whole calls leave the index out, or at 0."""
        index, id = piece.get("index"), piece.get("id")
        if isinstance(index, int) and index < len(calls):
            is_another = bool(id) and bool(calls[index]["id"]) and id != calls[index]["id"]
            return len(calls) if is_another else index
        if isinstance(index, int) or id or not calls:
            return len(calls)
        return len(calls) - 1


_NEVER_IN_PIECES = ("id", "type", "role", "finish_reason")


def _merge(whole: Item, piece: Item, *, but: tuple[str, ...] = ()) -> None:
    """Take a piece of an object in, what nobody knows yet too: texts and lists are told in parts."""
    for key, value in piece.items():
        known = whole.get(key)
        if key in but or value is None:
            continue
        if isinstance(known, dict) and isinstance(value, dict):
            _merge(known, value)
        elif _are_pieces(known, value) and key not in _NEVER_IN_PIECES:
            whole[key] = known + value
        elif value != "" or known is None:
            whole[key] = dict(value) if isinstance(value, dict) else value


def _are_pieces(known: Any, value: Any) -> bool:
    return isinstance(known, str | list) and type(known) is type(value)
