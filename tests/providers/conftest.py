"""What the tests of the providers share: recorded traffic, a fake provider, and cassettes."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from agentflow_anthropic import Anthropic
from agentflow_openai import OpenAIChat, OpenAIResponses

from agentflow.models.clients import held_clients
from agentflow.providers import Model
from agentflow.testing.cassettes import scrubbed_vcr_config, write_header
from agentflow.testing.provider_server import FakeProvider, fake_provider
from tests.migrated import postgres_url, sqlite_url

__all__ = ["postgres_url", "sqlite_url"]

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"
CASSETTES = Path(__file__).parents[1] / "cassettes"

Json = dict[str, Any]


class Recording:
    """Recorded traffic, played to a model of ours through the official SDK's real client."""

    def __init__(self, name: str) -> None:
        self.api = name.split("/")[0]
        self.exchanges: list[Json] = json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))
        self.sent: list[Json] = []

    @asynccontextmanager
    async def model(self, name: str = "some-model", *, chunk: int | None = None) -> AsyncIterator[Any]:
        """The model; its requests land in `sent`. `chunk`: bytes at a time in which responses arrive."""
        answers = iter(self.exchanges)

        def answer(request: httpx2.Request) -> httpx2.Response:
            self.sent.append(json.loads(request.content) if request.content else {})
            recorded = next(answers)["response"]
            body = recorded["body"]
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            headers = recorded["headers"]
            if chunk is None:
                return httpx2.Response(recorded["status"], headers=headers, content=content)
            return httpx2.Response(recorded["status"], headers=headers, content=_in_chunks(content, chunk))

        async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
            yield _MODELS[self.api](name, http)


async def _in_chunks(content: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def _anthropic(name: str, http: httpx2.AsyncClient) -> Model:
    from anthropic import AsyncAnthropic

    return Anthropic(name, client=AsyncAnthropic(api_key="none", http_client=http))


def _openai(name: str, http: httpx2.AsyncClient) -> Any:
    from openai import AsyncOpenAI

    return AsyncOpenAI(api_key="none", http_client=http)


_MODELS: dict[str, Callable[[str, httpx2.AsyncClient], Model]] = {
    "anthropic": _anthropic,
    "openai_chat": lambda name, http: OpenAIChat(name, client=_openai(name, http)),
    "openai_responses": lambda name, http: OpenAIResponses(name, client=_openai(name, http)),
}


@pytest.fixture
def recording() -> Callable[[str], Recording]:
    """`recording("anthropic/thinking_stream")`."""
    if not RECORDINGS.is_dir():
        pytest.skip("the recordings are not beside this checkout")
    return Recording


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    """A fake provider, to which the SDKs' own environment variables lead."""
    async with fake_provider() as provider, held_clients():
        for name, value in provider.environment().items():
            monkeypatch.setenv(name, value)
        yield provider


# --- cassettes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vcr_cassette_dir() -> str:
    return str(CASSETTES)


@pytest.fixture
def vcr_config(record_mode: str, default_cassette_name: str) -> Iterator[Json]:
    yield scrubbed_vcr_config()
    if record_mode != "none":
        source = "the real APIs" if _have_keys() else "agentflow's fake provider, for want of a key"
        write_header(CASSETTES / f"{default_cassette_name}.yaml", source)


@pytest.fixture
async def apis(record_mode: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., None]]:
    """The providers of a cassette test, called with what the fake one is to reply when it is recorded."""
    async with fake_provider() as provider, held_clients():
        if record_mode == "none":
            for name in ("OPENAI", "ANTHROPIC"):
                monkeypatch.setenv(f"{name}_API_KEY", "none")
                monkeypatch.delenv(f"{name}_BASE_URL", raising=False)
        elif not _have_keys():
            for name, value in provider.environment().items():
                monkeypatch.setenv(name, value)
        yield provider.add


def _have_keys() -> bool:
    return bool(os.environ.get("OPENAI_API_KEY")) and os.environ["OPENAI_API_KEY"] != "sk-fake"
