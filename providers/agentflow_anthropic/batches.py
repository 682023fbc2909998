"""Anthropic's Message Batches: requests are taken in, worked on within a day, and answered by a file of results.

A batch has no name of ours and no metadata: whose it is it tells in its results alone, by `custom_id`, when it has
ended. So one whose id was lost is looked for among those that were made in that moment, until all of them have ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from agentflow.errors import ConfigurationError, ProviderError
from agentflow.models.conversation import check_conversation
from agentflow.providers import (
    DeferredModel,
    Item,
    JobSearch,
    Model,
    ModelRequest,
    RawAnswer,
    Submitted,
    at_once,
    custom_id_of,
)

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types.messages import MessageBatch

Owners = dict[str, str]
"""The `custom_id` in each batch that has ended, as far as they were looked at: it does not change any more."""

_CLOCKS_DIFFER = timedelta(minutes=5)
_LONGEST_POST = timedelta(minutes=15)
"""Longer than it takes to be told the id of a new batch: the client gives up after ten."""
_MOST_OWNERS = 10_000
# Kinds of errors that asking again will not mend.
_FINAL_ERRORS = (
    "invalid_request_error",
    "authentication_error",
    "billing_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
)
_ENDED_BY = {"expired": "it has expired", "canceled": "it was cancelled"}


class Batched(DeferredModel):
    """A Claude model by Message Batches. Each request is a batch of its own: billed, found and cancelled by itself."""

    finds_jobs = True

    def __init__(
        self,
        model: Model,
        *,
        client: Callable[[], Awaitable[AsyncAnthropic]],
        body_of: Callable[[ModelRequest], Item],
        answer_of: Callable[[Item], RawAnswer],
        owners: Owners,
    ) -> None:
        super().__init__(model, "batch")
        self._client = client
        self._body_of = body_of
        self._answer_of = answer_of
        self._owners = owners

    async def submit(
        self, request: ModelRequest, *, metadata: Mapping[str, str], stream: bool = False
    ) -> Submitted:
        check_conversation(request.messages)
        asked: Item = {"custom_id": custom_id_of(metadata), "params": self._body_of(at_once(request))}
        client = await self._client()
        with self._knowing_batches(client):
            batch = await client.messages.batches.create(requests=[asked])  # type: ignore[list-item]
        return Submitted(provider_id=batch.id, raw=batch.to_dict(mode="json", warnings=False))

    async def poll(self, provider_id: str) -> RawAnswer | None:
        client = await self._client()
        batch = await client.messages.batches.retrieve(provider_id)
        if batch.processing_status != "ended":
            return None
        line = await _only_result(client, provider_id)
        if line is None:
            raise self._error(
                f"batch {provider_id} has ended, and has neither an answer nor an error", may_be_billed=True
            )
        return self._answer_in(line, provider_id)

    async def find_job(self, metadata: Mapping[str, str], *, since: datetime) -> JobSearch:
        wanted, oldest, newest = custom_id_of(metadata), since - _CLOCKS_DIFFER, since + _LONGEST_POST
        client, is_open = await self._client(), False
        with self._knowing_batches(client):
            async for batch in client.messages.batches.list(limit=1000):
                if batch.created_at < oldest:
                    break  # the newest come first
                if batch.created_at > newest or not _has_one_request(batch):
                    continue
                if batch.processing_status != "ended":
                    is_open = True
                elif await self._owner(client, batch.id) == wanted:
                    return JobSearch(provider_id=batch.id)
        return JobSearch(is_open=is_open)

    async def cancel(self, provider_id: str) -> None:
        await (await self._client()).messages.batches.cancel(provider_id)

    async def _owner(self, client: AsyncAnthropic, batch_id: str) -> str:
        """The `custom_id` of the one request of a batch that has ended."""
        if batch_id not in self._owners:
            line = await _only_result(client, batch_id)
            if len(self._owners) >= _MOST_OWNERS:
                self._owners.clear()
            self._owners[batch_id] = "" if line is None else line["custom_id"]
        return self._owners[batch_id]

    def _answer_in(self, line: Item, batch_id: str) -> RawAnswer:
        result = line["result"]
        kind = result["type"]
        if kind == "succeeded":
            return self._answer_of(result["message"])
        if kind != "errored":
            words = _ENDED_BY.get(kind, kind)
            raise self._error(
                f"the request in batch {batch_id} was not answered: {words}",
                code=kind,
                retriable=kind == "expired",
            )
        error = (result.get("error") or {}).get("error") or {}
        code = error.get("type")
        raise self._error(
            f"the request in batch {batch_id} failed ({code}): {error.get('message')}",
            code=code,
            retriable=code not in _FINAL_ERRORS,
        )

    def _error(
        self, told: str, *, code: str | None = None, retriable: bool = False, may_be_billed: bool = False
    ) -> ProviderError:
        # Requests that are errored, expired or canceled are not billed: platform.claude.com, Batch processing.
        return ProviderError(
            f"{self.provider}:{self.model}: {told}",
            provider=self.provider,
            model=self.model,
            code=code,
            billed="possible" if may_be_billed else "no",
            retriable=retriable,
        )

    @contextmanager
    def _knowing_batches(self, client: AsyncAnthropic) -> Iterator[None]:
        """Raise `ConfigurationError` where the server, or the client for it, has no batches."""
        from anthropic import AnthropicError, APIError, APIStatusError

        try:
            yield
        except AnthropicError as error:
            unknown = isinstance(error, APIStatusError) and error.status_code in (404, 405, 501)
            if isinstance(error, APIError) and not unknown:
                raise
            raise ConfigurationError(
                f"{self.provider}:{self.model}: there are no Message Batches at {client.base_url} ({error}), so that "
                'latency="batch" cannot hold there'
            ) from error


def _has_one_request(batch: MessageBatch) -> bool:
    counts = batch.request_counts
    return counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired == 1


async def _only_result(client: AsyncAnthropic, batch_id: str) -> Item | None:
    lines = [
        line.to_dict(mode="json", warnings=False)
        async for line in await client.messages.batches.results(batch_id)
    ]
    return lines[0] if lines else None
