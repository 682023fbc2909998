"""An event stream of Anthropic's Messages API, put together to the message it tells. Pure."""

from __future__ import annotations

import json
from typing import Any

from agentflow.providers import Delta, Item, ReasoningDelta, TextDelta, ToolArgsDelta

UNREADABLE_INPUTS = "agentflow_unreadable_inputs"
"""Where the message keeps tool inputs that are no JSON (cut at max_tokens), by the block's position."""


class MessageAssembly:
    """Takes events one by one; `message` is the whole when `is_complete`."""

    def __init__(self) -> None:
        self.message: Item = {}
        self.is_complete = False
        self._inputs: dict[int, str] = {}
        self._calls: list[int] = []

    def take(self, message: Item) -> None:
        """Take in the message as a whole."""
        self.message = message
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
                return self._extend_block(event["index"], event["delta"])
            case "content_block_stop":
                self._end_block(event["index"])
            case "message_delta":
                self.message.update(event["delta"])
                self.message["usage"] = {**(self.message.get("usage") or {}), **(event.get("usage") or {})}
            case "message_stop":
                self.is_complete = True
        return None

    def _start_block(self, index: int, block: Item) -> Delta | None:
        content = self.message["content"]
        if index != len(content):
            raise ValueError(
                f"content block {index} of {self.message.get('id')} came after {len(content)} blocks"
            )
        content.append(block)
        if block.get("type") == "tool_use":
            self._calls.append(index)
            return ToolArgsDelta(index=len(self._calls) - 1, text="", name=block.get("name"))
        return None

    def _extend_block(self, index: int, delta: Item) -> Delta | None:
        block = self.message["content"][index]
        match delta.get("type"):
            case "text_delta":
                block["text"] = block.get("text", "") + delta["text"]
                return TextDelta(text=delta["text"])
            case "thinking_delta":
                block["thinking"] = block.get("thinking", "") + delta["thinking"]
                return ReasoningDelta(text=delta["thinking"])
            case "input_json_delta":
                self._inputs[index] = self._inputs.get(index, "") + delta["partial_json"]
                if index in self._calls:
                    return ToolArgsDelta(index=self._calls.index(index), text=delta["partial_json"])
            case "citations_delta":
                block["citations"] = [*(block.get("citations") or []), delta["citation"]]
            case _:  # signature_delta, and what may come to be: the fields of the block in pieces
                for key, value in delta.items():
                    if key != "type":
                        known = block.get(key)
                        block[key] = (
                            known + value if isinstance(known, str) and isinstance(value, str) else value
                        )
        return None

    def _end_block(self, index: int) -> None:
        text = self._inputs.pop(index, "")
        if not text:
            return
        block = self.message["content"][index]
        arguments: Any = None
        try:
            arguments = json.loads(text)
        except ValueError:
            self.message.setdefault(UNREADABLE_INPUTS, {})[str(index)] = text
        block["input"] = arguments if isinstance(arguments, dict) else {}
