"""Event streams of OpenAI's two APIs, put together to the object they tell. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator

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
        self._call_of_item: dict[int, int] = {}

    def add(self, event: Item) -> Delta | None:
        """Take in one event; what of it is worth showing comes back."""
        kind = event.get("type")
        if kind in _ENDS:
            self.response = event["response"]
        elif kind == "error":
            self.failure = event
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
        self._finish_reason: str | None = None

    def add(self, chunk: Item) -> list[Delta]:
        """Take in one chunk; what of it is worth showing comes back."""
        for key, value in chunk.items():
            if key not in ("choices", "object", "obfuscation") and value is not None:
                self.completion[key] = value
        choice: Item = next((choice for choice in chunk.get("choices") or [] if not choice.get("index")), {})
        deltas = self._extend(choice.get("delta") or {})
        if choice.get("finish_reason"):
            self._finish_reason = choice["finish_reason"]
            self.is_complete = True
        self.completion["object"] = "chat.completion"
        self.completion["choices"] = [
            {"index": 0, "message": self._message, "finish_reason": self._finish_reason}
        ]
        return deltas

    def _extend(self, delta: Item) -> list[Delta]:
        shown: list[Delta] = []
        for key, value in delta.items():
            if key == "tool_calls":
                shown.extend(self._extend_call(call) for call in value or [])
            elif isinstance(value, str) and key != "role":
                self._message[key] = (self._message.get(key) or "") + value
                if key in ("content", "refusal") and value:
                    shown.append(TextDelta(text=value))
                elif key in ("reasoning_content", "reasoning") and value:
                    shown.append(ReasoningDelta(text=value))
            elif isinstance(value, list):
                self._message[key] = [*(self._message.get(key) or []), *value]
            elif value is not None:
                self._message[key] = value
        return shown

    def _extend_call(self, piece: Item) -> Delta:
        calls: list[Item] = self._message.setdefault("tool_calls", [])
        index = self._position(calls, piece)
        if index == len(calls):
            calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call = calls[index]
        function = piece.get("function") or {}
        call["id"] = piece.get("id") or call["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
        return ToolArgsDelta(
            index=index, text=function.get("arguments") or "", name=function.get("name") or None
        )

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
