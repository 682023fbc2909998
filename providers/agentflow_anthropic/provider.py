"""Calls Anthropic's Messages API by the official SDK; every call is a stream inside, so that no long answer
is cut by a timeout between two bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from agentflow.errors import ConfigurationError
from agentflow.models.conversation import check_conversation
from agentflow.providers import (
    BackgroundModel,
    Capabilities,
    Failure,
    Item,
    Latency,
    Message,
    ModelRequest,
    ModelResponse,
    RawAnswer,
    StreamEvent,
    Usage,
    exception_failure,
    imported,
    shared_client,
    status_failure,
    stream_failure,
)
from agentflow_anthropic.batches import Batched, Owners
from agentflow_anthropic.content import check_content
from agentflow_anthropic.events import MessageAssembly
from agentflow_anthropic.mapping import (
    PROVIDER,
    priced_apart,
    request_body,
    response_of,
    supports_json_schema,
    usage_of,
)

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic, AsyncStream

READ_TIMEOUT_SECONDS = 600.0
CONNECT_TIMEOUT_SECONDS = 10.0

# Error types that stand for a status where there is none, in an error event inside a 200 stream.
_NOT_RETRIABLE_IN_STREAM = (
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "billing_error",
)


class Anthropic:
    """A Claude model by the Messages API.

    Args:
        model: its name, as `claude-sonnet-4-5`.
        base_url: another server of the same API; else `ANTHROPIC_BASE_URL`, else Anthropic's.
        api_key: else `ANTHROPIC_API_KEY` (or what else the SDK finds), read when the first call is made.
        client: your own SDK client (for Bedrock or Vertex, say). Its retries are turned off.
        json_schema: whether the model holds its answers to a JSON Schema; else told by its name.
    """

    provider = PROVIDER

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        client: AsyncAnthropic | None = None,
        json_schema: bool | None = None,
    ) -> None:
        self.model = model
        self.capabilities = Capabilities(
            json_schema=supports_json_schema(model) if json_schema is None else json_schema,
            tools=True,
            streaming=True,
            images=True,
            files=True,
            asks_again=True,
            latencies=("batch",),
        )
        self._base_url = base_url
        self._api_key = api_key
        self._own_client = client
        self._owners: Owners = {}

    async def request(self, request: ModelRequest) -> RawAnswer:
        async with aclosing(self.stream(request)) as events:
            async for event in events:
                if isinstance(event, RawAnswer):
                    return event
        raise AssertionError("a stream ends with its answer, or raises")

    async def stream(self, request: ModelRequest) -> AsyncGenerator[StreamEvent]:
        check_conversation(request.messages)
        if request.settings.latency is not None:
            raise ConfigurationError(
                f"{self.provider}:{self.model} is asked at once here: latency={request.settings.latency!r} is for "
                "what it is given to do later, by deferred()"
            )
        client = await self._client()
        body = request_body(request, model=self.model)
        assembly = MessageAssembly()
        events = await self._post(client, {**body, "stream": True})
        async with events:
            if "application/json" in events.response.headers.get("content-type", ""):
                # A gateway that knows no streams: the message comes whole.
                assembly.take(self._whole(json.loads(await events.response.aread())))
            async for event in events:
                told = event if isinstance(event, dict) else {}
                if told.get("type") == "error":  # by a gateway that does not name its events so
                    kind, message = _told(told, "an error without a word")
                    raise self._broken_off(message, kind).error
                delta = assembly.add(told)
                if delta is not None:
                    yield delta
        if not assembly.is_complete:
            raise self._broken_off("the stream ended before the message did", None).error
        yield self._answer(assembly.message)

    def parse(self, raw: dict[str, Any]) -> ModelResponse:
        return response_of(raw)

    def deferred(self, latency: Latency) -> BackgroundModel:
        """The same model for half the price within a day: `latency` is `"batch"`."""
        return Batched(
            self,
            client=self._client,
            body_of=partial(request_body, model=self.model),
            answer_of=self._answer,
            owners=self._owners,
        )

    def usage_of(self, answer: Mapping[str, Any]) -> Usage:
        """The usage in an answer of any of the SDK's calls."""
        return usage_of(answer.get("usage") or {})

    def priced_apart(self, answer: Mapping[str, Any]) -> Mapping[str, int]:
        """What was written to the cache for an hour."""
        return priced_apart(answer.get("usage") or {})

    def check_content(self, messages: Sequence[Message]) -> None:
        check_content(messages)

    def classify(self, error: BaseException) -> Failure:
        if not type(error).__module__.startswith("anthropic"):
            return exception_failure(error, provider=self.provider, model=self.model)
        from anthropic import APIStatusError

        if not isinstance(error, APIStatusError):
            return exception_failure(error, provider=self.provider, model=self.model)
        kind, message = _told(error.body, str(error))
        if error.status_code < 400:
            return self._broken_off(message, kind)
        return status_failure(
            error.status_code,
            message,
            provider=self.provider,
            model=self.model,
            code=kind,
            headers=error.response.headers,
        )

    @staticmethod
    async def _post(client: AsyncAnthropic, body: Item) -> AsyncStream[object]:
        from anthropic import AsyncStream

        # Not messages.create: it warns, on every call, of models that will be retired one day, and its typed
        # events are not always written again as they came.
        return await client.post(
            "/v1/messages", body=body, cast_to=object, stream=True, stream_cls=AsyncStream[object]
        )

    def _whole(self, told: object) -> Item:
        if isinstance(told, dict) and isinstance(told.get("content"), list):
            return told
        kind, message = _told(told, "an answer without content")
        raise self._broken_off(message, kind).error

    def _broken_off(self, message: str, code: str | None) -> Failure:
        """The failure that an error inside a 200 answer is."""
        return stream_failure(
            message,
            provider=self.provider,
            model=self.model,
            code=code,
            retriable=code not in _NOT_RETRIABLE_IN_STREAM,
        )

    def _answer(self, message: Item) -> RawAnswer:
        return RawAnswer(provider=self.provider, model=self.model, raw=message, provider_id=message.get("id"))

    async def _client(self) -> AsyncAnthropic:
        if self._own_client is not None:
            return self._own_client.with_options(max_retries=0)
        await imported("anthropic", "anthropic.resources.messages", "anthropic.types")
        api_key = self._api_key or os.environ.get("ANTHROPIC_API_KEY")
        base_url = self._base_url or os.environ.get("ANTHROPIC_BASE_URL")
        token = os.environ.get("ANTHROPIC_AUTH_TOKEN")
        return shared_client(
            (PROVIDER, base_url, api_key, token), self._new_client, close=lambda client: client.close()
        )

    def _new_client(self) -> AsyncAnthropic:
        from anthropic import AnthropicError, AsyncAnthropic
        from httpx2 import Timeout

        try:
            client = AsyncAnthropic(
                api_key=self._api_key,
                base_url=self._base_url,
                max_retries=0,
                timeout=Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
            )
        except AnthropicError as error:
            raise ConfigurationError(f"no client for {self.provider}:{self.model}: {error}") from error
        if client.api_key is None and client.auth_token is None and client.credentials is None:
            raise ConfigurationError(
                f"no key for {self.provider}:{self.model}: set ANTHROPIC_API_KEY, or give it an api_key="
            )
        return client

    def __repr__(self) -> str:
        return f"Anthropic({self.model!r})"


def _told(body: object, otherwise: str) -> tuple[str | None, str]:
    """The kind and the words of an error of theirs: `{"error": {"type": ..., "message": ...}}`."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return None, otherwise
    return error.get("type"), error.get("message") or otherwise
