"""OpenAI's Batch API: a file of requests is uploaded, worked on within a day, and answered by a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from agentflow.errors import Billed, ConfigurationError, ProviderError, RateLimited
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
    imported,
    status_failure,
)
from agentflow_openai.client import Account

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types import Batch

Endpoint = Literal["/v1/responses", "/v1/chat/completions"]

_ENDED = ("completed", "failed", "expired", "cancelled")
# Codes of requests that were never begun; whatever a batch did complete is billed.
_NOT_BEGUN = ("batch_expired", "batch_cancelled")
_QUEUE_IS_FULL = "token_limit_exceeded"
_SECONDS_FOR_A_PLACE = 300.0
_CLOCKS_DIFFER = timedelta(hours=1)
"""So much older than a request may be the batches that are looked through for it."""


class Batched(DeferredModel):
    """A model by the Batch API. Each request is a batch of its own: billed, found and cancelled by itself."""

    finds_jobs = True

    def __init__(
        self,
        model: Model,
        account: Account,
        *,
        endpoint: Endpoint,
        body_of: Callable[[ModelRequest], Item],
        answer_of: Callable[[Item], RawAnswer],
    ) -> None:
        super().__init__(model, "batch")
        self._account = account
        self._endpoint: Endpoint = endpoint
        self._body_of = body_of
        self._answer_of = answer_of

    async def submit(
        self, request: ModelRequest, *, metadata: Mapping[str, str], stream: bool = False
    ) -> Submitted:
        custom_id = custom_id_of(metadata)
        body = self._body_of(at_once(request))
        line = {"custom_id": custom_id, "method": "POST", "url": self._endpoint, "body": body}
        client = await self._client()
        file_id = await self._upload(client, custom_id, line)
        with self._account.knowing_batches():
            batch = await client.batches.create(
                completion_window="24h",
                endpoint=self._endpoint,
                input_file_id=file_id,
                metadata=dict(metadata),
            )
        return Submitted(provider_id=batch.id, raw=batch.to_dict(mode="json", warnings=False))

    async def poll(self, provider_id: str) -> RawAnswer | None:
        client = await self._client()
        batch = await client.batches.retrieve(provider_id)
        if batch.status not in _ENDED:
            return None
        line = await self._line(client, batch)
        if line is None:
            raise self._without_a_line(batch)
        return self._answer_in(line, batch.id)

    async def find_job(self, metadata: Mapping[str, str], *, since: datetime) -> JobSearch:
        wanted, oldest = metadata.items(), (since - _CLOCKS_DIFFER).timestamp()
        with self._account.not_refusing_list("batches"):
            async for batch in (await self._client()).batches.list(limit=100):
                if wanted <= (batch.metadata or {}).items():
                    return JobSearch(provider_id=batch.id)
                if batch.created_at < oldest:
                    break  # the newest come first
        return JobSearch()

    async def cancel(self, provider_id: str) -> None:
        await (await self._client()).batches.cancel(provider_id)

    async def _client(self) -> AsyncOpenAI:
        client = await self._account.client()
        await imported("openai.resources.batches", "openai.resources.files")
        return client

    async def _upload(self, client: AsyncOpenAI, custom_id: str, line: Item) -> str:
        content = json.dumps(line).encode() + b"\n"
        try:
            with self._account.knowing_batches():
                file = await client.files.create(
                    file=(f"{custom_id}.jsonl", content, "application/jsonl"), purpose="batch"
                )
        except ConfigurationError:
            raise
        except Exception as error:
            failure = self.classify(error).error
            failure.billed = "no"  # nothing is generated for a file, whatever has become of it
            raise failure from error
        return file.id

    @staticmethod
    async def _line(client: AsyncOpenAI, batch: Batch) -> Item | None:
        """What the batch says of its one request."""
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                content = await client.files.content(file_id)
                for text in content.content.splitlines():  # bytes: a text may hold other ends of lines
                    line: Item = json.loads(text)
                    return line
        return None

    def _answer_in(self, line: Item, batch_id: str) -> RawAnswer:
        response, error = line.get("response") or {}, line.get("error")
        body = response.get("body") or {}
        status = response.get("status_code")
        if error or not status:
            code = (error or {}).get("code")
            raise self._failed(batch_id, code, (error or {}).get("message") or "it has no answer")
        if status >= 400:
            told = body.get("error") or {}
            raise status_failure(
                status,
                f"{told.get('message') or body} (in batch {batch_id})",
                provider=self.provider,
                model=self.model,
                code=told.get("code") or told.get("type"),
            ).error
        return self._answer_of(body)

    def _without_a_line(self, batch: Batch) -> ProviderError:
        if batch.status == "failed":
            # The file was refused before anything was begun.
            told = (batch.errors and batch.errors.data) or []
            if any(error.code == _QUEUE_IS_FULL for error in told):
                return RateLimited(
                    f"{self.provider}:{self.model}: batch {batch.id} was not begun: {told[0].message}",
                    provider=self.provider,
                    model=self.model,
                    code=_QUEUE_IS_FULL,
                    retriable=True,
                    retry_after=_SECONDS_FOR_A_PLACE,
                )
            words = "; ".join(f"{error.code}: {error.message}" for error in told) or "it does not say why"
            return self._error(f"batch {batch.id} was refused: {words}", told[0].code if told else None, "no")
        if batch.status == "completed":
            return self._failed(batch.id, None, "it is completed, and has neither an answer nor an error")
        return self._failed(batch.id, f"batch_{batch.status}", f"it has {batch.status}")

    def _failed(self, batch_id: str, code: str | None, words: str) -> ProviderError:
        billed: Billed = "no" if code in _NOT_BEGUN else "possible"
        told = f"the request in batch {batch_id} failed ({code}): {words}"
        return self._error(told, code, billed, retriable=code == "batch_expired")

    def _error(
        self, told: str, code: str | None, billed: Billed, *, retriable: bool = False
    ) -> ProviderError:
        return ProviderError(
            f"{self.provider}:{self.model}: {told}",
            provider=self.provider,
            model=self.model,
            code=code,
            billed=billed,
            retriable=retriable,
        )
