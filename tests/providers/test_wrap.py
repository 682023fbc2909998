"""`step.ai.wrap`: any call of the official SDKs is a step, paid once, and its answer the SDK's own object each time."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import Message
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from pydantic import BaseModel

from agentflow import App, Context, Step, ToolCall
from agentflow.errors import (
    ConfigurationError,
    ContextTooLong,
    ProviderError,
    RateLimited,
    RunFailed,
    Unserialisable,
)
from agentflow.models import registry
from agentflow.runs import RunStatus
from agentflow.testing import Cut, HttpError, ScriptedModel, block_models, crash_after, harness
from agentflow.testing.provider_server import FakeProvider
from tests.agents.support import steps_of

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
RESPONSES = {"model": "gpt-5-mini", "input": "Hello"}
CHAT = {"model": "gpt-4o-mini", "messages": HELLO}
MESSAGES = {"model": "claude-opus-4-7", "max_tokens": 100, "messages": HELLO}

Make = Callable[[], Any]


class City(BaseModel):
    name: str


class Wrapping:
    """An app with one function that wraps one call, sleeps an hour, and is replayed after it."""

    def __init__(self, call: Callable[..., Any], arguments: dict[str, Any], **config: Any) -> None:
        self.app = App("t")
        self.call = call
        self.arguments = arguments
        self.seen: list[Any] = []

        @self.app.function(**config)
        async def ask(ctx: Context[None], step: Step) -> str:
            try:
                answer: Any = await step.ai.wrap("ask", self.call, **self.arguments)
            except (ProviderError, Unserialisable) as error:
                answer = error
            self.seen.append(answer)
            await step.sleep("nap", "1h")
            return "done"

        self.function = ask

    async def run(self, url: str, *, advance: str = "2h") -> tuple[list[Any], Any, Any]:
        """What the function saw at the first run and on replay, the step, and the usage."""
        async with harness(self.app, database_url=url) as h:
            run = await h.start(self.function)
            await h.advance(advance)
            assert await run.result(10) == "done"
            step = (await steps_of(self.app, run.id))["ask"]
            return self.seen, step, await self.app.usage(run=run.id)


CALLS = [
    pytest.param(AsyncOpenAI, lambda c: c.responses.create, RESPONSES, Response, id="responses"),
    pytest.param(OpenAI, lambda c: c.responses.create, RESPONSES, Response, id="responses-sync"),
    pytest.param(AsyncOpenAI, lambda c: c.chat.completions.create, CHAT, ChatCompletion, id="chat"),
    pytest.param(AsyncAnthropic, lambda c: c.messages.create, MESSAGES, Message, id="messages"),
    pytest.param(Anthropic, lambda c: c.messages.create, MESSAGES, Message, id="messages-sync"),
]


@pytest.mark.parametrize(("make", "of", "arguments", "kind"), CALLS)
async def test_a_wrapped_call_is_made_once_and_is_the_sdks_object_on_replay_too(
    database_url: str, server: FakeProvider, make: Make, of: Any, arguments: dict[str, Any], kind: type
) -> None:
    server.add("Good day")
    client = make()
    (first, replayed), step, usage = await Wrapping(of(client), arguments).run(database_url)
    assert type(first) is type(replayed) is kind
    assert first == replayed
    assert "Good day" in first.to_json()
    assert server.generations == 1
    assert (step.kind, step.name, step.attempts) == ("infer", f"{_package(client)}:{arguments['model']}", 1)
    assert (usage.calls, usage.billed, usage.possibly_billed) == (1, 1, 0)
    assert usage.input_tokens > 0 < usage.output_tokens
    assert usage.cost is not None
    assert usage.cost > 0
    await _close(client)


PARSES = [
    pytest.param(
        AsyncOpenAI,
        lambda c: c.responses.parse,
        RESPONSES | {"text_format": City},
        lambda answer: answer.output_parsed,
        id="responses",
    ),
    pytest.param(
        AsyncOpenAI,
        lambda c: c.chat.completions.parse,
        CHAT | {"response_format": City},
        lambda answer: answer.choices[0].message.parsed,
        id="chat",
    ),
    pytest.param(
        AsyncAnthropic,
        lambda c: c.messages.parse,
        MESSAGES | {"output_format": City},
        lambda answer: answer.parsed_output,
        id="messages",
    ),
]


@pytest.mark.parametrize(("make", "of", "arguments", "parsed"), PARSES)
async def test_what_was_parsed_into_a_type_is_of_that_type_again(
    database_url: str, server: FakeProvider, make: Make, of: Any, arguments: dict[str, Any], parsed: Any
) -> None:
    server.add({"name": "Paris"})
    client = make()
    seen, _, _ = await Wrapping(of(client), arguments).run(database_url)
    assert [parsed(answer) for answer in seen] == [City(name="Paris")] * 2
    assert server.generations == 1
    await _close(client)


class City2(BaseModel):
    name: str
    people: int


@pytest.mark.parametrize(("make", "of", "arguments", "parsed"), PARSES)
async def test_an_answer_that_does_not_fit_its_type_after_a_deploy_is_a_replay_mismatch_that_heals(
    database_url: str, server: FakeProvider, make: Make, of: Any, arguments: dict[str, Any], parsed: Any
) -> None:
    server.add({"name": "Paris"})
    client = make()
    wrapping = Wrapping(of(client), arguments)
    async with harness(wrapping.app, database_url=database_url, strict_replay=False) as h:
        run = await h.start(wrapping.function)
        await h.idle()
        [key] = [name for name, value in arguments.items() if value is City]
        wrapping.arguments = arguments | {key: City2}
        await h.advance("1h")
        found = await wrapping.app.runs.get(run.id)
        assert "ReplayMismatch" in str(found.reason)
        assert "'ask'" in str(found.reason)
        assert "people" in str(found.reason)
        wrapping.arguments = arguments
        await h.advance("1h")
        assert await run.result(10) == "done"
    assert parsed(wrapping.seen[-1]) == City(name="Paris")
    assert server.generations == 1
    await _close(client)


async def test_an_answer_whose_class_is_gone_is_a_replay_mismatch(
    database_url: str, server: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("Good day")
    async with AsyncOpenAI() as client:
        wrapping = Wrapping(client.responses.create, RESPONSES)
        async with harness(wrapping.app, database_url=database_url) as h:
            run = await h.start(wrapping.function)
            await h.idle()
            with monkeypatch.context() as patch:
                patch.delattr("openai.types.responses.response.Response")
                await h.advance("1h")
                assert "cannot be built again" in str((await wrapping.app.runs.get(run.id)).reason)
            await h.advance("1h")
            assert await run.result(10) == "done"
    assert server.generations == 1


async def test_arguments_of_a_tool_made_from_a_model_are_that_model_again(
    database_url: str, server: FakeProvider
) -> None:
    server.add(ToolCall(name="City", args={"name": "Nice"}))
    async with AsyncOpenAI() as client:
        arguments = CHAT | {"tools": [pydantic_function_tool(City)]}
        seen, _, _ = await Wrapping(client.chat.completions.parse, arguments).run(database_url)
    parsed = [answer.choices[0].message.tool_calls[0].function.parsed_arguments for answer in seen]
    assert parsed == [City(name="Nice")] * 2


async def test_embeddings_come_back_number_for_number_and_are_accounted_for(database_url: str) -> None:
    asked: list[Any] = []
    vector = [0.1, -0.25, 1.0, 1e-9]

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(json.loads(request.content))
        if asked[-1]["encoding_format"] == "base64":
            import array

            shown: Any = base64.b64encode(array.array("f", vector).tobytes()).decode()
        else:
            shown = vector
        usage = {"prompt_tokens": 1000, "total_tokens": 1000}
        data = [{"object": "embedding", "index": 0, "embedding": shown}]
        return httpx2.Response(
            200,
            json={"object": "list", "model": "text-embedding-3-small", "data": data, "usage": usage},
            headers={"x-request-id": "req_1"},
        )

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    async with AsyncOpenAI(api_key="none", http_client=http) as client:
        arguments = {"model": "text-embedding-3-small", "input": "Hello", "encoding_format": "float"}
        (first, replayed), _, usage = await Wrapping(client.embeddings.create, arguments).run(database_url)
    assert type(first) is CreateEmbeddingResponse
    assert first.data[0].embedding == replayed.data[0].embedding == vector
    assert first._request_id == replayed._request_id == "req_1"
    assert len(asked) == 1
    assert (usage.input_tokens, usage.output_tokens) == (1000, 0)
    assert usage.cost is not None


async def test_a_list_keeps_the_type_of_its_items(database_url: str) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        one = {"id": "gpt-5", "object": "model", "created": 1, "owned_by": "openai"}
        return httpx2.Response(200, json={"object": "list", "data": [one]})

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    with OpenAI(api_key="none", http_client=http) as client:
        (first, replayed), step, usage = await Wrapping(client.models.list, {}).run(database_url)
    assert type(first) is type(replayed)
    assert type(replayed.data[0]).__name__ == "Model"
    assert replayed.data[0].id == "gpt-5"
    assert step.name == "openai:Models.list"
    assert (usage.calls, usage.cost) == (1, None)


@pytest.mark.parametrize(("make", "of", "arguments", "kind"), CALLS)
async def test_the_sdks_own_retries_are_off_and_retry_after_is_the_next_delay(
    database_url: str, server: FakeProvider, make: Make, of: Any, arguments: dict[str, Any], kind: type
) -> None:
    server.add(HttpError(429, retry_after=600), HttpError(500), "Good day")
    client = make()
    wrapping = Wrapping(of(client), arguments)
    async with harness(wrapping.app, database_url=database_url) as h:
        run = await h.start(wrapping.function)
        await h.advance("9m59s")
        assert (await run.status(), len(server.requests)) == (RunStatus.SLEEPING, 1)
        await h.advance("3h")
        assert await run.result(10) == "done"
        usage = await wrapping.app.usage(run=run.id)
    assert (len(server.requests), server.generations) == (3, 1)
    # The 429 is not billed, the 500 may be.
    assert (usage.calls, usage.billed, usage.possibly_billed) == (3, 1, 1)
    await _close(client)


async def test_the_errors_are_those_of_infer_and_come_back_on_replay(
    database_url: str, server: FakeProvider
) -> None:
    async with AsyncOpenAI() as client:
        for refused, kind in (
            (HttpError(429, retry_after=1), RateLimited),
            (HttpError(400, code="context_length_exceeded"), ContextTooLong),
            (HttpError(401), ProviderError),
        ):
            server.add(refused)
            wrapping = Wrapping(client.responses.create, RESPONSES, retries=0)
            (first, replayed), step, _ = await wrapping.run(database_url)
            assert type(first) is type(replayed) is kind
            assert first.provider == "openai"
            assert str(first) == str(replayed)
            assert step.status == "failed"
    assert server.generations == 0


async def test_errors_are_read_by_the_sdks_provider_also_where_a_model_stands_in(
    sqlite_url: str, server: FakeProvider
) -> None:
    server.add(HttpError(429, retry_after=1))
    async with AsyncOpenAI() as client:
        wrapping = Wrapping(client.responses.create, RESPONSES, retries=0)
        async with harness(wrapping.app, database_url=sqlite_url, model=ScriptedModel([])) as h:
            await h.start(wrapping.function)
            await h.idle()
    assert type(wrapping.seen[0]) is RateLimited


async def test_an_answer_that_cannot_be_parsed_is_paid_and_not_asked_for_again(
    database_url: str, server: FakeProvider
) -> None:
    server.add("no JSON at all", "never")
    async with AsyncOpenAI() as client:
        wrapping = Wrapping(client.responses.parse, RESPONSES | {"text_format": City})
        (first, _), _, usage = await wrapping.run(database_url)
    assert "asking again would not mend it" in str(first)
    assert (server.generations, usage.calls, usage.possibly_billed) == (1, 1, 1)


async def test_a_cut_answer_may_be_billed_and_is_asked_for_again(
    database_url: str, server: FakeProvider
) -> None:
    server.add(Cut("lost"), "Good day")
    async with AsyncOpenAI() as client:
        seen, _, usage = await Wrapping(client.responses.create, RESPONSES).run(database_url, advance="3h")
    assert seen[-1].output_text == "Good day"
    assert (usage.billed, usage.possibly_billed) == (1, 1)


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize(
    ("where", "generations", "possibly"),
    [("before_request", 1, 1), ("after_request", 2, 1)],
)
async def test_after_a_crash_between_call_and_commit_the_ledger_says_that_it_may_be_billed(
    database_url: str, server: FakeProvider, kind: str, where: str, generations: int, possibly: int
) -> None:
    server.add("first", "second")
    client: Any = AsyncOpenAI() if kind == "async" else OpenAI()
    wrapping = Wrapping(client.responses.create, RESPONSES)

    async with harness(wrapping.app, database_url=database_url) as h:
        with crash_after(where):
            run = await h.start(wrapping.function)
            await h.idle()
        await h.restart()
        await h.advance("2h")
        assert await run.result(10) == "done"
        usage = await wrapping.app.usage(run=run.id)
    assert server.generations == generations
    assert (usage.calls, usage.billed, usage.possibly_billed) == (2, 1, possibly)
    assert len(wrapping.seen) == 2
    assert wrapping.seen[0] == wrapping.seen[1]
    await _close(client)


async def test_a_crash_after_the_commit_costs_no_second_generation(
    database_url: str, server: FakeProvider
) -> None:
    server.add("Good day", "never")
    async with AsyncOpenAI() as client:
        wrapping = Wrapping(client.responses.create, RESPONSES)
        async with harness(wrapping.app, database_url=database_url) as h:
            run = await h.start(wrapping.function)
            await h.idle()
            await h.crash()
            await h.restart()
            await h.advance("1h")
            assert await run.result(10) == "done"
    assert server.generations == 1


STREAMS = [
    pytest.param(lambda o, a: o.responses.create, RESPONSES | {"stream": True}, id="stream=True"),
    pytest.param(
        lambda o, a: o.chat.completions.create, CHAT | {"extra_body": {"stream": True}}, id="extra_body"
    ),
    pytest.param(lambda o, a: a.messages.stream, MESSAGES, id="messages.stream"),
    pytest.param(lambda o, a: o.responses.stream, RESPONSES, id="responses.stream"),
    pytest.param(lambda o, a: o.responses.with_raw_response.create, RESPONSES, id="raw"),
    pytest.param(lambda o, a: o.responses.with_streaming_response.create, RESPONSES, id="streaming"),
    pytest.param(lambda o, a: o.responses, RESPONSES, id="no-call"),
    pytest.param(lambda o, a: "responses.create", RESPONSES, id="text"),
    pytest.param(lambda o, a: AsyncOpenAI, {}, id="class"),
    pytest.param(lambda o, a: o.chat.completions.create, {"model": "gpt-5"}, id="missing"),
    pytest.param(lambda o, a: o.responses.create, RESPONSES | {"colour": "red"}, id="unknown"),
]


@pytest.mark.parametrize(("of", "arguments"), STREAMS)
async def test_what_cannot_be_a_step_is_refused_before_anything_is_asked(
    sqlite_url: str, server: FakeProvider, of: Any, arguments: dict[str, Any]
) -> None:
    async with AsyncOpenAI() as openai, AsyncAnthropic() as anthropic:
        wrapping = Wrapping(of(openai, anthropic), arguments)
        async with harness(wrapping.app, database_url=sqlite_url) as h:
            run = await h.start(wrapping.function)
            await h.idle()
            with pytest.raises(RunFailed, match="ConfigurationError"):
                await run.result(5)
            assert (await wrapping.app.usage(run=run.id)).calls == 0
    assert server.requests == []


async def test_an_answer_that_is_no_json_is_paid_and_unserialisable_on_replay_too(database_url: str) -> None:
    calls: list[str] = []

    async def speak(text: str) -> object:
        calls.append(text)
        return object()

    (first, replayed), step, usage = await Wrapping(speak, {"text": "Hello"}).run(database_url)
    assert type(first) is type(replayed) is Unserialisable
    assert (len(calls), step.status, usage.billed) == (1, "completed", 1)


@pytest.mark.parametrize("hard", ["NUL \x00 inside", "half \ud800 of one", [[1.0, 2], {"a": None}]])
async def test_an_unknown_sdks_answer_is_plain_json_on_the_first_run_too(
    database_url: str, hard: Any
) -> None:
    async def ask(question: str) -> Any:
        return {"answer": hard, "tuple": (1, 2)}

    (first, replayed), _, _ = await Wrapping(ask, {"question": "why"}).run(database_url)
    assert first == replayed == {"answer": hard, "tuple": [1, 2]}


async def test_every_keyword_belongs_to_the_sdk(database_url: str) -> None:
    taken: list[dict[str, Any]] = []

    async def ask(**arguments: Any) -> str:
        taken.append(arguments)
        return "told"

    arguments = {"timeout": 5, "retry": 3, "id": "x", "sdk_call": "y", "self": "z"}
    (first, _), step, _ = await Wrapping(ask, arguments).run(database_url)
    assert (taken, first, step.key) == ([arguments], "told", "ask")


async def test_a_call_that_asks_something_else_on_replay_is_a_mismatch_in_strict_mode(
    database_url: str, server: FakeProvider
) -> None:
    server.add("Good day")
    async with AsyncOpenAI() as client:
        wrapping = Wrapping(client.responses.create, RESPONSES)
        async with harness(wrapping.app, database_url=database_url) as h:
            run = await h.start(wrapping.function)
            await h.idle()
            wrapping.arguments = RESPONSES | {"input": "Something else"}
            await h.advance("1h")
            assert "would ask something else" in str((await wrapping.app.runs.get(run.id)).reason)
            wrapping.arguments = RESPONSES | {"timeout": 7}  # how it travels is not what it asks
            await h.advance("1h")
            assert await run.result(10) == "done"
    assert server.generations == 1


async def test_block_models_stops_a_wrapped_call_and_lets_a_stored_answer_be_read(
    database_url: str, server: FakeProvider
) -> None:
    server.add("Good day")
    async with AsyncOpenAI() as client:
        wrapping = Wrapping(client.responses.create, RESPONSES)
        async with harness(wrapping.app, database_url=database_url) as h:
            run = await h.start(wrapping.function)
            await h.idle()
            with block_models():
                await h.advance("1h")
                assert await run.result(10) == "done"
                blocked = await h.start(wrapping.function)
                await h.advance("1h")
                await blocked.result(10)
                usage = await wrapping.app.usage(run=blocked.id)
    assert "block_models() is in force" in str(wrapping.seen[-1])
    assert (len(server.requests), usage.possibly_billed) == (1, 0)


async def test_wrapped_calls_in_parallel_are_each_made_once(database_url: str, server: FakeProvider) -> None:
    import asyncio

    server.add(*(f"answer {n}" for n in range(5)))
    app = App("t")
    async with AsyncOpenAI() as client:

        @app.function
        async def ask(ctx: Context[None], step: Step) -> list[str]:
            answers = await asyncio.gather(
                *(step.ai.wrap("ask", client.responses.create, model="gpt-5", input=f"{n}") for n in range(5))
            )
            await step.sleep("nap", "1h")
            return [answer.output_text for answer in answers]

        async with harness(app, database_url=database_url) as h:
            run = await h.start(ask)
            await h.advance("1h")
            assert sorted(await run.result(10)) == [f"answer {n}" for n in range(5)]
            assert (await app.usage(run=run.id)).calls == 5
    assert server.generations == 5


async def test_a_sync_clients_thread_has_ended_before_another_attempt_begins(
    sqlite_url: str, server: FakeProvider
) -> None:
    from agentflow.testing import Stall

    server.add(Stall(1.5), "Good day")
    with OpenAI() as client:
        wrapping = Wrapping(client.responses.create, RESPONSES, step_timeout="1s")
        seen, _, usage = await wrapping.run(sqlite_url, advance="3h")
    assert seen[-1].output_text == "Good day"
    assert (usage.billed, usage.possibly_billed) == (1, 1)


def test_what_is_refused_says_why_and_what_to_do() -> None:
    from agentflow.models.sdk_calls import check_sdk_call

    client = OpenAI(api_key="none")
    with pytest.raises(
        ConfigurationError, match=r"Responses.create as a stream .* step.ai.infer\(stream=True\)"
    ):
        check_sdk_call(client.responses.create, {"stream": True})
    with pytest.raises(ConfigurationError, match="give the client's own method"):
        check_sdk_call(client.responses.with_raw_response.create, {})
    with pytest.raises(ConfigurationError, match=r"as client\.responses\.create"):
        check_sdk_call(client.responses, {})
    client.close()
    assert registry._blocked == 0


def _package(client: Any) -> str:
    return type(client).__module__.partition(".")[0]


async def _close(client: Any) -> None:
    closing = client.close()
    if closing is not None:
        await closing
