"""A model provider on the loopback: a real HTTP server that speaks OpenAI's and Anthropic's wire formats.

It counts the answers it generates, which is what a real provider would bill, and it can be told to fail in
every way a real one does. It runs in a thread of its own, so a test that blocks its event loop does not
stop it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

from agentflow.errors import AgentflowError, ProviderError
from agentflow.models.conversation import check_conversation
from agentflow.models.messages import ToolCall
from agentflow.models.replies import Reply, decode_reply, encode_reply
from agentflow.models.response import ModelRequest, ModelResponse
from agentflow.testing.provider_batches import Asked, Batches, KeptBatch, uploaded
from agentflow.testing.provider_jobs import Job, Refusal, Shelf
from agentflow.testing.wire import (
    BadRequest,
    Event,
    Json,
    Wire,
    anthropic_messages,
    openai_chat,
    openai_responses,
)


@dataclass(frozen=True)
class HttpError:
    """Refuse with this status; nothing is generated. 429, 500 and 529 carry what the real APIs send along."""

    status: int
    message: str = "the fake provider was told to fail"
    code: str | None = None
    retry_after: float | None = None
    should_retry: bool | None = None


@dataclass(frozen=True)
class Stall:
    """Generate the answer, then say nothing for so long (None: until the server closes)."""

    seconds: float | None = None
    reply: Reply = "late"


@dataclass(frozen=True)
class Cut:
    """Generate the answer, then break the connection after this share of it; 0: before the first byte."""

    reply: Reply = "cut short"
    after: float = 0.5


@dataclass(frozen=True)
class BrokenStream:
    """Generate the answer, then send an error event in the middle of the 200 stream (without a stream:
    500).
    """

    reply: Reply = "broken off"
    message: str = "Overloaded"
    code: str | None = "overloaded_error"


FakeReply: TypeAlias = (
    Reply | HttpError | Stall | Cut | BrokenStream | Job | Callable[[ModelRequest], Any | Awaitable[Any]]
)


@dataclass(frozen=True)
class FakeRequest:
    """A request as it came."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: Json


@dataclass
class _Out:
    """A response on its way: what to send, and after which share of it to break off."""

    status: int
    content_type: str
    chunks: list[bytes]
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float | None = 0.0
    send_share: float | None = None


_WIRES: dict[str, Wire] = {
    "/responses": openai_responses,
    "/chat/completions": openai_chat,
    "/messages": anthropic_messages,
}
_OF_BATCHES = ("/files", "/batches", "/messages/batches")


class FakeProvider:
    """The server. Use `fake_provider()`.

    `base_url` is for all three APIs (with `/v1` and without); `generations` counts the answers generated,
    `requests` holds what came. `add(...)` extends the script while it runs. `refuses` names what it does not
    know, as a gateway may not: `"store"`, `"background"`, `"background_options"`, `"list"`, `"batches"`; `shelf` and
    `batches` are what it has stored.
    """

    def __init__(self, replies: Iterable[FakeReply] | Callable[[ModelRequest], Any]) -> None:
        self.base_url = ""
        self.generations = 0
        self.requests: list[FakeRequest] = []
        self._by_function = replies if callable(replies) else None
        self._replies: list[FakeReply] = [] if callable(replies) else list(replies)
        self._position = 0
        self._stuck = 0
        self.refuses: set[str] = set()
        self.shelf = Shelf()
        self.batches = Batches()
        self._changed = threading.Condition()

    def add(self, *replies: FakeReply) -> None:
        """Put more replies at the end of the script."""
        self._replies.extend(replies)

    @property
    def remaining(self) -> int:
        """How many replies of the script have not been given."""
        return len(self._replies) - self._position

    def environment(self) -> dict[str, str]:
        """The variables with which the official SDKs, in this process or another, come here."""
        return {
            "OPENAI_BASE_URL": f"{self.base_url}/v1",
            "OPENAI_API_KEY": "sk-fake",
            "ANTHROPIC_BASE_URL": self.base_url,
            "ANTHROPIC_API_KEY": "sk-ant-fake",
        }

    async def wait_for_generations(self, count: int, *, timeout: float = 30.0) -> None:
        """Return when so many answers were generated; raises `TimeoutError`."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: self.generations >= count, timeout)

        if not await asyncio.to_thread(wait):
            raise TimeoutError(f"{self.generations} answers were generated within {timeout} s, not {count}")

    async def respond(self, request: FakeRequest) -> _Out:
        """The response to one request."""
        self.requests.append(request)
        path = request.path.removeprefix("/v1")
        if request.method == "POST" and path in _WIRES:
            return await self._generate(_WIRES[path], request)
        if path.startswith(_OF_BATCHES) and "batches" not in self.refuses:
            return await self._batch(path, request)
        if path.startswith("/responses/"):
            return self._job(path.split("/")[2], request)
        if request.method == "GET" and path == "/chat/completions":
            return self._found(request)
        return _json(404, openai_responses.error(404, f"no such path: {request.path}", "not_found"))

    async def _generate(self, wire: Wire, request: FakeRequest) -> _Out:
        try:
            asked = wire.request_of(request.body)
            check_conversation(asked.messages)
        except (BadRequest, AgentflowError, KeyError, TypeError, ValueError) as error:
            return _json(400, wire.error(400, f"{error}", None))
        for name in ("background", "background_options", "store"):
            if request.body.get(name) and name in self.refuses:
                told = wire.error(400, f"Unknown parameter: '{name}'.", "unknown_parameter")
                told["error"]["param"] = name
                return _json(400, told)
        reply = await self._next_reply(asked)
        match reply:
            case HttpError():
                return _refusal(wire, reply)
            case ProviderError():
                return _refusal(
                    wire, HttpError(reply.status or 500, str(reply), reply.code, reply.retry_after)
                )
            case BaseException():
                return _refusal(wire, HttpError(500, str(reply)))
            case Stall(seconds=seconds, reply=inner):
                out = self._answer(wire, inner, asked, request.body)
                out.delay_seconds = seconds
            case Cut(reply=inner, after=share):
                out = self._answer(wire, inner, asked, request.body)
                out.send_share = share
            case BrokenStream(reply=inner):
                out = self._answer(wire, inner, asked, request.body)
                if out.content_type != "text/event-stream":
                    return _refusal(wire, HttpError(500, reply.message, reply.code))
                half = out.chunks[: max(1, len(out.chunks) // 2)]
                out.chunks = [*half, _event(wire.error_event(reply.message, reply.code))]
            case _:
                out = self._answer(wire, reply, asked, request.body)
        return out

    async def _next_reply(self, asked: ModelRequest) -> Any:
        reply: Any = self._by_function
        if reply is None:
            if self._position >= len(self._replies):
                return HttpError(400, f"the script has {len(self._replies)} replies, and all are given")
            reply = self._replies[self._position]
            self._position += 1
        if callable(reply):
            reply = reply(asked)
        return await reply if isawaitable(reply) else reply

    def _answer(self, wire: Wire, reply: Reply, asked: ModelRequest, body: Json) -> _Out:
        if wire is openai_responses and body.get("background"):
            return self._begin_job(reply if isinstance(reply, Job) else Job(reply), asked, body)
        if isinstance(reply, Job):
            reply = reply.reply
        answer = wire.answer(self._response(reply, asked), body, number=self._count())
        if wire is openai_chat and body.get("store"):
            self.shelf.completions.append(answer)
        return _stream(wire, answer) if body.get("stream") else _json(200, answer)

    def _begin_job(self, job: Job, asked: ModelRequest, body: Json) -> _Out:
        """Take in a response that is worked on in the background; one that is stuck in the queue is never generated."""
        is_stuck = job.queued is None
        response = self._response(job.reply, asked)
        if is_stuck:
            self._stuck += 1
            response = response.model_copy(update={"provider_id": f"resp_stuck_{self._stuck}"})
        answer = openai_responses.answer(
            response, body, number=self.generations if is_stuck else self._count()
        )
        is_streamed = bool(body.get("stream"))
        self.shelf.keep_job(job, answer, is_streamed=is_streamed)
        if not is_streamed:
            return _json(200, openai_responses.queued(answer))
        return _events(openai_responses.events(openai_responses.queued(answer) if is_stuck else answer))

    def _count(self) -> int:
        """The number of a new answer."""
        with self._changed:
            self.generations += 1
            self._changed.notify_all()
            return self.generations

    def _response(self, reply: Reply, asked: ModelRequest) -> ModelResponse:
        """The reply as a response, with ids that no other answer of this server has."""
        calls = [reply] if isinstance(reply, ToolCall) else reply
        if isinstance(calls, list | tuple):
            reply = [
                call.model_copy(update={"id": call.id or f"call_{self.generations + 1:04d}_{position}"})
                if isinstance(call, ToolCall)
                else call
                for position, call in enumerate(calls)
            ]
        response = decode_reply(encode_reply(reply, asked, name="fake"))
        if not isinstance(reply, ModelResponse):
            response = response.model_copy(update={"provider_id": None})
        return response

    def _job(self, id: str, request: FakeRequest) -> _Out:
        """What is asked about a response that is kept."""
        try:
            if request.method == "POST" and request.path.endswith("/cancel"):
                return _json(200, self.shelf.cancel(id))
            if request.query.get("stream") != ["true"]:
                return _json(200, self.shelf.look(id))
            events, cut = self.shelf.stream(id, int(request.query.get("starting_after", ["-1"])[0]))
        except Refusal as refusal:
            return _json(refusal.status, openai_responses.error(refusal.status, str(refusal), None))
        out = _events(events)
        out.send_share = cut
        out.delay_seconds = 0.0 if events else None
        return out

    async def _batch(self, path: str, request: FakeRequest) -> _Out:
        """What is asked about files and batches."""
        wire = anthropic_messages if path.startswith("/messages") else openai_responses
        try:
            if path.startswith("/files"):
                return self._file(path, request)
            parts = path.removeprefix("/messages").split("/")[2:]
            if not parts:
                return (
                    await self._begin_batch(wire, request)
                    if request.method == "POST"
                    else self._list(wire, request)
                )
            if parts[1:] == ["results"]:
                return _Out(200, "application/x-jsonl", [self.batches.results(parts[0])])
            batch = self.batches.find(parts[0])
            batch.cancel() if parts[1:] == ["cancel"] else batch.look()
            return _json(200, self._told(wire, batch))
        except Refusal as refusal:
            return _json(refusal.status, wire.error(refusal.status, str(refusal), None))

    def _file(self, path: str, request: FakeRequest) -> _Out:
        if request.method == "POST":
            return _json(200, self.batches.keep_file(request.body))
        return _Out(200, "application/octet-stream", [self.batches.file(path.split("/")[2])])

    def _list(self, wire: Wire, request: FakeRequest) -> _Out:
        """GET of all batches, a page of them."""
        if "list" in self.refuses:
            return _json(404, wire.error(404, "unknown path", "not_found"))
        after = request.query.get("after_id" if wire is anthropic_messages else "after", [None])[0]
        found, has_more = self.batches.listed(int(request.query.get("limit", ["20"])[0]), after)
        told = [self._told(wire, batch) for batch in found]
        ids = {"first_id": told[0]["id"] if told else None, "last_id": told[-1]["id"] if told else None}
        return _json(200, {"object": "list", "data": told, "has_more": has_more, **ids})

    def _told(self, wire: Wire, batch: KeptBatch) -> Json:
        if wire is anthropic_messages:
            return self.batches.told_by_anthropic(batch, self.base_url)
        return self.batches.told_by_openai(batch)

    async def _begin_batch(self, wire: Wire, request: FakeRequest) -> _Out:
        """Take in a batch; what its first request is replied to with may be about the batch itself: a fault."""
        asked: list[Asked] = []
        fault: Any = None
        for custom_id, of, body in self._asked_in(wire, request.body):
            try:
                question = of.request_of(body)
                check_conversation(question.messages)
            except (BadRequest, AgentflowError, KeyError, TypeError, ValueError) as error:
                refusal = {"status": 400, "body": of.error(400, f"{error}", None)}
                asked.append(Asked(custom_id, Job(queued=0), refusal=refusal))
                continue
            reply = await self._next_reply(question)
            if isinstance(reply, HttpError):
                return _refusal(wire, reply)
            if isinstance(reply, Stall | Cut):
                fault, reply = reply, reply.reply
            plan = reply if isinstance(reply, Job) else Job(reply, queued=0)
            is_made = plan.queued is not None and not plan.fails and not plan.expires
            answer = (
                of.answer(self._response(plan.reply, question), body, number=self._count())
                if is_made
                else None
            )
            asked.append(Asked(custom_id, plan, answer))
        prefix = "msgbatch_" if wire is anthropic_messages else "batch_"
        told = {name: request.body.get(name) for name in ("endpoint", "input_file_id", "metadata")}
        batch = self.batches.keep(f"{prefix}{self.batches.new_id()}", asked, told)
        out = _json(200, self._told(wire, batch))
        match fault:
            case Stall(seconds=seconds):
                out.delay_seconds = seconds
            case Cut(after=share):
                out.send_share = share
        return out

    def _asked_in(self, wire: Wire, body: Json) -> Iterator[tuple[str, Wire, Json]]:
        """The requests of a batch: its `custom_id`, the wire format it is of, and its body."""
        if wire is anthropic_messages:
            for item in body["requests"]:
                yield item["custom_id"], wire, item["params"]
            return
        for text in self.batches.file(body["input_file_id"]).decode().splitlines():
            line = json.loads(text)
            if line["url"] != body["endpoint"]:
                raise Refusal(400, f"the request is for {line['url']}, the batch for {body['endpoint']}")
            yield line["custom_id"], _WIRES[line["url"].removeprefix("/v1")], line["body"]

    def _found(self, request: FakeRequest) -> _Out:
        """The stored completions with the metadata that the query names."""
        if "list" in self.refuses:
            return _json(404, openai_responses.error(404, "unknown path", "not_found"))
        wanted = {
            key.removeprefix("metadata[").removesuffix("]"): values[0]
            for key, values in request.query.items()
            if key.startswith("metadata[")
        }
        return _json(200, {"object": "list", "data": self.shelf.found(wanted), "has_more": False})


@asynccontextmanager
async def fake_provider(
    replies: Iterable[FakeReply] | Callable[[ModelRequest], Any] = (),
) -> AsyncIterator[FakeProvider]:
    """A model provider on the loopback, for as long as the block is open.

    `replies` are given one for each request, in order, by whichever API it comes; or a function of the
    `ModelRequest` makes each. They are those of `ScriptedModel`, and `HttpError`, `Stall`, `Cut`,
    `BrokenStream`, `Job`.

        async with fake_provider(["Hello", HttpError(429, retry_after=1), "Hello again"]) as provider:
            model = OpenAIChat("any", base_url=f"{provider.base_url}/v1", api_key="none")
    """
    provider = FakeProvider(replies)
    server = _Server(provider)
    await asyncio.to_thread(server.start)
    try:
        yield provider
    finally:
        await asyncio.to_thread(server.stop)


class _Server:
    """HTTP/1.1 on an event loop in a thread: little enough to break a connection at any byte."""

    def __init__(self, provider: FakeProvider) -> None:
        self._provider = provider
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fake-provider", daemon=True)
        self._ready = threading.Event()
        self._closing = asyncio.Event()
        self._conversations: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self._provider.base_url = f"http://{host}:{port}"
        self._ready.set()
        await self._closing.wait()
        server.close()
        # Each conversation ends by itself when its line is cut.
        for writer in self._conversations.values():
            writer.close()
        while tasks := [task for task in self._conversations if task is not None]:
            await asyncio.wait(tasks)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._conversations[asyncio.current_task()] = writer
        try:
            while (request := await _read_request(reader)) is not None:
                out = await self._provider.respond(request)
                if not await self._send(out, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client is gone: what it was sent is its own affair
        finally:
            writer.close()
            del self._conversations[asyncio.current_task()]

    async def _send(self, out: _Out, writer: asyncio.StreamWriter) -> bool:
        """False when the connection is broken off, as the script wants it."""
        if out.delay_seconds != 0.0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), out.delay_seconds)
                return False
        is_stream = out.content_type == "text/event-stream"
        wire = [_framed(chunk) for chunk in out.chunks] if is_stream else out.chunks
        payload = _head(out, None if is_stream else sum(map(len, wire)))
        if out.send_share is None:
            writer.write(payload + b"".join(wire) + (b"0\r\n\r\n" if is_stream else b""))
            await writer.drain()
            return True
        if out.send_share > 0:
            body = b"".join(wire)
            writer.write(payload + body[: int(len(body) * out.send_share)])
            await writer.drain()
        return False


async def _read_request(reader: asyncio.StreamReader) -> FakeRequest | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.rstrip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    url = urlsplit(target)
    content_type = headers.get("content-type", "")
    is_form = content_type.startswith("multipart/form-data")
    body = uploaded(content_type, content) if is_form else json.loads(content) if content else {}
    return FakeRequest(method, url.path, parse_qs(url.query), headers, body)


def _head(out: _Out, length: int | None) -> bytes:
    framing = {"transfer-encoding": "chunked"} if length is None else {"content-length": str(length)}
    headers = {"content-type": out.content_type, "request-id": "req_fake", **framing, **out.headers}
    lines = [f"HTTP/1.1 {out.status} -", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _framed(chunk: bytes) -> bytes:
    return f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n"


def _json(status: int, body: Json, headers: dict[str, str] | None = None) -> _Out:
    return _Out(status, "application/json", [json.dumps(body).encode()], headers or {})


def _stream(wire: Wire, answer: Json) -> _Out:
    out = _events(wire.events(answer))
    if wire is openai_chat:
        out.chunks.append(b"data: [DONE]\n\n")
    return out


def _events(events: list[Event]) -> _Out:
    return _Out(200, "text/event-stream", [_event(event) for event in events])


def _event(event: Event) -> bytes:
    name, data = event
    return (f"event: {name}\n" if name else "").encode() + f"data: {json.dumps(data)}\n\n".encode()


def _refusal(wire: Wire, fault: HttpError) -> _Out:
    headers = {}
    if fault.retry_after is not None:
        headers["retry-after"] = f"{fault.retry_after:g}"
    if fault.should_retry is not None:
        headers["x-should-retry"] = str(fault.should_retry).lower()
    return _json(fault.status, wire.error(fault.status, fault.message, fault.code), headers)
