"""What every provider demands of a conversation, and what the one that is asked can carry of it, checked before the
request leaves: a paid-for 400 tells less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agentflow.errors import InvalidInput
from agentflow.models.media import ImagePart
from agentflow.models.messages import Message
from agentflow.models.protocol import Model, checks_content, model_ref


def check_conversation(messages: Sequence[Message]) -> None:
    """Raise `InvalidInput` unless every tool call has exactly one result and the roles come in order."""
    if not messages:
        raise InvalidInput("the conversation is empty: there is nothing to ask the model")
    if messages[0].role != "user":
        raise InvalidInput(f"message 0 is of role {messages[0].role!r}: a conversation begins with the user")
    open_calls: dict[str, None] = {}
    calls_at = 0
    for position, message in enumerate(messages):
        # A model may say nothing at all; a user or a tool may not.
        if not message.parts and message.role != "assistant":
            raise InvalidInput(f"message {position} ({message.role}) is empty")
        if message.role == "tool":
            _take_results(open_calls, message, position=position)
            continue
        _demand_answered(open_calls, calls_at, before=f"message {position} ({message.role})")
        ids = [call.id for call in message.tool_calls]
        open_calls = dict.fromkeys(ids)
        calls_at = position
        if len(open_calls) < len(ids):
            [(call_id, times)] = Counter(ids).most_common(1)
            raise InvalidInput(f"message {position} has {times} tool calls with the id {call_id!r}")
    _demand_answered(open_calls, calls_at, before="the next model call")
    last = messages[-1]
    # What a model wrote itself may be sent back for it to go on (Anthropic's pause_turn, a cut at
    # max_tokens).
    if last.role == "assistant" and last.origin is None:
        raise InvalidInput("the conversation ends with the assistant: there is nothing to ask the model")


def check_size(messages: Sequence[Message], *, most: int) -> None:
    """Raise `InvalidInput` where users' images and files have more than so many bytes in the messages themselves."""
    given = [part for message in messages if message.role == "user" for part in message.media]
    size = sum(part.content_length for part in given)
    if size > most:
        raise InvalidInput(
            f"the conversation holds {size} bytes of images and files (as base64), over the limit of {most} "
            "(Settings.max_step_bytes): give a url=, or upload them to the provider and give the file_id="
        )


def check_can_carry(model: Model, messages: Sequence[Message]) -> None:
    """Raise `InvalidInput` for an image or a file of the user's that the model's API cannot carry."""
    for position, message in enumerate(messages):
        for part in message.media if message.role == "user" else ():
            what, can = ("images", model.capabilities.images)
            if not isinstance(part, ImagePart):
                what, can = ("files", model.capabilities.files)
            if not can:
                raise InvalidInput(
                    f"message {position} has {part.told}, and {model_ref(model)} takes no {what}: ask another model"
                )
    if checks_content(model):
        model.check_content(messages)


def _take_results(open_calls: dict[str, None], message: Message, *, position: int) -> None:
    for result in message.tool_results:
        if result.call_id not in open_calls:
            raise InvalidInput(
                f"message {position} has a result for the tool call {result.call_id!r}, which the "
                "assistant's message before it did not make, or which has its result already"
            )
        del open_calls[result.call_id]


def _demand_answered(open_calls: dict[str, None], calls_at: int, *, before: str) -> None:
    if open_calls:
        raise InvalidInput(
            f"the tool call(s) {', '.join(map(repr, open_calls))} of message {calls_at} have no result before "
            f"{before}: every tool call needs exactly one"
        )
