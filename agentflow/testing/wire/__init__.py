"""The wire formats of the model APIs, from the server's side: written apart from the providers, which they test."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol, TypeAlias

from agentflow.models.origin import read_arguments
from agentflow.models.response import ModelRequest, ModelResponse

Json: TypeAlias = dict[str, Any]
Event: TypeAlias = tuple[str | None, Json]
"""The name of a server-sent event (None: none is sent) and its data."""

CHUNK = 8


class BadRequest(Exception):
    """What the real API would answer with status 400."""


class Wire(Protocol):
    """One API: how its requests are read, and how an answer and an error are written."""

    def request_of(self, body: Json) -> ModelRequest: ...

    def answer(self, response: ModelResponse, body: Json, *, number: int) -> Json: ...

    def events(self, answer: Json) -> list[Event]: ...

    def error(self, status: int, message: str, code: str | None) -> Json: ...

    def error_event(self, message: str, code: str | None) -> Event: ...


def seal(text: str) -> str:
    """The signature of a thought: it comes back unchanged, or the request is refused."""
    return "sealed_" + hashlib.sha256(text.encode()).hexdigest()


def pieces(text: str) -> list[str]:
    return [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]


def arguments_of(text: str) -> Json:
    return read_arguments(text) or {}
