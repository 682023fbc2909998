"""An event stream of Anthropic's Messages API, put together to the message it tells. Pure."""

from __future__ import annotations

import json
from typing import Any

from agentflow.providers import Delta, Item, ReasoningDelta, TextDelta, ToolArgsDelta, read_arguments

UNREADABLE_INPUTS = "agentflow_unreadable_inputs"
"""Where the message keeps tool inputs that are no JSON object to be stored and sent back (cut at max_tokens, say), by
the block's position."""


class MessageAssembly:
    """Takes events one by one; `message` is the whole when `is_complete`."""

    def __init__(self) -> None:
        self.message: Item = {}
        self.is_complete = False
        self._position: dict[int, int] = {}
        """Where a block stands, by the index that the events call it."""
        self._inputs: dict[int, str] = {}
        self._calls: list[int] = []

    def take(self, message: Item) -> None:
        """Take in the message as a whole."""
        self.message = dict(message)
        for position, block in enumerate(message.get("content") or []):
            if block.get("type") == "tool_use" and read_arguments(json.dumps(block.get("input"))) is None:
                self._set_input(position, json.dumps(block.get("input")))
        self.is_complete = True

    def add(self, event: Item) -> Delta | None:
        """Take in one event; what of it is worth showing comes back."""
        match event.get("type"):
            case "message_start":
                self.message = dict(event["message"])
                self.message["content"] = list(self.message.get("content") or [])
            case "content_block_start":
                return self._start_block(event["index"], dict(event["content_block"]))
            case "content_block_delta":
                return self._extend_block(self._position[event["index"]], event["delta"])
            case "content_block_stop":
                self._end_block(self._position[event["index"]])
            case "message_delta":
                self._end_message(event)
            case "message_stop":
                self.is_complete = bool(self.message)
        return None

    def _start_block(self, index: int, block: Item) -> Delta | None:
        content = self.message["content"]
        self._position[index] = position = len(content)
        content.append(block)
        if block.get("type") == "tool_use":
            self._calls.append(position)
            return ToolArgsDelta(index=len(self._calls) - 1, text="", name=block.get("name"))
        return None

    def _extend_block(self, position: int, delta: Item) -> Delta | None:
        block = self.message["content"][position]
        match delta.get("type"):
            case "text_delta":
                _extend(block, "text", delta["text"])
                return TextDelta(text=delta["text"])
            case "thinking_delta":
                _extend(block, "thinking", delta["thinking"])
                return ReasoningDelta(text=delta["thinking"])
            case "signature_delta":
                _extend(block, "signature", delta["signature"])
            case "citations_delta":
                _extend(block, "citations", [delta["citation"]])
            case "input_json_delta":
                self._inputs[position] = self._inputs.get(position, "") + delta["partial_json"]
                if position in self._calls:  # else of a tool that runs at their side
                    return ToolArgsDelta(index=self._calls.index(position), text=delta["partial_json"])
            case _:  # what may come to be: the fields of the block in pieces
                for key, value in delta.items():
                    if key != "type" and value is not None:
                        _extend(block, key, value)
        return None

    def _end_block(self, position: int) -> None:
        text = self._inputs.pop(position, "")
        if not text:
            return
        self._set_input(position, text)

    def _set_input(self, position: int, text: str) -> None:
        arguments = read_arguments(text)
        if arguments is None:
            self.message.setdefault(UNREADABLE_INPUTS, {})[str(position)] = text
        self.message["content"][position]["input"] = arguments or {}

    def _end_message(self, event: Item) -> None:
        """Why it ended, and what was counted up to there: a null tells nothing new."""
        more = {key: value for key, value in event.items() if key not in ("type", "delta", "usage")}
        for key, value in {**more, **(event.get("delta") or {})}.items():
            if value is not None or key not in self.message:
                self.message[key] = value
        counted = {key: count for key, count in (event.get("usage") or {}).items() if count is not None}
        self.message["usage"] = {**(self.message.get("usage") or {}), **counted}


def _extend(block: Item, key: str, value: Any) -> None:
    known = block.get(key)
    is_more = isinstance(known, str | list) and type(known) is type(value)
    block[key] = known + value if is_more else value
