"""The pure halves of the providers: request bodies, and the oddities of gateways."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agentflow_anthropic import mapping as anthropic
from agentflow_anthropic.events import MessageAssembly
from agentflow_openai import chat, responses
from agentflow_openai.events import ChatAssembly
from agentflow_openai.schemas import strict_schema
from pydantic import BaseModel

from agentflow.errors import InvalidInput
from agentflow.models.output import output_spec
from agentflow.providers import (
    Capabilities,
    Message,
    ModelRequest,
    ModelSettings,
    TextPart,
    ToolArgsDelta,
    ToolCall,
    ToolResult,
    ToolSpec,
)

NATIVE = Capabilities(json_schema=True)


class Closed(BaseModel):
    name: str


class WithDefault(BaseModel):
    name: str = "x"


def asking(*messages: Any, **more: Any) -> ModelRequest:
    return ModelRequest(model="any:model", messages=list(messages) or ["Hi"], **more)


# --- settings -------------------------------------------------------------------------------------

SETTINGS = ModelSettings(
    temperature=0.5,
    top_p=0.9,
    max_tokens=100,
    stop=("END",),
    seed=7,
    tool_choice="search",
    parallel_tool_calls=False,
    effort="low",
    extra={"user": "u-1"},
)
SEARCH = ToolSpec("search", "Search.", {"type": "object", "properties": {}})


def test_settings_reach_anthropic_in_its_words() -> None:
    body = anthropic.request_body(
        asking(settings=SETTINGS, tools=(SEARCH,), instructions="Be brief."), model="claude-sonnet-4-5"
    )
    assert body == {
        "model": "claude-sonnet-4-5",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "system": "Be brief.",
        "tools": [{"name": "search", "description": "Search.", "input_schema": SEARCH.schema}],
        "tool_choice": {"type": "tool", "name": "search", "disable_parallel_tool_use": True},
        "output_config": {"effort": "low"},
        "temperature": 0.5,
        "top_p": 0.9,
        "stop_sequences": ["END"],
        "user": "u-1",
    }


def test_settings_reach_the_responses_api_in_its_words() -> None:
    body = responses.request_body(
        asking(settings=SETTINGS, tools=(SEARCH,), instructions="Be brief."), model="gpt-5"
    )
    assert body == {
        "model": "gpt-5",
        "input": [{"role": "user", "content": "Hi"}],
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "instructions": "Be brief.",
        "tools": [
            {
                "type": "function",
                "name": "search",
                "description": "Search.",
                "parameters": {**SEARCH.schema, "additionalProperties": False},
                "strict": True,
            }
        ],
        "tool_choice": {"type": "function", "name": "search"},
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low"},
        "max_output_tokens": 100,
        "temperature": 0.5,
        "top_p": 0.9,
        "user": "u-1",
    }


@pytest.mark.parametrize(("is_gateway", "limit"), [(True, "max_tokens"), (False, "max_completion_tokens")])
def test_settings_reach_chat_completions_in_its_words(is_gateway: bool, limit: str) -> None:
    body = chat.request_body(asking(settings=SETTINGS, tools=(SEARCH,)), model="m", is_gateway=is_gateway)
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [
            {
                "type": "function",
                "function": {"name": "search", "description": "Search.", "parameters": SEARCH.schema},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "search"}},
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        limit: 100,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["END"],
        "seed": 7,
        "user": "u-1",
    }


@pytest.mark.parametrize(
    ("model", "encrypted"),
    [("gpt-5-mini", True), ("o3", True), ("gpt-4o", False), ("gpt-5-chat-latest", False), ("llama-4", False)],
)
def test_only_a_model_that_reasons_is_asked_for_its_reasoning(model: str, encrypted: bool) -> None:
    assert ("include" in responses.request_body(asking(), model=model)) is encrypted


@pytest.mark.parametrize(
    ("model", "native"),
    [
        ("claude-sonnet-4-5", True),
        ("claude-opus-4-1-20250805", True),
        ("claude-opus-4-6", True),
        ("claude-haiku-4-5-20251001", True),
        ("claude-opus-5", True),
        ("claude-sonnet-4-0", False),
        ("claude-sonnet-4-20250514", False),
        ("claude-3-7-sonnet-latest", False),
        ("some-model", False),
    ],
)
def test_schemas_are_held_by_the_claude_models_that_can(model: str, native: bool) -> None:
    assert anthropic.supports_json_schema(model) is native


def test_a_thinking_claude_is_never_forced_to_call_a_tool() -> None:
    settings = ModelSettings(thinking_tokens=2048, tool_choice="required")
    body = anthropic.request_body(asking(tools=(SEARCH,), settings=settings), model="claude-sonnet-4-0")
    assert body["tool_choice"] == {"type": "auto"}
    assert body["max_tokens"] > body["thinking"]["budget_tokens"]


# --- schemas --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "strict"),
    [
        (Closed, True),
        (list[Closed], True),
        (Closed | None, True),
        (WithDefault, False),
        (dict[str, int], False),
    ],
)
def test_a_schema_is_strict_where_that_keeps_its_meaning(output: Any, strict: bool) -> None:
    spec = output_spec(output, capabilities=NATIVE)
    assert spec is not None
    assert (strict_schema(spec.schema) is not None) is strict
    told = responses.request_body(asking(output=spec), model="gpt-5")["text"]["format"]
    assert told["strict"] is strict
    if not strict:
        assert told["schema"] == spec.schema


def test_an_open_object_goes_to_anthropic_by_a_tool() -> None:
    for output, by_tool in ((dict[str, int], True), (Closed, False)):
        spec = output_spec(output, capabilities=NATIVE)
        body = anthropic.request_body(asking(output=spec), model="claude-sonnet-4-5")
        assert ("tools" in body) is by_tool
        assert ("output_config" in body) is not by_tool


# --- oddities -------------------------------------------------------------------------------------


def chat_answer(**said: Any) -> dict[str, Any]:
    return {"id": "c", "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": said}]}


def call(id: Any, arguments: Any = "{}") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "t", "arguments": arguments}}


@pytest.mark.parametrize("ids", [("", ""), (None, None), ("x", "x"), ("x", "x_1")])
def test_calls_without_ids_of_their_own_get_some_and_pair_up(ids: tuple[Any, Any]) -> None:
    response = chat.response_of(chat_answer(content="", tool_calls=[call(id) for id in ids]))
    given = [made.id for made in response.tool_calls]
    assert len(set(given)) == 2
    assert all(given)
    assert response.finish_reason == "tool_calls"

    answered = Message("tool", [ToolResult(id, "ok") for id in given])
    sent = chat.request_body(asking("Hi", *response.messages, answered), model="m", is_gateway=True)[
        "messages"
    ]
    assert (
        [made["id"] for made in sent[1]["tool_calls"]] == [item["tool_call_id"] for item in sent[2:]] == given
    )


@pytest.mark.parametrize("arguments", ["", None, "  ", "{}"])
def test_no_arguments_are_empty_arguments(arguments: Any) -> None:
    (made,) = chat.response_of(chat_answer(tool_calls=[call("a", arguments)])).tool_calls
    assert (made.args, made.invalid_args) == ({}, None)


@pytest.mark.parametrize("arguments", ["{", "[1]", "nonsense", '"text"'])
def test_arguments_that_are_no_object_are_kept_to_be_told(arguments: str) -> None:
    response = chat.response_of(chat_answer(tool_calls=[call("a", arguments)]))
    (made,) = response.tool_calls
    assert (made.args, made.invalid_args) == ({}, arguments)
    answered = Message("tool", [ToolResult("a", "that is no JSON", True)])
    sent = chat.request_body(asking("Hi", *response.messages, answered), model="m", is_gateway=True)[
        "messages"
    ]
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    "pieces",
    [
        [
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}},
            {"index": 0, "id": "b", "function": {"name": "g", "arguments": "{}"}},
        ],
        [
            {"id": "a", "function": {"name": "f", "arguments": "{}"}},
            {"id": "b", "function": {"name": "g", "arguments": "{}"}},
        ],
        [
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}},
            {"index": 0, "function": {"arguments": "}"}},
            {"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}},
        ],
    ],
    ids=["index always 0", "no index", "as OpenAI does"],
)
def test_streamed_calls_are_told_apart_however_a_gateway_numbers_them(pieces: list[dict[str, Any]]) -> None:
    assembly = ChatAssembly()
    deltas = [
        delta
        for piece in pieces
        for delta in assembly.add({"id": "c", "model": "m", "choices": [{"delta": {"tool_calls": [piece]}}]})
    ]
    assembly.add({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    response = chat.response_of(assembly.completion)
    assert assembly.is_complete
    assert [(made.id, made.name, made.args) for made in response.tool_calls] == [
        ("a", "f", {}),
        ("b", "g", {}),
    ]
    assert {delta.index for delta in deltas if isinstance(delta, ToolArgsDelta)} == {0, 1}


def test_what_a_gateway_reasons_is_shown_and_its_details_go_back() -> None:
    details = [{"type": "reasoning.encrypted", "data": "abc"}]
    response = chat.response_of(
        chat_answer(content="Hi", reasoning="Hm.", reasoning_details=details, annotations=[])
    )
    assert [part.kind for part in response.messages[0].parts] == ["reasoning", "text"]
    sent = chat.request_body(asking("Hi", *response.messages, "So?"), model="m", is_gateway=True)["messages"][
        1
    ]
    assert sent == {"role": "assistant", "content": "Hi", "reasoning_details": details}


def test_a_refusal_is_an_answer_of_either_api() -> None:
    refused = chat.response_of(chat_answer(content=None, refusal="I will not."))
    assert (refused.text, refused.finish_reason) == ("I will not.", "refusal")
    item = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "refusal", "refusal": "I will not."}],
    }
    refused = responses.response_of({"id": "r", "model": "m", "status": "completed", "output": [item]})
    assert (refused.text, refused.finish_reason) == ("I will not.", "refusal")
    refused = anthropic.response_of({"id": "m", "model": "m", "stop_reason": "refusal", "content": []})
    assert (refused.text, refused.finish_reason) == ("", "refusal")


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("pause_turn", "pause")],
)
def test_anthropics_stop_reasons_are_read(stop_reason: str, finish_reason: str) -> None:
    raw = {"id": "m", "model": "m", "stop_reason": stop_reason, "content": [{"type": "text", "text": "Hi"}]}
    assert anthropic.response_of(raw).finish_reason == finish_reason


def test_a_pause_is_continued_with_what_the_server_did_untouched() -> None:
    content = [
        {"type": "text", "text": "Let me search."},
        {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {"query": "x"}},
        {"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": [{"encrypted_content": "abc"}]},
        {"type": "text", "text": "Found.", "citations": [{"type": "web_search_result_location", "url": "u"}]},
    ]
    response = anthropic.response_of(
        {"id": "m", "model": "m", "stop_reason": "pause_turn", "content": content}
    )
    assert response.tool_calls == []
    assert response.text == "Let me search.Found."
    sent = anthropic.request_body(asking("Hi", *response.messages), model="claude-sonnet-4-5")["messages"]
    assert sent[1] == {"role": "assistant", "content": content}


def test_blank_text_goes_back_to_anthropic_as_nothing() -> None:
    content = [
        {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
        {"type": "text", "text": "\n\n"},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {}},
    ]
    response = anthropic.response_of({"id": "m", "model": "m", "stop_reason": "tool_use", "content": content})
    answered = Message("tool", [ToolResult("t1", "ok")])
    sent = anthropic.request_body(asking("Hi", *response.messages, answered), model="claude-sonnet-4-5")
    assert sent["messages"][1]["content"] == [content[0], content[2]]
    with pytest.raises(InvalidInput, match="without any text"):
        anthropic.request_body(asking(" "), model="claude-sonnet-4-5")


def test_an_unfinished_tool_input_keeps_the_thinking_beside_it() -> None:
    assembly = MessageAssembly()
    for event in [
        {"type": "message_start", "message": {"id": "m", "model": "m", "content": [], "usage": {}}},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "sig"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "t1", "name": "f", "input": {}},
        },
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": '{"a": "un'},
        },
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]:
        assembly.add(event)
    response = anthropic.response_of(assembly.message)
    assert response.finish_reason == "length"
    assert response.tool_calls[0].invalid_args == '{"a": "un'

    answered = Message("tool", [ToolResult("t1", "that was cut", True)])
    sent = anthropic.request_body(asking("Hi", *response.messages, answered), model="claude-sonnet-4-5")
    assert sent["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {}},
    ]
    assert sent["messages"][2]["content"][0]["is_error"] is True


def test_reasoning_that_is_neither_stored_nor_encrypted_stays_behind() -> None:
    output = [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"},
    ]
    raw = {"id": "r", "model": "m", "status": "completed", "output": output}
    answered = Message("tool", [ToolResult("c1", "ok")])
    kept = responses.response_of({**raw, "store": True}).messages
    left = responses.response_of({**raw, "store": False}).messages
    assert responses.request_body(asking("Hi", *kept, answered), model="gpt-5")["input"][1:3] == output
    assert responses.request_body(asking("Hi", *left, answered), model="gpt-5")["input"][1] == {
        "type": "function_call",
        "call_id": "c1",
        "name": "f",
        "arguments": "{}",
    }


def test_images_that_a_tool_gave_are_shown_to_the_model_where_the_api_can() -> None:
    content = [
        {"kind": "text", "text": "a dot"},
        {"kind": "image", "media_type": "image/png", "data": "iVBORw=="},
    ]
    messages = (
        Message("user", [TextPart("go")]),
        Message("assistant", [ToolCall(0, "c1", "paint", {})]),
        Message("tool", [ToolResult("c1", content)]),
    )
    request = ModelRequest(model="m", messages=messages)
    assert anthropic.request_body(request, model="m")["messages"][-1]["content"] == [
        {
            "type": "tool_result",
            "tool_use_id": "c1",
            "content": [
                {"type": "text", "text": "a dot"},
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw=="},
                },
            ],
        }
    ]
    assert responses.request_body(request, model="m")["input"][-1]["output"] == [
        {"type": "input_text", "text": "a dot"},
        {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,iVBORw=="},
    ]
    assert (
        chat.request_body(request, model="m", is_gateway=False)["messages"][-1]["content"]
        == "a dot\n[image/png, 4 bytes: not shown]"
    )


@pytest.mark.parametrize(
    "content", [[{"kind": "image"}], [{"kind": "image", "of": "sin"}, 5], [], {"kind": "image"}]
)
def test_json_that_only_looks_like_images_stays_json(content: Any) -> None:
    assert ToolResult("c1", content).blocks == []
    assert json.loads(ToolResult("c1", content).text) == content
