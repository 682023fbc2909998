"""Calls OpenAI's two APIs by the official SDK: `OpenAIResponses` and `OpenAIChat`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agentflow.errors import ConfigurationError, ProviderError
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
    Submitted,
    Usage,
)
from agentflow_openai import chat, content, responses
from agentflow_openai.batches import Batched
from agentflow_openai.client import Account, answer_failure, classify
from agentflow_openai.events import ChatAssembly, ResponseAssembly, events_in
from agentflow_openai.windows import Windowed

if TYPE_CHECKING:
    from httpx2 import Response
    from openai import AsyncOpenAI, AsyncStream
    from openai._legacy_response import LegacyAPIResponse

_STILL_AT_WORK = ("queued", "in_progress")
BACKGROUND: Item = {"background": True, "store": True}


class _OpenAI:
    """What both APIs share: the account, and how their failures are read."""

    provider: str

    def __init__(
        self, model: str, *, base_url: str | None, api_key: str | None, client: AsyncOpenAI | None
    ) -> None:
        self.model = model
        self._account = Account(f"{self.provider}:{model}", base_url=base_url, api_key=api_key, client=client)

    def classify(self, error: BaseException) -> Failure:
        return classify(error, provider=self.provider, model=self.model)

    def usage_of(self, answer: Mapping[str, Any]) -> Usage:
        """The usage in an answer of any of the SDK's calls: all count tokens by one of two sets of names."""
        counted = answer.get("usage") or {}
        return chat.usage_of(counted) if "prompt_tokens" in counted else responses.usage_of(counted)

    def _check(self, request: ModelRequest) -> None:
        check_conversation(request.messages)
        if request.settings.latency is not None:
            raise ConfigurationError(
                f"{self.provider}:{self.model} is asked at once here: latency={request.settings.latency!r} is for "
                "what it is given to do later, by deferred()"
            )

    def _answer(self, raw: Item) -> RawAnswer:
        return RawAnswer(provider=self.provider, model=self.model, raw=raw, provider_id=raw.get("id") or None)

    def _failed(self, error: object, otherwise: str) -> ProviderError:
        told: Item = error if isinstance(error, dict) else {"message": error}
        code = told.get("code") or (told.get("type") if told.get("type") != "error" else None)
        return answer_failure(
            str(told.get("message") or otherwise),
            str(code) if code else None,
            provider=self.provider,
            model=self.model,
        ).error

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"


class OpenAIResponses(_OpenAI):
    """A model by OpenAI's Responses API.

    Args:
        model: its name, as `gpt-5-mini`.
        base_url: another server of the same API; else `OPENAI_BASE_URL`, else OpenAI's.
        api_key: else `OPENAI_API_KEY`, read when the first call is made.
        client: your own SDK client (for Azure, say). Its retries are turned off.
    """

    provider = responses.PROVIDER
    capabilities = Capabilities(
        json_schema=True,
        tools=True,
        streaming=True,
        images=True,
        files=True,
        background=True,
        latencies=("batch", "2h", "8h"),
    )

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        client: AsyncOpenAI | None = None,
    ) -> None:
        super().__init__(model, base_url=base_url, api_key=api_key, client=client)

    async def request(self, request: ModelRequest) -> RawAnswer:
        return self._whole(await self._create(self._body(request)))

    async def stream(self, request: ModelRequest) -> AsyncIterator[StreamEvent]:
        async for event in self._read(await self._open(self._body(request))):
            yield event

    def parse(self, raw: dict[str, Any]) -> ModelResponse:
        return responses.response_of(raw)

    def check_content(self, messages: Sequence[Message]) -> None:
        content.check_responses(messages)

    async def submit(
        self, request: ModelRequest, *, metadata: Mapping[str, str], stream: bool = False
    ) -> Submitted:
        """Have OpenAI work on it without us, and keep the answer to be polled, or with `stream` to be resumed."""
        with self._account.not_refusing(*BACKGROUND):
            if stream:
                raw = await self._begin(self._body(request, BACKGROUND, metadata))
            else:
                raw = await self._create(self._body(request, BACKGROUND, metadata))
        return self._submitted(raw)

    def deferred(self, latency: Latency) -> BackgroundModel:
        """The same model for half the price within a day (`"batch"`), or in one of OpenAI's completion windows."""
        if latency == "batch":
            return Batched(
                self, self._account, endpoint="/v1/responses", body_of=self._body, answer_of=self._whole
            )
        return Windowed(self, latency, submit=self._submit_for_window)

    async def _submit_for_window(
        self, request: ModelRequest, window: Latency, metadata: Mapping[str, str]
    ) -> Submitted:
        more = {**BACKGROUND, "background_options": {"completion_window": window}}
        with self._account.taking(f"latency={window!r}", refused_by=(*more, "completion_window")):
            return self._submitted(await self._create(self._body(request, more, metadata)))

    def _submitted(self, raw: Item) -> Submitted:
        answer = None if raw.get("status") in _STILL_AT_WORK else self._whole(raw)
        return Submitted(provider_id=raw["id"], raw=raw, answer=answer)

    async def poll(self, provider_id: str) -> RawAnswer | None:
        reply = await (await self._account.client()).responses.with_raw_response.retrieve(provider_id)
        raw = _json(reply.http_response.json())
        return None if raw.get("status") in _STILL_AT_WORK else self._whole(raw)

    async def resume(self, provider_id: str, *, after: int | None = None) -> AsyncIterator[StreamEvent]:
        responses_raw = (await self._account.client()).responses.with_raw_response
        if after is None:
            reply = await responses_raw.retrieve(provider_id, stream=True)
        else:
            reply = await responses_raw.retrieve(provider_id, stream=True, starting_after=after)
        async for event in self._read(_untyped(reply)):
            yield event

    async def cancel(self, provider_id: str) -> None:
        await (await self._account.client()).responses.cancel(provider_id)

    async def _begin(self, body: Item) -> Item:
        """The job as it is when its stream begins: only a job that was begun as a stream has one to be resumed."""
        events = await self._open(body)
        assembly = ResponseAssembly()
        async with events:
            if _is_json(events):
                return _json(json.loads(await events.response.aread()))
            async for told in _told_by(events):
                begun = told.get("response")
                if isinstance(begun, dict) and begun.get("id") and begun.get("background"):
                    return begun
                assembly.add(told)  # a server that knows no background answers at once
        return self._end_of(assembly)

    async def _open(self, body: Item) -> AsyncStream[object]:
        model = body.pop("model")
        raw = (await self._account.client()).responses.with_raw_response
        return _untyped(await raw.create(model=model, stream=True, extra_body=body))

    async def _create(self, body: Item) -> Item:
        model = body.pop("model")
        reply = await (await self._account.client()).responses.with_raw_response.create(
            model=model, extra_body=body
        )
        if _is_event_stream(reply.http_response):
            assembly = ResponseAssembly()
            for event in events_in(reply.http_response.text):
                assembly.add(event)
            return self._end_of(assembly)
        return _json(reply.http_response.json())

    def _body(
        self, request: ModelRequest, more: Item | None = None, metadata: Mapping[str, str] | None = None
    ) -> Item:
        self._check(request)
        return _with_metadata(responses.request_body(request, model=self.model) | (more or {}), metadata)

    async def _read(self, events: AsyncStream[object]) -> AsyncIterator[StreamEvent]:
        assembly = ResponseAssembly()
        async with events:
            if _is_json(events):
                yield self._whole(_json(json.loads(await events.response.aread())))
                return
            async for told in _told_by(events):
                delta = assembly.add(told)
                if delta is not None:
                    yield delta
        yield self._whole(self._end_of(assembly))

    def _end_of(self, assembly: ResponseAssembly) -> Item:
        if assembly.failure is not None:
            raise self._failed(assembly.failure, "an error without a word")
        if assembly.response is None:
            raise self._failed(None, "the stream ended before the response did")
        return assembly.response

    def _whole(self, raw: Item) -> RawAnswer:
        if raw.get("status") in _STILL_AT_WORK:
            raise self._failed(
                None, f"the response {raw.get('id')} is {raw.get('status')}, and was not submitted"
            )
        if raw.get("status") in ("failed", "cancelled") or "output" not in raw:
            raise self._failed(raw.get("error"), f"the response {raw.get('id')} is {raw.get('status')}")
        return self._answer(raw)


class OpenAIChat(_OpenAI):
    """A model by Chat Completions, OpenAI's or a gateway's.

    Args:
        model: its name there.
        base_url: the gateway; else `OPENAI_BASE_URL`, else OpenAI's.
        api_key: else `OPENAI_API_KEY`, read when the first call is made.
        client: your own SDK client. Its retries are turned off.
        json_schema: whether the model holds its answers to a JSON Schema; else what OpenAI's own can.
    """

    provider = chat.PROVIDER

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        client: AsyncOpenAI | None = None,
        json_schema: bool | None = None,
    ) -> None:
        super().__init__(model, base_url=base_url, api_key=api_key, client=client)
        self._json_schema = json_schema

    @property
    def capabilities(self) -> Capabilities:
        by_default = not self._account.is_gateway and not self.model.startswith("gpt-3.5")
        return Capabilities(
            json_schema=by_default if self._json_schema is None else self._json_schema,
            tools=True,
            streaming=True,
            images=True,
            files=True,
            lookup=True,
            latencies=("batch",),
        )

    async def request(self, request: ModelRequest) -> RawAnswer:
        return await self._create(self._body(request))

    async def stream(self, request: ModelRequest) -> AsyncIterator[StreamEvent]:
        async for event in self._streamed(self._body(request)):
            yield event

    async def _streamed(self, body: Item) -> AsyncIterator[StreamEvent]:
        body = {"stream_options": {"include_usage": True}, **body}
        required = {key: body.pop(key) for key in ("model", "messages")}
        raw = (await self._account.client()).chat.completions.with_raw_response
        chunks = _untyped(await raw.create(**required, stream=True, extra_body=body))
        assembly = ChatAssembly()
        async with chunks:
            if _is_json(chunks):
                yield self._with_choices(_json(json.loads(await chunks.response.aread())))
                return
            async for chunk in _told_by(chunks):
                for delta in assembly.add(chunk):
                    yield delta
        yield self._end_of(assembly)

    def parse(self, raw: dict[str, Any]) -> ModelResponse:
        return chat.response_of(raw)

    def check_content(self, messages: Sequence[Message]) -> None:
        content.check_chat(messages)

    def deferred(self, latency: Latency) -> BackgroundModel:
        """The same model for half the price within a day: `latency` is `"batch"`."""
        return Batched(
            self,
            self._account,
            endpoint="/v1/chat/completions",
            body_of=self._body,
            answer_of=self._with_choices,
        )

    async def request_stored(self, request: ModelRequest, *, metadata: Mapping[str, str]) -> RawAnswer:
        """Ask, and have OpenAI keep the completion under this metadata."""
        with self._account.not_refusing("store", "metadata"):
            return await self._create(self._body(request, {"store": True}, metadata))

    async def stream_stored(
        self, request: ModelRequest, *, metadata: Mapping[str, str]
    ) -> AsyncIterator[StreamEvent]:
        """`request_stored`, told as a stream."""
        with self._account.not_refusing("store", "metadata"):
            async for event in self._streamed(self._body(request, {"store": True}, metadata)):
                yield event

    async def find(self, metadata: Mapping[str, str]) -> RawAnswer | None:
        wanted = dict(metadata)
        pages = (await self._account.client()).chat.completions.list(metadata=wanted, limit=20)
        with self._account.not_refusing_list():
            async for completion in pages:
                raw: Item = completion.to_dict(mode="json", warnings=False)
                # A gateway may not know the filter and list whatever it keeps.
                if wanted.items() <= (raw.get("metadata") or {}).items():
                    return self._answer(raw)
        return None

    def _body(
        self, request: ModelRequest, more: Item | None = None, metadata: Mapping[str, str] | None = None
    ) -> Item:
        self._check(request)
        body = chat.request_body(request, model=self.model, is_gateway=self._account.is_gateway)
        return _with_metadata(body | (more or {}), metadata)

    async def _create(self, body: Item) -> RawAnswer:
        body = dict(body)
        required = {key: body.pop(key) for key in ("model", "messages")}
        completions = (await self._account.client()).chat.completions.with_raw_response
        reply = await completions.create(**required, extra_body=body)
        if _is_event_stream(reply.http_response):
            assembly = ChatAssembly()
            for chunk in events_in(reply.http_response.text):
                assembly.add(chunk)
            return self._end_of(assembly)
        return self._with_choices(_json(reply.http_response.json()))

    def _end_of(self, assembly: ChatAssembly) -> RawAnswer:
        error = assembly.completion.get("error")
        if error or not assembly.is_complete:
            raise self._failed(error, "the stream ended before the completion did")
        return self._answer(assembly.completion)

    def _with_choices(self, raw: Item) -> RawAnswer:
        if raw.get("error") or not raw.get("choices"):  # some gateways tell an error with status 200
            raise self._failed(raw.get("error"), "an answer without a choice")
        return self._answer(raw)


def _with_metadata(body: Item, metadata: Mapping[str, str] | None) -> Item:
    """The body with ours beside the user's own."""
    return body if metadata is None else {**body, "metadata": {**(body.get("metadata") or {}), **metadata}}


def _untyped(reply: LegacyAPIResponse[Any]) -> AsyncStream[object]:
    """The events as they came: the SDK's typed ones are not always written again the same."""
    from openai import AsyncStream

    return reply.parse(to=AsyncStream[object])


async def _told_by(events: AsyncStream[object]) -> AsyncIterator[Item]:
    async for event in events:
        if isinstance(event, dict):
            yield event


# Gateways answer as they can: one that knows no streams sends JSON, one that knows nothing else a stream.


def _is_json(events: AsyncStream[object]) -> bool:
    return "application/json" in events.response.headers.get("content-type", "")


def _is_event_stream(response: Response) -> bool:
    return "text/event-stream" in response.headers.get("content-type", "")


def _json(value: object) -> Item:
    if not isinstance(value, dict):
        raise ValueError(f"the answer is {type(value).__name__}, not a JSON object")
    return value
