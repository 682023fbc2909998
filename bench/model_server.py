"""A model provider as slow as a real one and as quick as can be beside that: OpenAI's Responses, whole or streamed.

`python -m bench.model_server SECONDS TURNS` answers each request after so long: calls of `look_up` until the last turn,
then a text. It says its port on the first line. It counts nothing and checks nothing: it must not be what is measured.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

NOTHING_SET: dict[str, Any] = {
    "object": "response",
    "created_at": 1,
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
}
USAGE = {
    "input_tokens": 50,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 10,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 60,
}

_numbers = itertools.count()


def answer_to(body: dict[str, Any], turns: int) -> dict[str, Any]:
    number = next(_numbers)
    turn = 1 + sum(item.get("type") == "function_call_output" for item in body["input"])
    if turn < turns:
        called = {
            "type": "function_call",
            "id": f"fc_{number}",
            "call_id": f"call_{number}",
            "name": "look_up",
        }
        item: dict[str, Any] = {**called, "arguments": json.dumps({"number": turn}), "status": "completed"}
    else:
        text = {"type": "output_text", "text": "done", "annotations": []}
        item = {
            "type": "message",
            "id": f"msg_{number}",
            "role": "assistant",
            "status": "completed",
            "content": [text],
        }
    return {
        **NOTHING_SET,
        "id": f"resp_{number}",
        "model": body["model"],
        "status": "completed",
        "output": [item],
        "usage": USAGE,
    }


def events_of(response: dict[str, Any]) -> Iterator[dict[str, Any]]:
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    [item] = response["output"]
    at = {"output_index": 0, "item_id": item["id"]}
    if item["type"] == "function_call":
        yield {"type": "response.output_item.added", "output_index": 0, "item": {**item, "arguments": ""}}
        yield {"type": "response.function_call_arguments.delta", **at, "delta": item["arguments"]}
    else:
        at |= {"content_index": 0}
        yield {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}}
        yield {"type": "response.content_part.added", **at, "part": {**item["content"][0], "text": ""}}
        yield {
            "type": "response.output_text.delta",
            **at,
            "delta": item["content"][0]["text"],
            "logprobs": [],
        }
        yield {"type": "response.content_part.done", **at, "part": item["content"][0]}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": response}


class Connection(asyncio.Protocol):
    """One connection, one request after the other."""

    def __init__(self, seconds: float, turns: int) -> None:
        self._seconds = seconds
        self._turns = turns
        self._come = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._come += data
        head, gap, rest = self._come.partition(b"\r\n\r\n")
        if not gap:
            return
        lines = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
        length = int(lines.get(b"content-length", b"0"))
        if len(rest) < length:
            return
        self._come = rest[length:]
        asyncio.get_running_loop().call_later(self._seconds, self._answer, json.loads(rest[:length]))

    def _answer(self, body: dict[str, Any]) -> None:
        response = answer_to(body, self._turns)
        if body.get("stream"):
            events = (event | {"sequence_number": n} for n, event in enumerate(events_of(response)))
            text = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
            kind = "text/event-stream"
        else:
            text, kind = json.dumps(response), "application/json"
        told = text.encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(told)}\r\n\r\n"
        if not self._transport.is_closing():
            self._transport.write(head.encode() + told)


async def serve(seconds: float, turns: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(seconds, turns), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]), int(sys.argv[2])))
