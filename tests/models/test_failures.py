"""What a failure means, where no server can be made to fail that way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from agentflow.errors import ConfigurationError
from agentflow.models.failures import exception_failure, retry_after_seconds, status_failure


def wrapped(cause: BaseException) -> Exception:
    """As an SDK wraps what its transport raised."""
    error = RuntimeError("Connection error.")
    error.__cause__ = cause
    return error


def named(name: str, module: str = "httpx2") -> Exception:
    return type(name, (Exception,), {"__module__": module})("no")  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["ConnectError", "ConnectTimeout", "PoolTimeout"])
def test_what_never_left_is_not_billed(name: str) -> None:
    failure = exception_failure(wrapped(named(name)), provider="p", model="m")
    assert (failure.billed, failure.retriable) == ("no", True)


@pytest.mark.parametrize(
    "name", ["ReadTimeout", "ReadError", "WriteError", "RemoteProtocolError", "Whatever"]
)
def test_everything_else_is_in_doubt(name: str) -> None:
    failure = exception_failure(wrapped(named(name)), provider="p", model="m")
    assert (failure.billed, failure.retriable) == ("possible", True)


@pytest.mark.parametrize(
    "cause",
    [
        named("CannotOverwriteExistingCassetteException", "vcr.errors"),
        RuntimeError("Network is disabled"),
        ConfigurationError("no key"),
    ],
)
def test_a_fault_of_the_set_up_is_fatal_however_it_is_wrapped(cause: BaseException) -> None:
    failure = exception_failure(wrapped(wrapped(cause)), provider="p", model="m")
    assert (failure.billed, failure.retriable) == ("no", False)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
    ],
)
def test_the_providers_wish_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers) == seconds


def test_the_providers_wish_may_be_a_date() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    seconds = retry_after_seconds({"retry-after": at})
    assert seconds is not None
    assert 60 < seconds <= 90


def test_a_refusal_in_an_error_says_who_and_why() -> None:
    failure = status_failure(400, "No.", provider="openai", model="gpt", code="content_policy_violation")
    assert str(failure.error) == "openai:gpt answered 400 (content_policy_violation): No."


def test_a_date_too_far_away_is_no_wish() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(days=3650), usegmt=True)
    assert retry_after_seconds({"retry-after": at}) is None


def test_an_error_repeats_no_whole_page() -> None:
    failure = status_failure(502, "<html>" + "y" * 300_000, provider="p", model="m")
    assert "answered 502: <html>yyy" in str(failure.error)
    assert len(str(failure.error)) < 3000
