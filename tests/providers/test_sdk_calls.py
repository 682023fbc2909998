"""A call of an official SDK as a memo: asked once, stored as JSON, and the SDK's own object again."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from pydantic import BaseModel

from agentflow.errors import ConfigurationError, Unserialisable
from agentflow.models.sdk_answers import decode_sdk_answer, encode_sdk_answer
from agentflow.models.sdk_calls import call_sdk, classify_sdk_error
from agentflow.testing.provider_server import FakeProvider, HttpError

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


class City(BaseModel):
    name: str


async def memoized(call: Any, **arguments: Any) -> tuple[Any, Any]:
    """The answer of the first run and of a replay."""
    answer = await call_sdk(call, arguments)
    return answer, decode_sdk_answer(json.loads(json.dumps(encode_sdk_answer(answer))), arguments)


async def test_responses_are_their_own_objects_again(server: FakeProvider) -> None:
    server.add("Good day")
    async with AsyncOpenAI() as client:
        first, again = await memoized(client.responses.create, model="gpt-5", input="Hello")
    assert type(again) is Response
    assert again == first
    assert again.output_text == "Good day"


async def test_chat_completions_are_their_own_objects_again(server: FakeProvider) -> None:
    server.add("Good day")
    async with AsyncOpenAI() as client:
        first, again = await memoized(client.chat.completions.create, model="gpt-4o", messages=HELLO)
    assert type(again) is ChatCompletion
    assert again == first
    assert again.choices[0].message.content == "Good day"


async def test_messages_are_their_own_objects_again(server: FakeProvider) -> None:
    server.add("Good day")
    async with AsyncAnthropic() as client:
        first, again = await memoized(
            client.messages.create, model="claude-opus-5", max_tokens=100, messages=HELLO
        )
    assert type(again) is Message
    assert again == first
    assert again.content[0].text == "Good day"


async def test_an_answer_parsed_into_a_type_is_parsed_again(server: FakeProvider) -> None:
    server.add({"name": "Paris"}, {"name": "Paris"})
    async with AsyncOpenAI() as client:
        first, again = await memoized(
            client.responses.parse, model="gpt-5", input="The capital?", text_format=City
        )
        chat, chat_again = await memoized(
            client.chat.completions.parse, model="gpt-4o", messages=HELLO, response_format=City
        )
    assert again.output_parsed == first.output_parsed == City(name="Paris")
    assert chat_again.choices[0].message.parsed == chat.choices[0].message.parsed == City(name="Paris")


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_the_sdks_own_retries_are_off(kind: str, server: FakeProvider) -> None:
    server.add(HttpError(500), "paid twice")
    client: Any = AsyncOpenAI(max_retries=5) if kind == "async" else OpenAI(max_retries=5)

    with pytest.raises(Exception, match="500") as raised:
        await call_sdk(client.responses.create, {"model": "gpt-5", "input": "Hello"})

    await client.close() if kind == "async" else client.close()
    assert len(server.requests) == 1
    failure = classify_sdk_error(raised.value, provider="openai", model="gpt-5")
    assert (failure.billed, failure.retriable, failure.error.status) == ("possible", True, 500)


async def test_a_stream_cannot_be_stored(server: FakeProvider) -> None:
    async with AsyncOpenAI() as client:
        with pytest.raises(ConfigurationError, match="stream"):
            await call_sdk(client.responses.create, {"model": "gpt-5", "input": "Hello", "stream": True})
    assert server.requests == []


async def test_an_unknown_sdk_gives_plain_json() -> None:
    async def ask(question: str) -> dict[str, Any]:
        return {"answer": question.upper(), "price": Decimal("1.5")}

    first, again = await memoized(ask, question="why")
    assert (first["answer"], again) == ("WHY", {"answer": "WHY", "price": "1.5"})
    with pytest.raises(Unserialisable, match="object"):
        encode_sdk_answer(object())
    assert classify_sdk_error(ValueError("x"), provider="acme", model="oracle").billed == "possible"
