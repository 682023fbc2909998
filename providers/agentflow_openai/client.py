"""The SDK's client for both APIs, and what its exceptions mean."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agentflow.errors import ConfigurationError, ProviderError, Refused
from agentflow.providers import (
    Failure,
    exception_failure,
    imported,
    shared_client,
    status_failure,
    stream_failure,
)

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

READ_TIMEOUT_SECONDS = 600.0
CONNECT_TIMEOUT_SECONDS = 10.0

# What the SDK would import at the first call, and hold up the event loop.
_LOADED_LATE = (
    "openai.resources.responses.responses",
    "openai.resources.chat.chat",
    "openai.resources.chat.completions.completions",
)

# Codes of errors inside a 200 answer that asking again will not mend.
_NOT_RETRIABLE_CODES = re.compile(
    r"^(invalid|image|unsupported|empty_image|data_residency|model_not_found|insufficient|context_length)"
)

_REFUSING = frozenset({400, 403, 404, 405, 422, 501})
_UNKNOWN_PATH = frozenset({404, 405, 501})
_REFUSING_LIST = frozenset({400, 401, 403, 404, 405, 422, 501})


class Account:
    """Which server and whose key, and the client for them: the running loop's, made on first use."""

    def __init__(
        self, ref: str, *, base_url: str | None, api_key: str | None, client: AsyncOpenAI | None
    ) -> None:
        self._ref = ref
        self._base_url = base_url
        self._api_key = api_key
        self._own_client = client

    @property
    def is_gateway(self) -> bool:
        """Whether it is another server than OpenAI's."""
        if self._own_client is not None:
            return "openai" not in (self._own_client.base_url.host or "")
        base_url = self._base_url or os.environ.get("OPENAI_BASE_URL")
        return bool(base_url) and "api.openai.com" not in str(base_url)

    @contextmanager
    def not_refusing(self, *fields: str) -> Iterator[None]:
        """Raise `ConfigurationError` for an answer of the server that refuses one of these fields of the request."""
        try:
            yield
        except Exception as error:
            if not _refuses(error, fields):
                raise
            raise ConfigurationError(
                f"{self._ref} refuses {', '.join(fields)}, without which an answer that is lost cannot be found again "
                f'({error}): billing="recover" and "strict" cannot hold at {self._where}; use "at_least_once" there'
            ) from error

    @contextmanager
    def taking(self, setting: str, *, refused_by: Sequence[str]) -> Iterator[None]:
        """Raise `ConfigurationError` for an answer of the server that refuses what the setting is sent as."""
        try:
            yield
        except Exception as error:
            if not _refuses(error, refused_by):
                raise
            raise ConfigurationError(f"{self._ref} refuses {setting} at {self._where}: {error}") from error

    @contextmanager
    def knowing_batches(self) -> Iterator[None]:
        """Raise `ConfigurationError` for an answer of the server that it has no such path."""
        try:
            yield
        except Exception as error:
            if _status(error) not in _UNKNOWN_PATH:
                raise
            raise ConfigurationError(
                f"{self._ref}: there is no batch API at {self._where} ({error}), so that "
                'latency="batch" cannot hold there'
            ) from error

    @contextmanager
    def not_refusing_list(self, of: str = "completions that it has stored") -> Iterator[None]:
        """Raise `ConfigurationError` for an answer of the server that it does not list what it has."""
        try:
            yield
        except Exception as error:
            if _status(error) not in _REFUSING_LIST:
                raise
            raise ConfigurationError(
                f"{self._ref} does not list the {of} ({error}): a lost answer cannot be "
                f'found again at {self._where}, so billing="recover" cannot hold there; use "strict" or "at_least_once"'
            ) from error

    @property
    def _where(self) -> str:
        if self._own_client is not None:
            return str(self._own_client.base_url)
        return self._base_url or os.environ.get("OPENAI_BASE_URL") or "api.openai.com"

    async def client(self) -> AsyncOpenAI:
        """Raises `ConfigurationError` when there is no key."""
        if self._own_client is not None:
            return self._own_client.with_options(max_retries=0)
        api_key = self._api_key or os.environ.get("OPENAI_API_KEY")
        if not api_key:
            raise ConfigurationError(
                f"no key for {self._ref}: set OPENAI_API_KEY, or pass api_key= (any text, for a server that "
                "asks for none)"
            )
        await imported("openai", *_LOADED_LATE)
        base_url = self._base_url or os.environ.get("OPENAI_BASE_URL")
        return shared_client(
            ("openai", base_url, api_key), self._new_client, close=lambda client: client.close()
        )

    def _new_client(self) -> AsyncOpenAI:
        from httpx2 import Timeout
        from openai import AsyncOpenAI

        return AsyncOpenAI(
            api_key=self._api_key,
            base_url=self._base_url,
            max_retries=0,
            timeout=Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
        )


def _status(error: BaseException) -> int | None:
    from openai import APIStatusError

    return error.status_code if isinstance(error, APIStatusError) else None


def _refuses(error: BaseException, fields: Sequence[str]) -> bool:
    """Whether the server refuses the request for one of these fields, as its words or its `param` say."""
    if _status(error) not in _REFUSING:
        return False
    named = f"{getattr(error, 'param', None) or ''} {error}".lower()
    return any(re.search(rf"\b{field}\b", named) for field in fields)


def classify(error: BaseException, *, provider: str, model: str) -> Failure:
    """What an exception of the SDK means."""
    if not type(error).__module__.startswith("openai"):
        return exception_failure(error, provider=provider, model=model)
    from openai import (
        APIConnectionError,
        APIError,
        APIStatusError,
        ContentFilterFinishReasonError,
        LengthFinishReasonError,
    )

    if isinstance(error, LengthFinishReasonError | ContentFilterFinishReasonError):
        # `parse` of a wrapped call: an answer has come, and is not one that can be parsed.
        kind = Refused if isinstance(error, ContentFilterFinishReasonError) else ProviderError
        told = f"{provider}:{model} gave no answer that can be parsed: {error}"
        return Failure(kind(told, provider=provider, model=model, billed="yes"))
    if isinstance(error, APIStatusError) and error.status_code >= 400:
        return status_failure(
            error.status_code,
            _words(error),
            provider=provider,
            model=model,
            code=error.code or error.type,
            headers=error.response.headers,
        )
    if isinstance(error, APIError) and not isinstance(error, APIConnectionError) and error.__cause__ is None:
        return answer_failure(error.message, error.code or error.type, provider=provider, model=model)
    return exception_failure(error, provider=provider, model=model)


def _words(error: APIError) -> str:
    """What the server says; gateways and proxies say it in other forms than OpenAI."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    said = said or error.body or error.message
    return said if isinstance(said, str) else json.dumps(said)


def answer_failure(message: str, code: str | None, *, provider: str, model: str) -> Failure:
    """The failure that an error inside a 200 answer is."""
    retriable = _NOT_RETRIABLE_CODES.match(code or "") is None
    return stream_failure(message, provider=provider, model=model, code=code, retriable=retriable)
