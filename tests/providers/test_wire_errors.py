"""What the APIs answer when they do not: error bodies as they are sent, and what each means for the bill."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from agentflow_anthropic import Anthropic
from agentflow_openai import OpenAIChat, OpenAIResponses

from agentflow.errors import ContextTooLong, ProviderError, RateLimited, Refused
from agentflow.models.clients import held_clients
from agentflow.providers import Failure, Model, ModelRequest
from tests.providers.raw_server import FRAMINGS, JSON_TYPE, Json, Raw, RawServer, raw_server

APIS = ("openai", "openai-chat", "anthropic")


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with raw_server() as served, held_clients():
        yield served


def model_at(server: RawServer, api: str) -> Model:
    match api:
        case "openai":
            return OpenAIResponses("gpt-5-mini", base_url=f"{server.url}/v1", api_key="none")
        case "openai-chat":
            return OpenAIChat("gpt-5-mini", base_url=f"{server.url}/v1", api_key="none")
        case _:
            return Anthropic("claude-opus-4-6", base_url=server.url, api_key="none")


async def failure_of(server: RawServer, api: str, answer: Raw, *, stream: bool = False) -> Failure:
    model = model_at(server, api)
    server.add(answer)
    server.sent.clear()
    request = ModelRequest(model="any:model", messages=["Hello"])
    try:
        if stream:
            _ = [event async for event in model.stream(request)]
        else:
            await model.request(request)
    except Exception as error:
        assert len(server.sent) == 1, "an SDK asked again by itself"
        return model.classify(error)
    raise AssertionError("the call was expected to fail")


def openai_error(status: int, message: str, type: str, code: Any = None, **headers: str) -> Raw:
    told = {"error": {"message": message, "type": type, "param": None, "code": code}}
    return Raw(json.dumps(told).encode(), status, {**JSON_TYPE, **_dashed(headers)})


def anthropic_error(status: int, message: str, type: str, **headers: str) -> Raw:
    told = {"type": "error", "error": {"type": type, "message": message}, "request_id": "req_1"}
    return Raw(json.dumps(told).encode(), status, {**JSON_TYPE, **_dashed(headers)})


def _dashed(headers: dict[str, str]) -> Json:
    return {name.replace("_", "-"): value for name, value in headers.items()}


BAD = "invalid_request_error"
OPENAI: list[tuple[Raw, type[ProviderError], str, bool]] = [
    (
        openai_error(400, "Unsupported parameter: 'x'", BAD, "unsupported_parameter"),
        ProviderError,
        "no",
        False,
    ),
    (openai_error(401, "Incorrect API key provided", BAD, "invalid_api_key"), ProviderError, "no", False),
    (openai_error(403, "Country not supported", "request_forbidden"), ProviderError, "no", False),
    (openai_error(404, "The model does not exist", BAD, "model_not_found"), ProviderError, "no", False),
    (openai_error(408, "Timed out", "server_error"), ProviderError, "possible", True),
    (openai_error(409, "Locked", "conflict"), ProviderError, "no", True),
    (openai_error(413, "Too large", BAD), ContextTooLong, "no", False),
    (openai_error(422, "Unprocessable", BAD), ProviderError, "no", False),
    (
        openai_error(429, "Rate limit reached for gpt-5", "tokens", "rate_limit_exceeded"),
        RateLimited,
        "no",
        True,
    ),
    (
        openai_error(429, "Request too large; reduce the length of the messages", "tokens"),
        RateLimited,
        "no",
        True,
    ),
    (
        openai_error(429, "You exceeded your current quota", "insufficient_quota", "insufficient_quota"),
        RateLimited,
        "no",
        False,
    ),
    (
        openai_error(429, "Your account is not active", "billing_not_active", "billing_not_active"),
        RateLimited,
        "no",
        False,
    ),
    (openai_error(500, "The server had an error", "server_error"), ProviderError, "possible", True),
    (
        openai_error(503, "Overloaded", "service_unavailable_error", "server_is_overloaded"),
        ProviderError,
        "possible",
        True,
    ),
    (openai_error(503, "Slow down", "server_error", x_should_retry="true"), ProviderError, "no", True),
    (openai_error(500, "Oh", "server_error", x_should_retry="false"), ProviderError, "possible", False),
    (Raw(b"<html>Bad gateway</html>", 502, {"content-type": "text/html"}), ProviderError, "possible", True),
    (Raw(b"", 504), ProviderError, "possible", True),
    (openai_error(400, "You ran out", BAD, "context_length_exceeded"), ContextTooLong, "no", False),
    (
        openai_error(400, "This model's maximum context length is 8192 tokens. However, you", BAD),
        ContextTooLong,
        "no",
        False,
    ),
    (
        openai_error(400, "Your input exceeds the context window of this model. Please", BAD),
        ContextTooLong,
        "no",
        False,
    ),
    (
        openai_error(
            400, "Input tokens exceed the configured limit. Please reduce the length of the messages.", BAD
        ),
        ContextTooLong,
        "no",
        False,
    ),
    (
        openai_error(400, "request exceeds the available context size", "exceed_context_size_error", 400),
        ContextTooLong,
        "no",
        False,
    ),
    (openai_error(400, "Your prompt was flagged", BAD, "invalid_prompt"), Refused, "no", False),
    (
        openai_error(400, "The response was filtered", "", "content_filter"),
        Refused,
        "no",
        False,
    ),
    (openai_error(403, "Not this", BAD, "cyber_policy"), Refused, "no", False),
]
ANTHROPIC: list[tuple[Raw, type[ProviderError], str, bool]] = [
    (anthropic_error(400, "max_tokens: Field required", BAD), ProviderError, "no", False),
    (anthropic_error(401, "invalid x-api-key", "authentication_error"), ProviderError, "no", False),
    (anthropic_error(402, "Pay first", "billing_error"), ProviderError, "no", False),
    (anthropic_error(403, "Not yours", "permission_error"), ProviderError, "no", False),
    (anthropic_error(404, "model: claude-9", "not_found_error"), ProviderError, "no", False),
    (anthropic_error(408, "Timed out", "timeout_error"), ProviderError, "possible", True),
    (anthropic_error(409, "Conflict", "conflict_error"), ProviderError, "no", True),
    (
        anthropic_error(413, "Request exceeds the maximum size", "request_too_large"),
        ContextTooLong,
        "no",
        False,
    ),
    (anthropic_error(422, "Unprocessable", BAD), ProviderError, "no", False),
    (
        anthropic_error(429, "Over your rate limit", "rate_limit_error", x_should_retry="true"),
        RateLimited,
        "no",
        True,
    ),
    (anthropic_error(500, "Internal server error", "api_error"), ProviderError, "possible", True),
    (
        anthropic_error(500, "Internal server error", "api_error", x_should_retry="false"),
        ProviderError,
        "possible",
        False,
    ),
    (anthropic_error(504, "Timed out", "timeout_error"), ProviderError, "possible", True),
    (anthropic_error(529, "Overloaded", "overloaded_error"), ProviderError, "possible", True),
    (
        anthropic_error(529, "Overloaded", "overloaded_error", x_should_retry="true"),
        ProviderError,
        "no",
        True,
    ),
    (
        anthropic_error(400, "prompt is too long: 210000 tokens > 200000 maximum", BAD),
        ContextTooLong,
        "no",
        False,
    ),
    (
        anthropic_error(400, "input length and `max_tokens` exceed context limit: 1 + 2 > 2, decrease", BAD),
        ContextTooLong,
        "no",
        False,
    ),
    (
        anthropic_error(400, "Input is too long for requested model.", BAD),
        ContextTooLong,
        "no",
        False,
    ),
    (anthropic_error(400, "Output blocked by content filtering policy", BAD), Refused, "no", False),
    (anthropic_error(400, "Your credit balance is too low", BAD), ProviderError, "no", False),
    (Raw(b"upstream connect error", 503, {"content-type": "text/plain"}), ProviderError, "possible", True),
]


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("stream", [False, True], ids=["request", "stream"])
async def test_an_error_says_what_it_means(api: str, stream: bool, server: RawServer) -> None:
    for answer, kind, billed, retriable in ANTHROPIC if api == "anthropic" else OPENAI:
        failure = await failure_of(server, api, answer, stream=stream)

        case = f"{answer.status} {answer.body.decode()}: {failure.error!r}"
        assert type(failure.error) is kind, case
        assert (failure.billed, failure.retriable) == (billed, retriable), case
        assert (failure.error.status, failure.retry_after) == (answer.status, None), case
        if answer.headers["content-type"] == "application/json" and answer.body:
            assert json.loads(answer.body)["error"]["message"] in str(failure.error), case


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "body", [b"<h1>No such model here</h1>", b'{"detail": "No such model here"}', b'"No such model here"']
)
async def test_what_a_gateway_says_in_its_own_form_is_told(api: str, body: bytes, server: RawServer) -> None:
    failure = await failure_of(server, api, Raw(body, 404))

    assert "answered 404" in str(failure.error)
    assert "No such model here" in str(failure.error)


def in_a_minute() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7),
        ({"retry_after": "0.5"}, 0.5),
        ({"retry_after_ms": "1500", "retry_after": "2"}, 1.5),
        ({"retry_after": "0"}, 0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "-1"}, None),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({}, None),
    ],
)
async def test_the_wait_that_is_wished_for_is_read(
    api: str, headers: dict[str, str], seconds: float | None, server: RawServer
) -> None:
    error = anthropic_error if api == "anthropic" else openai_error
    failure = await failure_of(server, api, error(429, "Slow down", "rate_limit_error", **headers))

    assert failure.retry_after == seconds
    assert (type(failure.error), failure.billed) == (RateLimited, "no")


async def test_a_wait_until_a_date_is_the_time_to_then(server: RawServer) -> None:
    failure = await failure_of(
        server, "anthropic", anthropic_error(529, "Busy", "overloaded_error", retry_after=in_a_minute())
    )

    assert failure.retry_after == pytest.approx(60, abs=5)


BEGUN = {
    "type": "message_start",
    "message": {"id": "m", "type": "message", "role": "assistant", "content": [], "usage": {}},
}


@pytest.mark.parametrize(
    ("type", "message", "kind", "retriable"),
    [
        ("overloaded_error", "Overloaded", ProviderError, True),
        ("api_error", "Internal server error", ProviderError, True),
        ("timeout_error", "Timed out", ProviderError, True),
        ("rate_limit_error", "Slow down", RateLimited, True),
        ("billing_error", "Pay first", ProviderError, False),
        (BAD, "prompt is too long: 3 tokens > 2 maximum", ContextTooLong, False),
        (BAD, "Output blocked by content filtering policy", Refused, False),
        (BAD, "tools.0: no", ProviderError, False),
        ("permission_error", "Not yours", ProviderError, False),
        ("an_error_to_come", "Oh", ProviderError, True),
    ],
)
@pytest.mark.parametrize("way", ["after a while", "at once", "by another name", "whole"])
async def test_an_error_in_a_200_of_anthropics_is_in_doubt(
    type: str, message: str, kind: type[ProviderError], retriable: bool, way: str, server: RawServer
) -> None:
    error = {"type": "error", "error": {"type": type, "message": message, "details": None}}
    events = [BEGUN, error] if way == "after a while" else [error]
    answer = FRAMINGS["CRLF in pieces of 7"].stream(events, named=True, done=False)
    if way == "by another name":
        answer = replace(answer, body=answer.body.replace(b"event: error", b"event: message"))
    failure = await failure_of(
        server, "anthropic", Raw(json.dumps(error).encode()) if way == "whole" else answer
    )

    assert failure.error.__class__ is kind
    assert (failure.billed, failure.retriable, failure.error.code) == ("possible", retriable, type)
    assert message in str(failure.error)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("content", [b"", b"[]", b"not JSON", b'"text"', b'{"detail": "x"}'])
async def test_a_200_that_is_no_answer_is_in_doubt(api: str, content: bytes, server: RawServer) -> None:
    failure = await failure_of(server, api, Raw(content))

    assert (failure.billed, failure.retriable) == ("possible", True)


@pytest.mark.parametrize(
    "error",
    [{"error": {"type": BAD, "code": "context_length_exceeded", "message": "Your input is too much"}}],
)
async def test_a_stream_of_responses_that_begins_with_a_nested_error_tells_it(
    error: Json, server: RawServer
) -> None:
    answer = FRAMINGS["whole"].stream([{"type": "error", **error}], named=True, done=False)
    failure = await failure_of(server, "openai", answer, stream=True)

    assert type(failure.error) is ContextTooLong
    assert (failure.billed, failure.retriable) == ("possible", False)
