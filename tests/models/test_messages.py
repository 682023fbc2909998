"""Messages: what they accept, what they refuse, and that JSON brings them back equal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from agentflow.errors import InvalidInput
from agentflow.models.messages import (
    Message,
    OpaquePart,
    Origin,
    ReasoningPart,
    TextPart,
    ToolCall,
    ToolResult,
    to_messages,
)

texts = st.text(max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(texts, json_values, max_size=3)
calls = st.builds(
    ToolCall, index=st.integers(0, 9), id=texts, name=texts, args=objects, invalid_args=st.none() | texts
)
parts = st.one_of(
    st.builds(TextPart, text=texts),
    st.builds(ReasoningPart, text=texts),
    st.builds(OpaquePart, type=texts),
    calls,
)
origins = st.none() | st.builds(Origin, provider=texts, items=st.lists(objects, max_size=3))
messages = st.one_of(
    st.builds(Message, role=st.just("assistant"), parts=st.lists(parts, max_size=4), origin=origins),
    st.builds(Message, role=st.just("user"), parts=st.lists(st.builds(TextPart, text=texts), max_size=2)),
    st.builds(
        Message,
        role=st.just("tool"),
        parts=st.lists(
            st.builds(ToolResult, call_id=texts, content=json_values, is_error=st.booleans()), max_size=3
        ),
    ),
)


@given(messages)
def test_a_message_comes_back_equal_from_json(message: Message) -> None:
    assert Message.model_validate_json(message.model_dump_json()) == message
    adapter = TypeAdapter(list[Message])
    assert adapter.validate_python(adapter.dump_python([message], mode="json")) == [message]


@pytest.mark.parametrize(
    "given_as",
    [
        "Hello",
        {"role": "user", "content": "Hello"},
        {"role": "user", "content": ["Hello"]},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "user", "parts": [{"kind": "text", "text": "Hello"}]},
        Message("user", ["Hello"]),
        Message(role="user", parts=[TextPart(text="Hello")]),
    ],
)
def test_the_same_message_may_be_given_in_short(given_as: Any) -> None:
    assert (
        to_messages(given_as)
        == to_messages([given_as])
        == [Message(role="user", parts=[TextPart(text="Hello")])]
    )


@pytest.mark.parametrize(
    ("given_as", "told"),
    [
        ({"role": "system", "content": "Be nice"}, "instructions="),
        ({"role": "robot", "content": "Hi"}, "role"),
        ({"role": "user", "content": "Hi", "name": "Ana"}, "name: Extra inputs"),
        ({"role": "user"}, "parts: Field required"),
        ({"role": "user", "content": [{"kind": "tool_call", "name": "x"}]}, "cannot hold"),
        ({"role": "tool", "content": "Hi"}, "cannot hold"),
        ({"role": "user", "content": "a", "parts": ["b"]}, "not both"),
        (7, "message 1 of the conversation"),
    ],
)
def test_what_is_no_message_is_refused_with_its_place(given_as: Any, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        to_messages(["Hello", given_as])


def test_values_may_be_given_by_position_and_stay_as_they_are() -> None:
    call = ToolCall(0, "c1", "refund", {"amount": 5})
    assert call == ToolCall(index=0, id="c1", name="refund", args={"amount": 5})
    assert ToolResult("c1", "done") == ToolResult(call_id="c1", content="done")
    with pytest.raises(ValidationError, match="frozen"):
        call.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="name"):
        ToolCall(0, "c1")
    with pytest.raises(TypeError, match="3 arguments"):
        ToolResult("c1", "done", False, "more")


def test_the_text_of_a_message_is_all_its_text_blocks_with_nothing_between() -> None:
    message = Message("assistant", ["One, ", ReasoningPart(text="hm"), "two"])
    assert message.text == "One, two"
    assert Message("assistant", []).text == ""


def test_a_result_is_shown_to_a_model_as_text_or_json() -> None:
    assert ToolResult("c", "plain").text == "plain"
    assert ToolResult("c", {"größe": [1, None]}).text == '{"größe":[1,null]}'
