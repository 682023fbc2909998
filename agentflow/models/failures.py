"""What a failed HTTP call means for the bill, by the rule of thumb both big APIs obey. For provider
authors.

Not billed: what was refused before any work (connect, DNS, TLS, 400-404, 409, 413, 422, 429, and a 5xx that
says `x-should-retry: true`). In doubt: everything else. A fault of the test set-up (a cassette that does
not match, a blocked network) is neither: it is fatal, and never worth a second try.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from agentflow.errors import (
    Billed,
    ConfigurationError,
    ContextTooLong,
    InvalidInput,
    ProviderError,
    RateLimited,
    Refused,
)
from agentflow.models.protocol import Failure

_NOT_BILLED_STATUS = frozenset({400, 401, 402, 403, 404, 409, 413, 422, 429})
_RETRIABLE_STATUS = frozenset({408, 409, 429})
# What the APIs and gateways say, in their codes or in words.
_TOO_LONG = (
    "context_length_exceeded",
    "context length exceeded",
    "maximum context length",
    "exceeds the context window",
    "prompt is too long",
    "exceed context limit",
    "request_too_large",
    "input is too long",
    "maximum prompt length",
    "exceeds the available context size",
    "exceeds the maximum number of tokens",
    "exceeded model token limit",
    "reduce the length of the messages",
)
_REFUSED = (
    "content_policy_violation",
    "content_filter",
    "content filtering policy",
    "moderation_blocked",
    "invalid_prompt",
    "cyber_policy",
    "bio_policy",
    "misalignment_policy",
)
_OUT_OF_MONEY = (
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "billing_error",
    "credit balance is too low",
)
_LIMITED = ("rate_limit_exceeded", "rate_limit_error")
# Exceptions of httpx and httpx2 by name, so that this module need not import either.
_BEFORE_THE_REQUEST_LEFT = frozenset(
    {
        "ConnectError",
        "ConnectTimeout",
        "PoolTimeout",
        "UnsupportedProtocol",
        "LocalProtocolError",
        "InvalidURL",
        "ProxyError",
    }
)


_TEXT_CAP = 2000
"""Characters of an API's words that an error repeats: a proxy answers with whole pages."""


def status_failure(
    status: int,
    message: str,
    *,
    provider: str,
    model: str,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Failure:
    """The failure that an HTTP error status is; `code` is the API's own name for it."""
    headers = headers or {}
    should_retry = headers.get("x-should-retry")
    billed: Billed = (
        "no" if status in _NOT_BILLED_STATUS or (status >= 500 and should_retry == "true") else "possible"
    )
    retriable = status in _RETRIABLE_STATUS or status >= 500
    said = message if len(message) <= _TEXT_CAP else f"{message[:_TEXT_CAP]}..."
    if should_retry in ("true", "false"):
        retriable = should_retry == "true"
    if _says(_OUT_OF_MONEY, code, message):
        retriable = False
    kind: type[ProviderError] = ProviderError
    if status == 429:
        kind = RateLimited
    elif status == 413 or (status in (400, 422) and _says(_TOO_LONG, code, message)):
        kind = ContextTooLong
    elif status in (400, 403) and _says(_REFUSED, code, message):
        kind = Refused
    return Failure(
        kind(
            f"{provider}:{model} answered {status}{f' ({code})' if code else ''}: {said}",
            provider=provider,
            model=model,
            status=status,
            code=code,
            billed=billed,
            retriable=retriable,
            retry_after=retry_after_seconds(headers),
        )
    )


def exception_failure(error: BaseException, *, provider: str, model: str) -> Failure:
    """The failure that an exception without an HTTP status is: the connection, the set-up, or something
    unknown.
    """
    ref = f"{provider}:{model}"
    for cause in causes(error):
        if isinstance(cause, ProviderError):
            return Failure(cause)
        if _is_fault_of_the_set_up(cause):
            return Failure(ProviderError(f"{ref} was not asked: {cause}", provider=provider, model=model))
    for cause in causes(error):
        if type(cause).__name__ in _BEFORE_THE_REQUEST_LEFT:
            return Failure(
                ProviderError(
                    f"{ref} could not be reached: {_described(cause)}",
                    provider=provider,
                    model=model,
                    retriable=True,
                )
            )
    return Failure(
        ProviderError(
            f"{ref} gave no whole answer, and may have billed one: {_described(error)}",
            provider=provider,
            model=model,
            billed="possible",
            retriable=True,
        )
    )


def stream_failure(
    message: str, *, provider: str, model: str, code: str | None = None, retriable: bool = True
) -> Failure:
    """The failure that an error inside a 200 answer is: work was begun, so it may be billed.

    What a code says cannot succeed (no money, a refusal, too long a conversation) is not retriable, whatever
    `retriable` says.
    """
    kind: type[ProviderError] = ProviderError
    if code in _LIMITED:
        kind = RateLimited
    elif _says(_TOO_LONG, code, message):
        kind, retriable = ContextTooLong, False
    elif _says(_REFUSED, code, message):
        kind, retriable = Refused, False
    elif _says(_OUT_OF_MONEY, code, message):
        retriable = False
    return Failure(
        kind(
            f"{provider}:{model} broke off its answer{f' ({code})' if code else ''}: {message}",
            provider=provider,
            model=model,
            code=code,
            billed="possible",
            retriable=retriable,
        )
    )


def _says(what: Sequence[str], code: str | None, message: str) -> bool:
    words = f"{code or ''} {message}".lower()
    return any(word in words for word in what)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it came from: SDKs wrap what their transport raised."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """The provider's own wish, from `retry-after-ms` or `retry-after` (seconds or a date)."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    wish = headers.get("retry-after")
    seconds = _number(wish)
    if seconds is not None or not wish:
        return seconds
    try:
        at = parsedate_to_datetime(wish)
    except ValueError:
        return None
    return _number(str(max(0.0, (at.astimezone(UTC) - datetime.now(UTC)).total_seconds())))


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        return None
    return number if number is not None and 0 <= number < 86_400 * 365 else None


def _is_fault_of_the_set_up(error: BaseException) -> bool:
    of = type(error).__module__.partition(".")[0]
    # pytest-recording blocks the network with a plain RuntimeError.
    return (
        isinstance(error, ConfigurationError | InvalidInput)
        or of in ("vcr", "pytest_recording")
        or "Network is disabled" in str(error)
    )


def _described(error: BaseException) -> str:
    innermost = [*causes(error)][-1]
    return f"{type(error).__name__}: {error}" + (f" ({innermost!r})" if innermost is not error else "")
