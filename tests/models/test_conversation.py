"""A conversation that a provider would refuse is refused before it is asked."""

from __future__ import annotations

import pytest

from agentflow.errors import InvalidInput
from agentflow.models.conversation import check_conversation
from agentflow.models.messages import Message, Origin, ToolCall, ToolResult


def calling(*ids: str) -> Message:
    return Message("assistant", [ToolCall(index, id, "tool") for index, id in enumerate(ids)])


def answering(*ids: str) -> Message:
    return Message("tool", [ToolResult(id, "ok") for id in ids])


USER = Message("user", "Hi")
SAID = Message("assistant", "Hello")
PAUSED = Message("assistant", "Let me", origin=Origin(provider="anthropic", items=[]))
SILENT = Message("assistant", [])


@pytest.mark.parametrize(
    "conversation",
    [
        [USER],
        [USER, USER],
        [USER, SAID, USER],
        [USER, SILENT, USER],
        [USER, calling("a", "b"), answering("b", "a")],
        [USER, calling("a", "b"), answering("a"), answering("b"), SAID, USER],
        [
            USER,
            calling("a"),
            answering("a"),
            calling("a"),
            answering("a"),
        ],  # a gateway's ids, one for each turn
        [USER, PAUSED],
        [USER, PAUSED, calling("a"), answering("a")],
    ],
)
def test_a_whole_conversation_passes(conversation: list[Message]) -> None:
    check_conversation(conversation)


@pytest.mark.parametrize(
    ("conversation", "told"),
    [
        ([], "is empty"),
        ([SAID, USER], "begins with the user"),
        ([USER, SAID], "ends with the assistant"),
        ([USER, Message("user", [])], "message 1 .user. is empty"),
        ([USER, calling("a", "b"), answering("a")], "'b'.*message 1 .*before the next model call"),
        ([USER, calling("a"), USER], "'a'.*before message 2"),
        ([USER, calling("a"), answering("a", "a")], "has its result already"),
        ([USER, calling("a"), answering("x")], "'x'"),
        ([USER, answering("a")], "did not make"),
        ([USER, calling("a", "a"), answering("a", "a")], "2 tool calls with the id 'a'"),
        ([USER, calling("a"), answering("a"), SAID, answering("a")], "message 4"),
    ],
)
def test_a_broken_conversation_is_refused_with_its_place(conversation: list[Message], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        check_conversation(conversation)
