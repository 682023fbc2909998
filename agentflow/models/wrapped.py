"""A call of an SDK in a model's place: asked and accounted for as every other model call is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from agentflow.errors import InvalidInput, Unserialisable
from agentflow.models.protocol import Capabilities, Failure, SdkUsage, StreamEvent, prices_apart
from agentflow.models.registry import check_not_blocked, known_providers, own_model
from agentflow.models.response import ModelRequest, ModelResponse, RawAnswer, Usage
from agentflow.models.sdk_answers import decode_sdk_answer, encode_sdk_answer
from agentflow.models.sdk_calls import (
    InThread,
    SdkCall,
    call_name,
    call_sdk,
    classify_sdk_error,
    provider_of,
)


class WrappedCall:
    """One call of an SDK, which is made instead of the request that it is given."""

    capabilities = Capabilities()

    def __init__(self, call: SdkCall, arguments: Mapping[str, Any], *, in_thread: InThread) -> None:
        self._call = call
        self._in_thread = in_thread
        self.provider = provider_of(call)
        self.model = model_of(call, arguments)
        self.arguments = arguments

    async def request(self, request: ModelRequest) -> RawAnswer:
        check_not_blocked(request.model)
        answer = await call_sdk(self._call, self.arguments, in_thread=self._in_thread)
        raw = _stored(answer, self.arguments)
        data = raw.get("data")
        answer_id = data.get("id") if isinstance(data, dict) else None
        return RawAnswer(
            provider=self.provider,
            model=self.model,
            raw=raw,
            provider_id=answer_id if isinstance(answer_id, str) else None,
        )

    async def stream(self, request: ModelRequest) -> AsyncIterator[StreamEvent]:
        yield await self.request(request)

    def parse(self, raw: dict[str, Any]) -> ModelResponse:
        """What the ledger wants to know: usage, and the model that answered."""
        data = raw.get("data")
        if not isinstance(data, dict):
            return ModelResponse()
        reader = self._reader()
        answered_by = data.get("model")
        return ModelResponse(
            usage=reader.usage_of(data) if isinstance(reader, SdkUsage) else Usage(),
            model=answered_by if isinstance(answered_by, str) else self.model,
        )

    def priced_apart(self, answer: Mapping[str, Any]) -> Mapping[str, int]:
        """What the provider has to say of it."""
        data, reader = answer.get("data"), self._reader()
        return reader.priced_apart(data) if isinstance(data, dict) and prices_apart(reader) else {}

    def classify(self, error: BaseException) -> Failure:
        return classify_sdk_error(error, provider=self.provider, model=self.model)

    def _reader(self) -> object:
        return own_model(f"{self.provider}:{self.model}") if self.provider in known_providers() else None


def model_of(call: SdkCall, arguments: Mapping[str, Any]) -> str:
    """The model that the call names; else the name of the call."""
    model = arguments.get("model")
    return model if isinstance(model, str) and model else call_name(call)


def open_wrapped(raw: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """What a stored answer is to the caller. Raises `Unserialisable` for one that could not be stored, `InvalidInput`
    for one that cannot be built again."""
    if "unserialisable" in raw:
        raise Unserialisable(raw["unserialisable"])
    return decode_sdk_answer(raw, arguments)


def _stored(answer: object, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The answer's JSON; or why it has none: it is paid, so that is remembered as well, and not asked again."""
    try:
        raw = encode_sdk_answer(answer)
        decode_sdk_answer(raw, arguments)
    except (Unserialisable, InvalidInput) as error:
        return {"unserialisable": str(error)}
    return raw
