"""A server that answers with exactly the bytes it is given, in pieces of any size: what the SDKs make of the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

JSON_TYPE = {"content-type": "application/json"}
STREAM_TYPE = {"content-type": "text/event-stream; charset=utf-8"}


@dataclass(frozen=True)
class Raw:
    """An answer as it stands on the wire; `piece` is how many bytes come at a time."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: JSON_TYPE)
    piece: int | None = None


class RawServer:
    """Gives its answers in their order; what was asked lands in `sent`."""

    def __init__(self) -> None:
        self.answers: list[Raw] = []
        self.sent: list[Json] = []
        self.url = ""

    def add(self, *answers: Raw) -> None:
        self.answers.extend(answers)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next((line[15:] for line in head.split("\r\n") if line.startswith("content-length:")), "0")
        content = await reader.readexactly(int(length))
        self.sent.append(json.loads(content) if content else {})
        raw = self.answers.pop(0)
        headers = {**raw.headers, "transfer-encoding": "chunked", "connection": "close"}
        told = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {raw.status} As told\r\n{told}\r\n".encode())
        size = raw.piece or len(raw.body) or 1
        for start in range(0, len(raw.body), size):
            piece = raw.body[start : start + size]
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()


@asynccontextmanager
async def raw_server() -> AsyncIterator[RawServer]:
    served = RawServer()
    server = await asyncio.start_server(served.answer, "127.0.0.1", 0)
    served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield served


@dataclass(frozen=True)
class Framing:
    """How a stream of events is written: its line ends, its pieces, and what is strewn between."""

    newline: str = "\n"
    piece: int | None = None
    noise: Sequence[str] = ()

    def stream(self, events: Sequence[Json], *, named: bool, done: bool) -> Raw:
        """`named`: each event is told its type before it, too; `done`: `[DONE]` stands at the end."""
        blocks: list[str] = []
        for event in events:
            name = [f"event: {event['type']}"] if named else []
            blocks += [*self.noise, "\n".join([*name, f"data: {json.dumps(event, ensure_ascii=False)}"])]
        blocks += ["data: [DONE]"] if done else []
        text = "".join(f"{block}\n\n" for block in blocks).replace("\n", self.newline)
        return Raw(text.encode(), headers=STREAM_TYPE, piece=self.piece)


COMMENT = ": still there\n:"
PING = 'event: ping\ndata: {"type": "ping"}'
KEEPALIVE = 'event: keepalive\ndata: {"type": "keepalive", "sequence_number": 3}'

FRAMINGS = {
    "whole": Framing(),
    "byte by byte": Framing(piece=1),
    "CRLF in pieces of 7": Framing("\r\n", 7),
    "CRLF byte by byte": Framing("\r\n", 1),
    "CR": Framing("\r", 11),
}


def body(value: Json) -> Raw:
    return Raw(json.dumps(value, ensure_ascii=False).encode())


def exact(value: object) -> str:
    """A value so that two that differ in anything, 1 and 1.0 too, are not equal."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def pieces(text: str, size: int = 3) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]
