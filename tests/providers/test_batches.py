"""The batch APIs: what our models make of them, and the official SDKs against the fake server."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from agentflow_anthropic import Anthropic
from agentflow_openai import OpenAIChat, OpenAIResponses
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from agentflow.errors import ConfigurationError, InvalidInput
from agentflow.providers import (
    BackgroundModel,
    DeferrableModel,
    JobLookupModel,
    Message,
    Model,
    ModelRequest,
    ModelSettings,
    ToolCall,
    custom_id_of,
    resolve_model,
)
from agentflow.testing.provider_batches import Asked
from agentflow.testing.provider_jobs import Job
from agentflow.testing.provider_server import FakeProvider, HttpError

MODELS = ["openai:gpt-5-mini", "openai-chat:gpt-4o", "anthropic:claude-sonnet-4-5"]
OURS = {"agentflow_run": "r", "agentflow_step": "s", "agentflow_attempt": "0"}
HI = ModelRequest(model="any:model", messages=["Hi"], settings=ModelSettings(latency="batch"))


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, server: FakeProvider) -> Model:
    return resolve_model(request.param)


def batched(model: Model) -> JobLookupModel:
    assert isinstance(model, DeferrableModel)
    job = model.deferred("batch")
    assert isinstance(job, JobLookupModel)
    return job


async def test_a_batch_is_found_by_its_id_from_another_process(model: Model, server: FakeProvider) -> None:
    server.add(Job("Found", queued=1))
    submitted = await batched(model).submit(HI, metadata=OURS)
    assert submitted.answer is None
    after = batched(resolve_model(f"{model.provider}:{model.model}"))
    assert await after.poll(submitted.provider_id) is None
    answer = await after.poll(submitted.provider_id)
    assert answer
    assert (after.parse(answer.raw).text, answer.model) == ("Found", model.model)
    assert after.parse(answer.raw).usage.input_tokens > 0


async def test_a_batch_answers_as_the_model_does_at_once(model: Model, server: FakeProvider) -> None:
    """The raw answer is the same JSON, but for its id and time."""
    replies = [ToolCall(name="look_up", args={"of": "é\n"})], "He\u2028llo"
    for reply in replies:
        server.add(reply, reply)
        at_once = await model.request(HI.model_copy(update={"settings": ModelSettings()}))
        submitted = await batched(model).submit(HI, metadata=OURS)
        later = await batched(model).poll(submitted.provider_id)
        assert later
        told, expected = model.parse(later.raw), model.parse(at_once.raw)
        assert later.raw.keys() == at_once.raw.keys()
        assert (told.text, told.finish_reason, [call.args for call in told.tool_calls]) == (
            expected.text,
            expected.finish_reason,
            [call.args for call in expected.tool_calls],
        )


async def test_a_job_of_ours_is_found_among_hundreds(model: Model, server: FakeProvider) -> None:
    server.add("Found")
    now = datetime.now(UTC)
    submitted = await batched(model).submit(HI, metadata=OURS)
    told = {"metadata": {**OURS, "agentflow_step": "another"}}
    for number in range(250):
        server.batches.keep(f"batch_other_{number}", [Asked("theirs", Job(queued=0), answer={})], told)
    search = await batched(model).find_job(OURS, since=now)
    assert search.provider_id == submitted.provider_id
    search = await batched(model).find_job({**OURS, "agentflow_attempt": "1"}, since=now)
    assert (search.provider_id, search.is_open) == (None, False)


async def test_what_has_ended_is_read_once_to_see_whose_it_was(server: FakeProvider) -> None:
    for number in range(5):
        server.batches.keep(f"msgbatch_{number}", [Asked(f"other-{number}", Job(queued=0), answer={})])
    model = Anthropic("claude-sonnet-4-5")
    for _ in range(3):
        await batched(model).find_job(OURS, since=datetime.now(UTC))
    read = [request.path for request in server.requests if request.path.endswith("/results")]
    assert len(read) == len(set(read)) == 5


async def test_anthropics_batches_of_others_or_another_time_are_not_waited_for(server: FakeProvider) -> None:
    model, now = batched(Anthropic("claude-sonnet-4-5")), datetime.now(UTC)
    never = Job(queued=None)
    server.batches.keep("msgbatch_old", [Asked("a", never)]).created_at -= 600
    server.batches.keep("msgbatch_two", [Asked("a", never), Asked("b", never)])
    server.batches.keep("msgbatch_new", [Asked("a", never)]).created_at += 1200
    assert not (await model.find_job(OURS, since=now)).is_open
    assert (await model.find_job(OURS, since=now + timedelta(minutes=10))).is_open  # the new one


async def test_a_batch_is_cancelled(model: Model, server: FakeProvider) -> None:
    server.add(Job("never", queued=None))
    submitted = await batched(model).submit(HI, metadata=OURS)
    await batched(model).cancel(submitted.provider_id)
    with pytest.raises(Exception, match="cancel") as raised:
        await batched(model).poll(submitted.provider_id)
    failure = model.classify(raised.value)
    assert (failure.billed, failure.retriable) == ("no", False)


async def test_a_conversation_that_is_wrong_is_not_submitted(model: Model, server: FakeProvider) -> None:
    call = Message(role="assistant", parts=[ToolCall(id="c1", name="add", args={})])
    wrong = ModelRequest(model="any:model", messages=["Hi", call, "Well?"])
    with pytest.raises(InvalidInput, match="'c1'"):
        await batched(model).submit(wrong, metadata=OURS)
    assert server.requests == []


async def test_a_batch_that_is_refused_is_not_billed(model: Model, server: FakeProvider) -> None:
    server.add(HttpError(429, retry_after=7))
    with pytest.raises(Exception, match="429") as raised:
        await batched(model).submit(HI, metadata=OURS)
    failure = model.classify(raised.value)
    assert (failure.billed, failure.retriable, failure.retry_after) == ("no", True, 7)
    assert server.generations == 0


async def test_a_batch_neither_answers_at_once_nor_streams(model: Model, server: FakeProvider) -> None:
    job = batched(model)
    assert (job.capabilities.background, job.capabilities.streaming) == (True, False)
    with pytest.raises(ConfigurationError, match="is given jobs"):
        await job.request(HI)
    for events in (job.stream(HI), job.resume("batch_1")):
        with pytest.raises(ConfigurationError, match="is given jobs"):
            await anext(aiter(events))
    assert server.requests == []


async def test_a_window_is_a_background_response(server: FakeProvider) -> None:
    server.add(Job("Found", queued=1))
    model = OpenAIResponses("gpt-5-mini").deferred("2h")
    assert isinstance(model, BackgroundModel)
    assert not model.capabilities.lookup
    submitted = await model.submit(HI, metadata=OURS)
    assert await model.poll(submitted.provider_id) is None
    answer = await model.poll(submitted.provider_id)
    assert answer
    assert server.requests[0].body["background_options"] == {"completion_window": "2h"}


async def test_a_client_that_has_no_batches_is_told_apart_from_a_doubt() -> None:
    from anthropic import AsyncAnthropicVertex

    client = AsyncAnthropicVertex(region="europe-west1", project_id="p", access_token="t")
    with pytest.raises(ConfigurationError, match="not supported in the Vertex client"):
        await batched(Anthropic("claude-sonnet-4-5", client=client)).submit(HI, metadata=OURS)


def test_a_custom_id_is_the_same_everywhere_and_fits_both_apis() -> None:
    assert custom_id_of(OURS) == custom_id_of(dict(reversed(OURS.items())))
    assert custom_id_of(OURS) == "agentflow-" + custom_id_of(OURS)[-40:]
    others = [{**OURS, name: "x"} for name in OURS]
    assert len({custom_id_of(each) for each in (OURS, *others)}) == 4


# -------------------------------------------------------------------------------------- the fake server and the SDKs


async def test_the_fake_server_takes_many_requests_in_a_batch_of_openais(server: FakeProvider) -> None:
    server.add("one", Job(expires=True, queued=0), "three")
    bodies: list[dict[str, Any]] = [
        {"model": "gpt-4o", "messages": [{"role": "user", "content": f"Hi {number}"}]} for number in range(3)
    ]
    lines = [
        {"custom_id": f"c{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for number, body in enumerate([*bodies, {"model": "gpt-4o"}])
    ]
    async with AsyncOpenAI(max_retries=0) as client:
        content = "\n".join(map(json.dumps, lines)).encode()
        file = await client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = await client.batches.create(
            completion_window="24h", endpoint="/v1/chat/completions", input_file_id=file.id
        )
        assert batch.status == "validating"
        batch = await client.batches.retrieve(batch.id)
        assert batch.request_counts
        assert (batch.request_counts.total, batch.request_counts.completed) == (4, 2)
        done = [
            json.loads(line)
            for line in (await client.files.content(str(batch.output_file_id))).text.splitlines()
        ]
        failed = [
            json.loads(line)
            for line in (await client.files.content(str(batch.error_file_id))).text.splitlines()
        ]
    assert {
        line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in done
    } == {
        "c0": "one",
        "c2": "three",
    }
    assert [line["custom_id"] for line in failed] == ["c1", "c3"]
    assert failed[0]["error"]["code"] == "batch_expired"
    assert failed[1]["response"]["status_code"] == 400
    assert server.generations == 2


async def test_the_fake_server_takes_many_requests_in_a_batch_of_anthropics(server: FakeProvider) -> None:
    server.add("one", Job(fails=True), Job("three", queued=1))
    asked: Any = [
        {
            "custom_id": f"c{number}",
            "params": {
                "model": "claude-sonnet-4-5",
                "max_tokens": 10,
                "messages": [{"role": "user", "content": f"Hi {number}"}],
            },
        }
        for number in range(3)
    ]
    async with AsyncAnthropic(max_retries=0) as client:
        batch = await client.messages.batches.create(requests=asked)
        assert (batch.processing_status, batch.request_counts.processing) == ("in_progress", 3)
        for status in ("in_progress", "ended"):
            batch = await client.messages.batches.retrieve(batch.id)
            assert batch.processing_status == status
        results = [item async for item in await client.messages.batches.results(batch.id)]
    assert {item.custom_id: item.result.type for item in results} == {
        "c0": "succeeded",
        "c1": "errored",
        "c2": "succeeded",
    }
    assert server.generations == 2


def test_chat_completions_of_a_gateway_may_have_batches_too() -> None:
    assert OpenAIChat("llama", base_url="http://localhost:1/v1", api_key="none").capabilities.latencies == (
        "batch",
    )
