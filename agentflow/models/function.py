"""A function as a model: `async (ModelRequest) -> reply`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from agentflow.models.failures import exception_failure
from agentflow.models.protocol import Capabilities, Failure, StreamEvent
from agentflow.models.replies import Reply, decode_reply, encode_reply
from agentflow.models.response import (
    ModelRequest,
    ModelResponse,
    RawAnswer,
    TextDelta,
    ToolArgsDelta,
)
from agentflow.models.values import canonical_json

ReplyFunction = Callable[[ModelRequest], Reply | Awaitable[Reply]]

_CHUNK = 8


class FunctionModel:
    """Calls a function, sync or async, in place of a model API.

    async def shout(request: ModelRequest) -> str:
        return request.prompt.upper()

    Agent("echo", model=FunctionModel(shout))     # or simply model=shout
    """

    provider = "function"
    # It stands for any model, so it takes what any takes; and answers at once all the same.
    capabilities = Capabilities(
        json_schema=True,
        tools=True,
        streaming=True,
        images=True,
        files=True,
        offline=True,
        latencies=("batch", "2h", "8h"),
    )

    def __init__(self, function: ReplyFunction, *, name: str | None = None) -> None:
        self._function = function
        self.model = name or str(getattr(function, "__name__", type(function).__name__))

    async def request(self, request: ModelRequest) -> RawAnswer:
        return self._answer(await self._raw(request))

    async def stream(self, request: ModelRequest) -> AsyncIterator[StreamEvent]:
        raw = await self._raw(request)
        for position, delta in enumerate(_deltas(raw)):
            if position:
                await asyncio.sleep(0)  # others have their turn between two pieces
            yield delta
        yield self._answer(raw)

    async def reply(self, request: ModelRequest) -> Reply:
        """What the function says."""
        reply = self._function(request)
        return await reply if inspect.isawaitable(reply) else reply

    def parse(self, raw: dict[str, Any]) -> ModelResponse:
        return decode_reply(raw)

    def classify(self, error: BaseException) -> Failure:
        return exception_failure(error, provider=self.provider, model=self.model)

    async def _raw(self, request: ModelRequest) -> dict[str, Any]:
        return encode_reply(await self.reply(request), request, name=self.model)

    def _answer(self, raw: dict[str, Any]) -> RawAnswer:
        return RawAnswer(provider=self.provider, model=self.model, raw=raw, provider_id=raw["provider_id"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"


def _deltas(raw: dict[str, Any]) -> Iterator[TextDelta | ToolArgsDelta]:
    for text in _chunks(raw["text"]):
        yield TextDelta(text=text)
    for call in raw["tool_calls"]:
        for position, text in enumerate(_chunks(canonical_json(call["args"]))):
            yield ToolArgsDelta(index=call["index"], text=text, name=None if position else call["name"])


def _chunks(text: str) -> list[str]:
    return [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
