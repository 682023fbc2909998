"""What a provider is: one protocol, and two small ones for what only some model APIs can do.

A provider does not retry, does not store and does not validate output: it carries one request to one API
and brings the raw answer back. Everything else follows from `parse` and `classify`, which are pure.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeAlias, TypeGuard, runtime_checkable

from agentflow.errors import Billed, ProviderError
from agentflow.models.messages import Message
from agentflow.models.response import Delta, Latency, ModelRequest, ModelResponse, RawAnswer, Usage

StreamEvent: TypeAlias = Delta | RawAnswer


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a model can do, as far as its provider knows."""

    json_schema: bool = False
    """Holds its answer to a JSON Schema (`OutputSpec.mode == "native"`)."""
    tools: bool = True
    streaming: bool = False
    images: bool = False
    """Takes images in a user's message. What of them it cannot carry, a `ContentCheck` says."""
    files: bool = False
    """Takes files in a user's message."""
    background: bool = False
    """Is a `BackgroundModel`: a call is found again by its id after a crash."""
    lookup: bool = False
    """Is a `LookupModel` or a `JobLookupModel`: a call is found again by its metadata after a crash."""
    asks_again: bool = False
    """Keeps nothing to be found again, and may be asked again under `billing="recover"`: the ledger says `possible`."""
    latencies: tuple[Latency, ...] = ()
    """Which of `ModelSettings(latency=)` it takes, as a `DeferrableModel`; one that is `offline` may answer at once."""
    offline: bool = False
    """Reaches no paid API; `block_models()` lets it pass."""


@dataclass(frozen=True)
class Failure:
    """What an exception of a model call means for the bill and for the next attempt."""

    error: ProviderError

    @property
    def billed(self) -> Billed:
        return self.error.billed

    @property
    def retriable(self) -> bool:
        return self.error.retriable

    @property
    def retry_after(self) -> float | None:
        """Seconds the provider asked to wait."""
        return self.error.retry_after


@runtime_checkable
class Model(Protocol):
    """One model of one provider."""

    @property
    def provider(self) -> str:
        """The provider's name, as it stands before the colon of "provider:model"."""
        ...

    @property
    def model(self) -> str:
        """The model's name, as it stands after the colon."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    async def request(self, request: ModelRequest) -> RawAnswer:
        """Ask once, without a retry of its own; whatever it raises goes to `classify`."""
        ...

    def stream(self, request: ModelRequest) -> AsyncIterator[StreamEvent]:
        """Ask once: deltas as they come, and last the same `RawAnswer` that `request` would have brought."""
        ...

    def parse(self, raw: dict[str, Any]) -> ModelResponse:
        """The normal form of a raw answer. Pure: the same raw gives the same response in any process, years
        later.
        """
        ...

    def classify(self, error: BaseException) -> Failure:
        """What an exception of `request` or `stream` means. In doubt whether it is billed: "possible"."""
        ...


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job the provider has accepted and works on without us."""

    provider_id: str
    raw: dict[str, Any]
    answer: RawAnswer | None = None
    """The answer, from a server that gave it at once."""


@runtime_checkable
class BackgroundModel(Model, Protocol):
    """A model whose calls outlive the connection: once the id is stored, a crash costs nothing."""

    async def submit(
        self, request: ModelRequest, *, metadata: Mapping[str, str], stream: bool = False
    ) -> Submitted:
        """Give the provider the job; with `stream` one whose deltas `resume` can tell. Raises `ConfigurationError` when
        the server refuses to work in the background or to store."""
        ...

    async def poll(self, provider_id: str) -> RawAnswer | None:
        """The answer, or None while the provider still works on it.

        A `ProviderError` says that the job has ended without one. Whatever else is raised only says that the provider
        could not be asked now, and goes to `classify`.
        """
        ...

    def resume(self, provider_id: str, *, after: int | None = None) -> AsyncIterator[StreamEvent]:
        """The job's stream, from the event after number `after` on."""
        ...

    async def cancel(self, provider_id: str) -> None:
        """Let the job end where it is; one that has ended stays as it is."""
        ...


@dataclass(frozen=True, kw_only=True)
class JobSearch:
    """What came of a look for a job whose id was lost."""

    provider_id: str | None = None
    """The job's id, when it was found."""
    is_open: bool = False
    """Whether it may be one of those that do not tell yet whose they are: it is to be looked for again."""


@runtime_checkable
class JobLookupModel(BackgroundModel, Protocol):
    """A model whose provider lists the jobs that it was given."""

    async def find_job(self, metadata: Mapping[str, str], *, since: datetime) -> JobSearch:
        """Look for the job that was submitted with this metadata, not before `since`. Raises `ConfigurationError` when
        the server lists none."""
        ...


@runtime_checkable
class DeferrableModel(Model, Protocol):
    """A model that also answers later, for less."""

    def deferred(self, latency: Latency) -> BackgroundModel:
        """The same model by the way of its API that `latency` names: each call is a job. See `DeferredModel`."""
        ...


@runtime_checkable
class LookupModel(Model, Protocol):
    """A model whose provider keeps answers and finds them by metadata."""

    async def request_stored(self, request: ModelRequest, *, metadata: Mapping[str, str]) -> RawAnswer:
        """`request`, whose answer the provider keeps. Raises `ConfigurationError` when the server refuses to."""
        ...

    def stream_stored(
        self, request: ModelRequest, *, metadata: Mapping[str, str]
    ) -> AsyncIterator[StreamEvent]:
        """`stream`, whose answer the provider keeps."""
        ...

    async def find(self, metadata: Mapping[str, str]) -> RawAnswer | None:
        """The answer that was stored with this metadata, or None (it may still come). Raises `ConfigurationError` when
        the server does not tell what it has stored."""
        ...


@runtime_checkable
class SdkUsage(Protocol):
    """A provider that finds the usage in whatever its SDK answers: what `step.ai.wrap` enters in the ledger."""

    def usage_of(self, answer: Mapping[str, Any]) -> Usage:
        """The usage in an answer's JSON, nothing where it has none. Pure."""
        ...


@runtime_checkable
class ContentCheck(Protocol):
    """A provider that knows before a request what images and files its API cannot carry."""

    def check_content(self, messages: Sequence[Message]) -> None:
        """Raise `InvalidInput` for what the API cannot carry. Pure."""
        ...


@runtime_checkable
class PricedApart(Protocol):
    """A provider some of whose tokens have a price of their own."""

    def priced_apart(self, answer: Mapping[str, Any]) -> Mapping[str, int]:
        """Of the tokens that an answer's JSON counts those, by the names of `genai-prices`:
        `{"cache_write_1h_tokens": 418}`. They are in the usage as well. Pure."""
        ...


def checks_content(model: object) -> TypeGuard[ContentCheck]:
    """Whether it is a `ContentCheck`; asked for each call, for which `isinstance` with a protocol is too slow."""
    return hasattr(model, "check_content")


def prices_apart(model: object) -> TypeGuard[PricedApart]:
    """Whether it is a `PricedApart`."""
    return hasattr(model, "priced_apart")


def model_ref(model: Model) -> str:
    """ "provider:model", the name a model goes by in requests, ledgers and messages."""
    return f"{model.provider}:{model.model}"
