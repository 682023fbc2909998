"""Every provider of ours holds the contract, and so does the one the README tells people to write."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agentflow_anthropic import Anthropic
from agentflow_openai import OpenAIChat, OpenAIResponses

from agentflow.models.clients import held_clients
from agentflow.providers import Model, ModelRequest, RawAnswer
from agentflow.testing.contracts import ProviderUnderTest, provider_contract
from agentflow.testing.provider_server import HttpError, fake_provider

README = Path(__file__).parents[2] / "providers" / "README.md"
NAMES = list(provider_contract(lambda: asynccontextmanager(_nothing)()))


async def _nothing() -> AsyncIterator[ProviderUnderTest]:
    raise NotImplementedError
    yield


def _openai(base_url: str) -> Model:
    return OpenAIResponses("gpt-5-mini", base_url=f"{base_url}/v1", api_key="none")


def _chat(base_url: str) -> Model:
    return OpenAIChat("gpt-4o", base_url=f"{base_url}/v1", api_key="none")


def _anthropic(base_url: str) -> Model:
    return Anthropic("claude-sonnet-4-5", base_url=base_url, api_key="none")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [_openai, _chat, _anthropic])
async def test_our_providers_hold_the_contract(make: Any, name: str) -> None:
    @asynccontextmanager
    async def provider() -> AsyncIterator[ProviderUnderTest]:
        async with fake_provider() as server, held_clients():
            yield ProviderUnderTest(
                model=make(server.base_url),
                answers=server.add,
                fails=lambda status: server.add(HttpError(status)),
                requests=lambda: len(server.requests),
            )

    await provider_contract(provider)[name]()


@pytest.mark.parametrize("name", NAMES)
async def test_the_provider_in_the_readme_holds_the_contract(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def provider() -> AsyncIterator[ProviderUnderTest]:
        api = AcmeApi()
        server = await asyncio.start_server(api.converse, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("ACME_BASE_URL", f"http://127.0.0.1:{port}")
        async with held_clients():
            yield ProviderUnderTest(
                model=_provider_of_the_readme()("oracle"),
                answers=lambda *replies: api.replies.extend(replies),
                fails=api.replies.append,
                requests=lambda: len(api.asked),
            )
        server.close()

    await provider_contract(provider)[name]()


async def test_a_provider_that_repeats_requests_is_found_out() -> None:
    class Repeating(OpenAIChat):
        async def request(self, request: ModelRequest) -> RawAnswer:
            try:
                return await super().request(request)
            except Exception:
                return await super().request(request)

    @asynccontextmanager
    async def provider() -> AsyncIterator[ProviderUnderTest]:
        async with fake_provider() as server, held_clients():
            yield ProviderUnderTest(
                model=Repeating("gpt-4o", base_url=f"{server.base_url}/v1", api_key="none"),
                answers=server.add,
                fails=lambda status: server.add(HttpError(status), HttpError(status)),
                requests=lambda: len(server.requests),
            )

    with pytest.raises(AssertionError, match="repeated"):
        await provider_contract(provider)["a_server_error_is_in_doubt_and_asked_once"]()


def test_the_provider_in_the_readme_has_forty_lines_or_few_more() -> None:
    code = _code_of_the_readme()
    lines = [line for line in code.partition("class Acme")[2].splitlines() if line.strip()]
    assert len(lines) <= 40


def _code_of_the_readme() -> str:
    (code,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
        if "class Acme" in block
    ]
    return str(code)


def _provider_of_the_readme() -> Any:
    namespace: dict[str, Any] = {}
    exec(_code_of_the_readme(), namespace)
    return namespace["Acme"]


class AcmeApi:
    """The API that the README's provider speaks to: a real server of one route."""

    def __init__(self) -> None:
        self.replies: list[str | int] = []
        self.asked: list[dict[str, Any]] = []

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
                (length,) = re.findall(r"content-length: (\d+)", head)
                self.asked.append(json.loads(await reader.readexactly(int(length))))
                status, body = self._respond()
                content = json.dumps(body).encode()
                writer.write(
                    f"HTTP/1.1 {status} -\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content
                )
                await writer.drain()
        except asyncio.IncompleteReadError:
            writer.close()

    def _respond(self) -> tuple[int, dict[str, Any]]:
        reply = self.replies.pop(0)
        if isinstance(reply, int):
            return reply, {"error": "told to fail"}
        return 200, {"id": f"acme-{len(self.asked)}", "answer": reply, "tokens": [11, len(reply)]}
