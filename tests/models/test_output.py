"""Structured outputs: how they are asked for, and how an answer becomes its type."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from agentflow.errors import ConfigurationError, OutputInvalid
from agentflow.models.conversation import check_conversation
from agentflow.models.media import ImagePart
from agentflow.models.messages import Message, Origin, TextPart, ToolCall, ToolResult
from agentflow.models.output import FINAL_ANSWER, ask_again, lower_output, output_spec, with_output
from agentflow.models.protocol import Capabilities
from agentflow.models.replies import decode_reply, encode_reply
from agentflow.models.response import ModelRequest, ModelResponse, ModelSettings, OutputSpec, ToolSpec, Usage
from agentflow.models.values import canonical_json

NATIVE, TOOLS, WORDS = Capabilities(json_schema=True), Capabilities(), Capabilities(tools=False)


class Kind(Enum):
    SMALL = "small"


class Resolution(BaseModel):
    model_config = ConfigDict(strict=True)

    reply: str
    refunded: Decimal
    on: date
    kind: Kind


class Tree(BaseModel):
    children: list[Tree] = []


IMAGE = {"kind": "image", "media_type": "image/png", "data": "iVBORw0KGgo="}
RESOLUTION = Resolution(reply="Done", refunded=Decimal("12.50"), on=date(2026, 11, 2), kind=Kind.SMALL)


def spec_of(output: Any, capabilities: Capabilities = NATIVE) -> OutputSpec:
    spec = output_spec(output, capabilities=capabilities)
    assert spec is not None
    return spec


def answer(reply: Any, spec: OutputSpec) -> ModelResponse:
    request = ModelRequest(model="any:model", messages=["Hi"], output=spec)
    return decode_reply(encode_reply(reply, request, name="test"))


@pytest.mark.parametrize("capabilities", [NATIVE, TOOLS, WORDS])
@pytest.mark.parametrize(
    ("output", "value"),
    [
        (Resolution, RESOLUTION),
        (Tree, Tree(children=[Tree()])),
        (list[Resolution], [RESOLUTION]),
        (list[int], []),
        (dict[str, int], {"a": 1}),
        (int, 7),
        (bool, False),
        (Resolution | None, None),
        (Literal["yes", "no"], "yes"),
        (tuple[int, str], (1, "a")),
        (Annotated[int, Field(gt=0, json_schema_extra={"x": []})], 3),
    ],
)
def test_any_type_comes_back_by_any_way(capabilities: Capabilities, output: Any, value: Any) -> None:
    spec = spec_of(output, capabilities)
    assert spec.schema["type"] == "object"
    told = TypeAdapter(output).dump_python(value, mode="json")

    response = with_output(answer({"value": told} if spec.wrapped else told, spec), spec, output)

    assert response.output == value
    assert type(response.output) is type(value)
    assert (response.tool_calls, response.finish_reason) == ([], "stop")
    # The conversation can go on after it, also where a tool was called for the answer.
    check_conversation([Message("user", "Hi"), *response.messages, Message("user", "Thanks")])


def test_text_is_the_output_when_none_is_asked_for() -> None:
    assert output_spec(str, capabilities=NATIVE) is None
    assert with_output(ModelResponse(text="Hello"), None, str).output == "Hello"


def test_the_way_is_chosen_by_what_the_model_can_do() -> None:
    assert [spec_of(int, can).mode for can in (NATIVE, TOOLS, WORDS)] == ["native", "tool", "prompted"]


def test_a_way_by_tool_or_words_is_an_ordinary_request() -> None:
    search = ToolSpec("search", "Search.", {})
    by_tool = ModelRequest(model="a:b", messages="Hi", tools=(search,), output=spec_of(Resolution, TOOLS))
    lowered = lower_output(by_tool)
    assert [tool.name for tool in lowered.tools] == ["search", FINAL_ANSWER]
    assert (lowered.output, lowered.settings.tool_choice) == (None, "required")

    by_words = ModelRequest(
        model="a:b", messages="Hi", instructions="Be brief.", output=spec_of(Resolution, WORDS)
    )
    lowered = lower_output(by_words)
    assert lowered.instructions is not None
    assert lowered.instructions.startswith("Be brief.\n\n")
    assert '"refunded"' in lowered.instructions

    native = ModelRequest(model="a:b", messages="Hi", output=spec_of(Resolution))
    assert lower_output(native) == native


def test_a_tool_of_the_users_may_not_be_called_final_answer() -> None:
    tool = ToolSpec(FINAL_ANSWER, "", {})
    for capabilities in (NATIVE, TOOLS):
        request = ModelRequest(
            model="a:b", messages="Hi", tools=(tool,), output=spec_of(Resolution, capabilities)
        )
        with pytest.raises(ConfigurationError, match="rename"):
            lower_output(request)


@pytest.mark.parametrize(
    "fence", ["{}", "```json\n{}\n```", "Here you are:\n```\n{}\n```\nBye.", "Sure! {} Bye."]
)
def test_json_among_words_is_found(fence: str) -> None:
    text = RESOLUTION.model_dump_json()
    spec = spec_of(Resolution, WORDS)
    assert with_output(ModelResponse(text=fence.format(text)), spec, Resolution).output == RESOLUTION


@pytest.mark.parametrize("text", ["", "I would rather not.", "{", '{"reply": 1}', "[]", "null"])
def test_what_does_not_validate_keeps_its_response(text: str) -> None:
    with pytest.raises(OutputInvalid) as raised:
        with_output(ModelResponse(text=text), spec_of(Resolution), Resolution)
    assert raised.value.response is not None
    assert raised.value.response.text == text


def test_a_cut_answer_is_told_to_be_cut() -> None:
    cut = ModelResponse(text='{"reply": "Do', finish_reason="length")
    with pytest.raises(OutputInvalid, match="max_tokens"):
        with_output(cut, spec_of(Resolution), Resolution)


@pytest.mark.parametrize("reason", ["refusal", "content_filter", "pause"])
def test_an_answer_that_is_no_output_is_none_and_no_error(reason: Any) -> None:
    response = ModelResponse(text="I cannot help with that.", finish_reason=reason)
    assert with_output(response, spec_of(Resolution), Resolution).output is None


def test_a_turn_with_ordinary_tool_calls_has_no_output_yet() -> None:
    response = answer(["Let me see.", ToolCall(name="search")], spec_of(Resolution, TOOLS))
    read = with_output(response, spec_of(Resolution, TOOLS), Resolution)
    assert read.output is None
    assert [call.name for call in read.tool_calls] == ["search"]


def test_a_final_answer_beside_other_calls_leaves_the_others_to_be_answered() -> None:
    spec = spec_of(int, TOOLS)
    read = with_output(
        answer([ToolCall(name="search"), ToolCall(name=FINAL_ANSWER, args={"value": 3})], spec), spec, int
    )
    assert (read.output, [call.name for call in read.tool_calls]) == (3, ["search"])
    assert [result.call_id for message in read.messages for result in message.tool_results] == ["call_1"]


@pytest.mark.parametrize("capabilities", [NATIVE, TOOLS])
def test_asking_again_makes_a_whole_conversation(capabilities: Capabilities) -> None:
    spec = spec_of(Resolution, capabilities)
    with pytest.raises(OutputInvalid) as raised:
        with_output(answer({"reply": "Done"}, spec), spec, Resolution)

    conversation = [Message("user", "Hi"), *ask_again(raised.value)]

    check_conversation(conversation)
    assert "refunded" in str(conversation[-1])


def test_settings_given_later_win() -> None:
    base = ModelSettings(temperature=0.1, max_tokens=10, extra={"a": 1, "b": 1})
    merged = base.merged(ModelSettings(temperature=0.5, extra={"b": 2}))
    assert merged == ModelSettings(temperature=0.5, max_tokens=10, extra={"a": 1, "b": 2})


def test_the_digest_is_the_same_for_the_same_request_and_no_other() -> None:
    request = ModelRequest(model="a:b", messages="Hi", output=spec_of(Resolution))
    again = ModelRequest.model_validate_json(request.model_dump_json())
    assert again.digest() == request.digest()
    assert request.model_copy(update={"instructions": "x"}).digest() != request.digest()
    assert (
        request.model_copy(update={"output": replace(spec_of(Resolution), mode="tool")}).digest()
        != request.digest()
    )


def test_a_request_s_canonical_json_is_that_of_the_whole() -> None:
    call = ToolCall(id="call_0", name="look", args={"b": [1.5, None], "a": '\u00e9"'})
    request = ModelRequest(
        model="a:b",
        messages=[
            Message(role="user", parts=[TextPart("Hi"), ImagePart.model_validate(IMAGE)]),
            Message(role="assistant", parts=[call], origin=Origin(provider="a", items=[{"z": 1, "a": 2}])),
            Message(role="tool", parts=[ToolResult("call_0", {"k": [1, 2]})]),
        ],
        instructions="Be short.",
        tools=(ToolSpec("look", "Look.", {"type": "object"}), ToolSpec("see", "See.", {"type": "object"})),
        output=spec_of(Resolution),
        settings=ModelSettings(temperature=0.5, stop=("a", "b")),
    )
    asked = request.model_dump(mode="json") | {"settings": {"temperature": 0.5, "stop": ["a", "b"]}}
    for _ in range(2):  # the second time from what the messages and tools keep
        assert request.model_copy().canonical == canonical_json(asked)


def test_a_copy_of_a_message_keeps_nothing_that_was_derived() -> None:
    message = Message(role="user", parts=[TextPart("Hi")])
    asked = message.canonical
    assert message.with_text("Ho").canonical == asked.replace("Hi", "Ho")
    assert message == Message(role="user", parts=[TextPart("Hi")])
    assert message.model_dump() == Message(role="user", parts=[TextPart("Hi")]).model_dump()


def test_a_spec_is_made_once_for_a_type_and_a_mode() -> None:
    assert spec_of(Resolution) is spec_of(Resolution)
    assert (spec_of(Resolution).mode, spec_of(Resolution, TOOLS).mode) == ("native", "tool")
    unhashable = Annotated[int, Field(json_schema_extra={"x": [1]}), ["a list"]]
    assert spec_of(unhashable) == spec_of(unhashable)


@pytest.mark.parametrize(
    "reply",
    [
        "Hello",
        "",
        ToolCall(name="look", args={"where": "there"}),
        ["First", ToolCall(name="look", args={}), ToolCall(name="see", id="mine", args={"a": [1]})],
    ],
)
def test_a_reply_is_the_raw_answer_of_the_response_it_stands_for(reply: Any) -> None:
    request = ModelRequest(model="any:model", messages=["Hi"])
    raw = encode_reply(reply, request, name="test")
    parts = reply if isinstance(reply, list) else [reply]
    whole = ModelResponse(
        text="".join(part for part in parts if isinstance(part, str)),
        tool_calls=[part for part in parts if isinstance(part, ToolCall)],
        usage=Usage.model_validate(raw["usage"]),
    )
    assert raw == encode_reply(whole, request, name="test")
    assert list(raw) == list(encode_reply(whole, request, name="test"))
