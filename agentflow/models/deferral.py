"""`ModelSettings(latency=)`: who can answer later for less, by which way, and under which billing.

A call that comes later is a job: it is submitted, and looked at until it has ended. A provider says which latencies it
takes (`Capabilities.latencies`) and gives itself by that way (`deferred`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, cast

from agentflow.errors import ConfigurationError
from agentflow.models.ledger import Billing
from agentflow.models.messages import Message
from agentflow.models.protocol import (
    Capabilities,
    DeferrableModel,
    Failure,
    Model,
    StreamEvent,
    checks_content,
    model_ref,
    prices_apart,
)
from agentflow.models.response import Latency, ModelRequest, ModelResponse, RawAnswer


class DeferredModel:
    """What the `deferred` of a provider gives: the model, whose calls are jobs. For provider authors.

    A subclass adds `submit`, `poll` and `cancel`, and where jobs are listed `find_job` and `finds_jobs = True`.
    """

    finds_jobs = False

    def __init__(self, model: Model, latency: Latency) -> None:
        self._model = model
        self._latency = latency
        self.provider = model.provider
        self.model = model.model
        self.capabilities: Capabilities = replace(
            model.capabilities, background=True, lookup=self.finds_jobs, streaming=False, asks_again=False
        )

    async def request(self, request: ModelRequest) -> RawAnswer:
        raise self._is_no_talk()

    async def stream(self, request: ModelRequest) -> AsyncIterator[StreamEvent]:
        raise self._is_no_talk()
        yield  # pragma: no cover  (makes this a generator)

    async def resume(self, provider_id: str, *, after: int | None = None) -> AsyncIterator[StreamEvent]:
        raise self._is_no_talk()
        yield  # pragma: no cover

    def parse(self, raw: dict[str, Any]) -> ModelResponse:
        return self._model.parse(raw)

    def classify(self, error: BaseException) -> Failure:
        return self._model.classify(error)

    def check_content(self, messages: Sequence[Message]) -> None:
        if checks_content(self._model):
            self._model.check_content(messages)

    def priced_apart(self, answer: Mapping[str, Any]) -> Mapping[str, int]:
        return self._model.priced_apart(answer) if prices_apart(self._model) else {}

    def _is_no_talk(self) -> ConfigurationError:
        return ConfigurationError(
            f"{model_ref(self._model)} by latency={self._latency!r} is given jobs: it neither answers at once nor "
            "streams"
        )

    def __repr__(self) -> str:
        return f"{self._model!r}.deferred({self._latency!r})"


def deferred(model: Model, latency: str) -> Model:
    """The model by the way that `latency` names; one that is offline may be its own. Raises `ConfigurationError`."""
    check_latency([model], latency)
    # A model that tests have blocked is none of these: it says so when it is asked.
    return model.deferred(cast(Latency, latency)) if isinstance(model, DeferrableModel) else model


def check_latency(models: Sequence[object], latency: str | None) -> None:
    """Raise `ConfigurationError` for a model that does not take it; those that are only named are left out."""
    if latency is None:
        return
    for model in models:
        if isinstance(model, Model) and latency not in model.capabilities.latencies:
            can = " and ".join(f"{other!r}" for other in model.capabilities.latencies)
            raise ConfigurationError(
                f"{model_ref(model)} does not take latency={latency!r}"
                f" ({f'only {can}' if can else 'nor any other'}): leave it out, or ask one of "
                f"{', '.join(_KNOWN[latency])}"
            )


_KNOWN = {
    "batch": ("openai:...", "openai-chat:...", "anthropic:..."),
    "2h": ("openai:...",),
    "8h": ("openai:...",),
}


def check_streams(stream: bool, latency: str | None, *, of: str) -> None:
    """Raise `ConfigurationError` where an answer that comes later is wanted as a stream."""
    if stream and latency is not None:
        raise ConfigurationError(
            f"{of}: an answer by latency={latency!r} comes whole and hours later: there is nothing to stream"
        )


def billing_under(billing: Billing, latency: str | None) -> Billing:
    """The way of billing that holds: a batch is always strict, and a job is never given up for a crash."""
    if latency == "batch":
        return "strict"
    return "recover" if latency is not None and billing == "at_least_once" else billing


def at_once(request: ModelRequest) -> ModelRequest:
    """The request without its latency: what a job is about."""
    return request.model_copy(update={"settings": request.settings.model_copy(update={"latency": None})})


def custom_id_of(metadata: Mapping[str, str]) -> str:
    """The id by which a request is found in a batch: the same in every process, within what the APIs allow."""
    named = "\n".join(f"{name}={metadata[name]}" for name in sorted(metadata))
    return f"agentflow-{sha256(named.encode()).hexdigest()[:40]}"
