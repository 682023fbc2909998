"""Recorded provider traffic as a test's billing meter: what is played is what would have been paid.

Cassettes are vcrpy's, by pytest-recording. They hold the providers' real hosts and no secret, whether the
answers came from the real APIs or, for want of a key, from the fake provider; the file's first line says
which.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

REAL_HOSTS = {"messages": "api.anthropic.com"}
OTHER_HOST = "api.openai.com"

_REQUEST_HEADERS_KEPT = ("accept", "content-type", "anthropic-version", "anthropic-beta")
_RESPONSE_HEADERS_KEPT = ("content-type", "retry-after", "retry-after-ms", "x-should-retry")
_SECRETS = re.compile(rb"\b(sk-[A-Za-z0-9_-]{8,}|org-[A-Za-z0-9]{8,}|proj_[A-Za-z0-9]{8,})")
_SCRUBBED = b"SCRUBBED"


class Request(Protocol):
    """What is asked here of a vcrpy request."""

    method: str
    uri: str
    headers: dict[str, str]
    body: bytes | None


class Cassette(Protocol):
    """What is asked here of a vcrpy cassette."""

    dirty: bool
    play_counts: dict[int, int]

    @property
    def play_count(self) -> int: ...

    @property
    def requests(self) -> list[Request]: ...

    def __len__(self) -> int: ...


def scrubbed_vcr_config() -> dict[str, Any]:
    """What pytest-recording's `vcr_config` fixture is to return.

    A request is matched by its JSON body too, and answered once: asking a second time for the same is an
    error, as it would be money. Headers are kept by name, keys are scrubbed from bodies, and a loopback
    address (the fake provider) is written as the host that a real client would have asked.
    """
    return {
        "match_on": ["method", "scheme", "host", "path", "query", "body"],
        "allow_playback_repeats": False,
        "decode_compressed_response": True,
        "ignore_hosts": ["testserver", "test"],  # in-process apps are not the network
        "before_record_request": _scrub_request,
        "before_record_response": _scrub_response,
    }


@dataclass(frozen=True)
class Meter:
    """How often the provider of a cassette was asked, and how often it should have been."""

    cassette: Cassette

    @property
    def paid(self) -> int:
        """Answers taken from the cassette so far; while recording, answers recorded."""
        return self.cassette.play_count or (len(self.cassette) if self.cassette.dirty else 0)

    @property
    def recorded(self) -> int:
        """Answers the cassette holds."""
        return len(self.cassette)

    def check(self) -> None:
        """Raise `AssertionError` unless every recorded answer was paid for exactly once."""
        if self.paid != self.recorded:
            unplayed = [
                f"{request.method} {request.uri}"
                for position, request in enumerate(self.cassette.requests)
                if not self.cassette.play_counts[position]
            ]
            raise AssertionError(
                f"{self.paid} of {self.recorded} recorded answers were asked for; not: {unplayed}"
            )


def meter(cassette: Cassette) -> Meter:
    """The cassette (pytest-recording's `vcr` fixture) as a billing meter."""
    return Meter(cassette)


def write_header(path: Path, source: str) -> None:
    """Say in the cassette's first line where its answers came from. Does nothing for a file that is not
    there.
    """
    if path.exists():
        text = path.read_text(encoding="utf-8")
        body = text if not text.startswith("#") else text.partition("\n")[2]
        path.write_text(f"# Answers of {source}. Secrets are scrubbed.\n{body}", encoding="utf-8")


def _scrub_request(request: Request) -> Request:
    for name in list(request.headers):
        if name.lower() not in _REQUEST_HEADERS_KEPT:
            del request.headers[name]
    if request.body:
        request.body = _SECRETS.sub(_SCRUBBED, request.body)
    request.uri = _with_real_host(request.uri)
    return request


def _with_real_host(uri: str) -> str:
    url = urlsplit(uri)
    if url.hostname not in ("127.0.0.1", "localhost"):
        return uri
    path = url.path if url.path.startswith("/v1/") else f"/v1{url.path}"
    host = REAL_HOSTS.get(path.split("/")[2], OTHER_HOST)
    return urlunsplit(("https", host, path, url.query, ""))


def _scrub_response(response: dict[str, Any]) -> dict[str, Any]:
    kept = {
        name: values for name, values in response["headers"].items() if name.lower() in _RESPONSE_HEADERS_KEPT
    }
    body = {**response["body"], "string": _SECRETS.sub(_SCRUBBED, response["body"]["string"])}
    return {**response, "headers": kept, "body": body}
