"""Real traffic of the real APIs is read right, and what they demand back goes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from agentflow.errors import ProviderError
from agentflow.models.answers import read_answer
from agentflow.models.output import output_spec
from agentflow.models.response import total_usage
from agentflow.providers import (
    Capabilities,
    Message,
    ModelRequest,
    ModelResponse,
    ModelSettings,
    RawAnswer,
    ReasoningDelta,
    TextDelta,
    ToolArgsDelta,
    ToolCall,
    ToolResult,
    ToolSpec,
    Usage,
)

Recorded = Callable[[str], Any]

TOOL = ToolSpec(name="lookup", description="Look it up.", schema={"type": "object", "properties": {}})


class City(BaseModel):
    city: str
    country: str


def asking(*messages: Any, **more: Any) -> ModelRequest:
    return ModelRequest(model="any:model", messages=list(messages) or ["Hello"], tools=(TOOL,), **more)


async def ask(model: Any, request: ModelRequest) -> ModelResponse:
    response = model.parse((await model.request(request)).raw)
    assert isinstance(response, ModelResponse)
    return response


def results(response: ModelResponse, *texts: str) -> list[Message]:
    """What the response said, and the results of its calls."""
    answered = [
        ToolResult(call_id=call.id, content=text)
        for call, text in zip(response.tool_calls, texts, strict=True)
    ]
    return [*response.messages, Message(role="tool", parts=list(answered))]


# --- OpenAI, Chat Completions ---------------------------------------------------------------------


async def test_chat_calls_a_tool_then_answers(recording: Recorded) -> None:
    recorded = recording("openai_chat/tool_call")
    async with recorded.model() as model:
        first = await ask(model, asking("How warm is it in Tokyo?", instructions="Be brief."))
        second = await ask(model, asking("How warm is it in Tokyo?", *results(first, "20.0")))

    assert first.tool_calls == [
        ToolCall(index=0, id="call_bhZkmIKKItNGJ41whHUHB7p9", name="get_temperature", args={"city": "Tokyo"})
    ]
    assert (first.text, first.finish_reason) == ("", "tool_calls")
    assert first.usage == Usage(input_tokens=50, output_tokens=15)
    assert second.text == "The temperature in Tokyo is currently 20.0 degrees Celsius."
    assert (second.finish_reason, second.model) == ("stop", "gpt-4.1-mini-2025-04-14")
    assert second.provider_id == "chatcmpl-BMxEx6B8JEj6oDC45MOWKp0phg8UP"
    assert recorded.sent[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert recorded.sent[1]["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_bhZkmIKKItNGJ41whHUHB7p9",
                    "type": "function",
                    "function": {"name": "get_temperature", "arguments": '{"city":"Tokyo"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_bhZkmIKKItNGJ41whHUHB7p9", "content": "20.0"},
    ]


async def test_chat_fills_a_structured_output_after_a_tool(recording: Recorded) -> None:
    recorded = recording("openai_chat/json_schema_output")
    async with recorded.model("gpt-4o") as model:
        spec = output_spec(City, capabilities=model.capabilities)
        first = read_answer(model, await model.request(asking("Which?", output=spec)), spec=spec, output=City)
        answer = await model.request(asking("Which?", *results(first, "Mexico"), output=spec))

    assert first.output is None
    assert read_answer(model, answer, spec=spec, output=City).output == City(
        city="Mexico City", country="Mexico"
    )
    assert recorded.sent[1]["response_format"]["json_schema"]["strict"] is True


@pytest.mark.parametrize("chunk", [None, 7])
async def test_chat_streams_parallel_tool_calls(recording: Recorded, chunk: int | None) -> None:
    recorded = recording("openai_chat/parallel_tool_calls_stream")
    async with recorded.model(chunk=chunk) as model:
        *deltas, answer = [event async for event in model.stream(asking())]
        response = model.parse(answer.raw)

    assert [(call.index, call.id, call.args) for call in response.tool_calls] == [
        (0, "call_cCPjAyfwTzboEKjVlqFrArNF", {"location": "San Francisco"}),
        (1, "call_Zi4He1Ns0mozwT6f85nW1BOW", {"location": "Boston"}),
    ]
    told = {0: "", 1: ""}
    for delta in deltas:
        assert isinstance(delta, ToolArgsDelta)
        told[delta.index] += delta.text
    assert [json.loads(text) for text in told.values()] == [call.args for call in response.tool_calls]


async def test_chat_reads_a_wrong_key_as_not_billed_and_final(recording: Recorded) -> None:
    async with recording("openai_chat/error_401").model() as model:
        with pytest.raises(Exception, match="Incorrect API key") as raised:
            await model.request(asking())
        failure = model.classify(raised.value)

    assert (failure.billed, failure.retriable, failure.error.status) == ("no", False, 401)
    assert failure.error.code == "invalid_api_key"


# --- OpenAI, Responses ----------------------------------------------------------------------------


async def test_responses_call_a_function_then_answer(recording: Recorded) -> None:
    recorded = recording("openai_responses/tool_call")
    async with recorded.model("gpt-4o") as model:
        first = await ask(model, asking("The capital of PotatoLand?"))
        second = await ask(model, asking("The capital of PotatoLand?", *results(first, "Potato City")))

    assert first.tool_calls == [
        ToolCall(
            index=0, id="call_YfwRsW8sUxDKipwyhWTzOXCA", name="get_capital", args={"country": "PotatoLand"}
        )
    ]
    assert first.finish_reason == "tool_calls"
    assert second.text == "The capital of PotatoLand is Potato City."
    assert second.usage == Usage(input_tokens=67, output_tokens=11)
    assert recorded.sent[1]["input"] == [
        {"role": "user", "content": "The capital of PotatoLand?"},
        *recorded.exchanges[0]["response"]["body"]["output"],
        {
            "type": "function_call_output",
            "call_id": "call_YfwRsW8sUxDKipwyhWTzOXCA",
            "output": "Potato City",
        },
    ]


@pytest.mark.parametrize("chunk", [None, 11])
async def test_responses_stream_a_call_and_then_text(recording: Recorded, chunk: int | None) -> None:
    recorded = recording("openai_responses/text_and_tool_call_stream")
    async with recorded.model("gpt-4o", chunk=chunk) as model:
        *calling, called = [event async for event in model.stream(asking("Capital of France?"))]
        first = model.parse(called.raw)
        *telling, told = [
            event async for event in model.stream(asking("Capital of France?", *results(first, "Paris")))
        ]

    assert "".join(delta.text for delta in calling) == '{"country":"France"}'
    assert first.tool_calls[0].args == {"country": "France"}
    assert all(isinstance(delta, TextDelta) for delta in telling)
    assert (
        "".join(delta.text for delta in telling)
        == model.parse(told.raw).text
        == "The capital of France is Paris."
    )


async def test_responses_carry_encrypted_reasoning_back_unchanged(recording: Recorded) -> None:
    recorded = recording("openai_responses/reasoning_and_tool_call")
    async with recorded.model("gpt-5") as model:
        first = await ask(model, asking("Compose a poem."))
        kept = [Message.model_validate_json(message.model_dump_json()) for message in results(first, "done")]
        second = await ask(model, asking("Compose a poem.", *kept))

    assert recorded.sent[0]["include"] == ["reasoning.encrypted_content"]
    assert recorded.sent[0]["store"] is False
    items = recorded.exchanges[0]["response"]["body"]["output"]
    assert [item["type"] for item in items] == ["reasoning", "function_call"]
    assert recorded.sent[1]["input"][1:3] == items
    assert first.usage == Usage(input_tokens=124, output_tokens=1926, reasoning_tokens=1792)
    assert second.usage == Usage(input_tokens=2087, cached_tokens=2048, output_tokens=124)


async def test_responses_in_the_background_are_submitted_and_polled(recording: Recorded) -> None:
    recorded = recording("openai_responses/background_tool_call")
    async with recorded.model("gpt-4o") as model:
        job = await model.submit(asking("Weather in Paris?"), metadata={"step": "1"})
        called = model.parse((await model.poll(job.provider_id)).raw)
        messages = results(called, "Sunny and 72F in Paris")
        second_job = await model.submit(asking("Weather in Paris?", *messages), metadata={"step": "2"})
        still_at_work = await model.poll(second_job.provider_id)
        answer = await model.poll(second_job.provider_id)

    assert job.provider_id == "resp_01b4d93abce33afe00698b9df44be4819bb99fff16d77a0236"
    assert (recorded.sent[0]["background"], recorded.sent[0]["store"]) == (True, True)
    assert recorded.sent[0]["metadata"] == {"step": "1"}
    assert called.tool_calls[0].args == {"city": "Paris"}
    assert still_at_work is None
    assert (
        model.parse(answer.raw).text == "The weather in Paris is currently sunny with a temperature of 72°F."
    )


async def test_a_background_stream_is_resumed_after_a_number(recording: Recorded) -> None:
    recorded = recording("openai_responses/background_stream_resumed")
    async with recorded.model("gpt-4o") as model:
        whole = [event async for event in model.stream(asking("What is 2 + 2?"))]
        resumed = [event async for event in model.resume(whole[-1].provider_id, after=0)]

    assert model.parse(resumed[-1].raw).text == "2 + 2 equals 4."
    assert resumed == whole
    assert [delta.number for delta in resumed[:-1]] == sorted({delta.number for delta in resumed[:-1]})


async def test_a_job_that_nobody_submitted_is_no_answer(recording: Recorded) -> None:
    async with recording("openai_responses/background_tool_call").model("gpt-4o") as model:
        with pytest.raises(ProviderError, match="is queued"):
            await model.request(asking())


# --- Anthropic ------------------------------------------------------------------------------------


async def test_anthropic_calls_four_tools_at_once(recording: Recorded) -> None:
    recorded = recording("anthropic/parallel_tool_calls")
    async with recorded.model("claude-haiku-4-5") as model:
        first = await ask(model, asking("Who is the youngest?"))
        ages = results(first, "30", "31", "5", "3")
        second = await ask(model, asking("Who is the youngest?", *ages))

    assert [(call.index, call.args["name"]) for call in first.tool_calls] == [
        (0, "Alice"),
        (1, "Bob"),
        (2, "Charlie"),
        (3, "Daisy"),
    ]
    assert first.text.startswith("I'll help you find out")
    assert second.finish_reason == "stop"
    user, assistant, answers = recorded.sent[1]["messages"]
    assert (user["role"], assistant["role"], answers["role"]) == ("user", "assistant", "user")
    assert assistant["content"] == recorded.exchanges[0]["response"]["body"]["content"]
    assert [block["tool_use_id"] for block in answers["content"]] == [call.id for call in first.tool_calls]
    assert total_usage([first.usage, second.usage]) == Usage(input_tokens=423 + 771, output_tokens=202 + 77)


async def test_anthropic_fills_a_structured_output_by_a_tool(recording: Recorded) -> None:
    recorded = recording("anthropic/output_tool")
    spec = output_spec(City, capabilities=Capabilities(tools=True))
    async with recorded.model("claude-sonnet-4-0") as model:
        first = await ask(model, asking("Which?", output=spec))
        second = await ask(model, asking("Which?", *results(first, "Mexico"), output=spec))

    assert recorded.sent[0]["tool_choice"] == {"type": "any"}
    assert [tool["name"] for tool in recorded.sent[0]["tools"]] == ["lookup", "final_answer"]
    assert first.tool_calls[0].args == {}
    # The recorded program had another name for the tool of the final answer.
    assert City.model_validate(second.tool_calls[0].args) == City(city="Mexico City", country="Mexico")


async def test_anthropic_gets_its_thinking_back_with_the_signature(recording: Recorded) -> None:
    recorded = recording("anthropic/thinking_and_tool_call")
    settings = ModelSettings(thinking_tokens=3000)
    async with recorded.model("claude-sonnet-4-0") as model:
        first = await ask(model, asking("The largest city?", settings=settings))
        kept = [
            Message.model_validate_json(message.model_dump_json()) for message in results(first, "Mexico")
        ]
        second = await ask(model, asking("The largest city?", *kept, settings=settings))

    assert [part.kind for part in first.messages[0].parts] == ["reasoning", "text", "tool_call"]
    assert recorded.sent[0]["thinking"] == {"type": "enabled", "budget_tokens": 3000}
    thinking, *_ = recorded.sent[1]["messages"][1]["content"]
    assert thinking == recorded.exchanges[0]["response"]["body"]["content"][0]
    assert "Mexico City" in second.text


@pytest.mark.parametrize("chunk", [None, 5])
async def test_anthropic_streams_thinking_signature_and_text(recording: Recorded, chunk: int | None) -> None:
    recorded = recording("anthropic/thinking_stream")
    async with recorded.model(chunk=chunk) as model:
        *deltas, answer = [event async for event in model.stream(asking())]

    assert isinstance(answer, RawAnswer)
    response = model.parse(answer.raw)
    thinking, text = answer.raw["content"]
    assert "".join(d.text for d in deltas if isinstance(d, ReasoningDelta)) == thinking["thinking"] != ""
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == text["text"] == response.text
    assert f'"signature":"{thinking["signature"]}"' in recorded.exchanges[0]["response"]["body"]
    assert len(thinking["signature"]) > 300
    assert response.usage == Usage(input_tokens=43, output_tokens=282)
    assert response.finish_reason == "stop"


async def test_anthropic_counts_what_the_cache_wrote_and_read_as_input(recording: Recorded) -> None:
    async with recording("anthropic/prompt_cache").model() as model:
        first = await ask(model, asking())
        second = await ask(model, asking())

    assert first.usage == Usage(input_tokens=1114, cached_tokens=1111, output_tokens=406)
    assert second.usage == Usage(
        input_tokens=1532, cached_tokens=1111, cache_write_tokens=418, output_tokens=33
    )


async def test_anthropic_reads_a_bad_request_as_not_billed_and_final(recording: Recorded) -> None:
    async with recording("anthropic/error_400").model("claude-opus-4-6") as model:
        with pytest.raises(Exception, match="effort level") as raised:
            await model.request(asking(settings=ModelSettings(effort="xhigh")))
        failure = model.classify(raised.value)

    assert (failure.billed, failure.retriable, failure.error.status) == ("no", False, 400)
    assert failure.error.code == "invalid_request_error"
