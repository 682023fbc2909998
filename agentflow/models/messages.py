"""What is said in a conversation: messages and their parts, the same for every provider.

The parts are the normal form. A message that a model wrote also keeps its `Origin`, the provider's own
content items untouched: thinking signatures, encrypted reasoning and citations go back byte for byte on the
next turn, and another provider, which could not read them, is told the parts alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from agentflow.errors import InvalidInput

Role: TypeAlias = Literal["user", "assistant", "tool"]


class Value(BaseModel):
    """A frozen value that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Positional(Value):
    """A value whose first fields may also be given by position, in the order of `by_position`."""

    by_position: ClassVar[tuple[str, ...]] = ()

    if not TYPE_CHECKING:  # type checkers see the keywords, which is what we write ourselves

        def __init__(self, *args: Any, **fields: Any) -> None:
            if len(args) > len(self.by_position):
                raise TypeError(f"{type(self).__name__} takes {len(self.by_position)} arguments by position")
            if args:
                super().__init__(**dict(zip(self.by_position, args, strict=False)), **fields)
            else:
                super().__init__(**fields)

        # To pydantic it is no `__init__` of a user's, which had to be called for each value that comes from JSON.
        __init__.__pydantic_base_init__ = True


class TextPart(Positional):
    """A block of text."""

    by_position = ("text",)

    kind: Literal["text"] = "text"
    text: str


class ReasoningPart(Value):
    """What the model let see of its thinking, for people to read; may be empty. Its signature is in the
    `Origin`.
    """

    kind: Literal["reasoning"] = "reasoning"
    text: str = ""


class OpaquePart(Value):
    """A content item that only its provider understands (a server-side search and its results, say)."""

    kind: Literal["opaque"] = "opaque"
    type: str


class ImagePart(Value):
    """An image that a tool gave; `data` is base64."""

    kind: Literal["image"] = "image"
    media_type: str
    data: str


class ToolCall(Positional):
    """A tool that the model wants called.

    `index` counts the calls of one answer from 0; `id` is the provider's, made unique within the answer
    where a gateway sends empty or repeated ones. Where the model wrote arguments that are no JSON object,
    `args` is empty and `invalid_args` is what it wrote.
    """

    by_position = ("index", "id", "name", "args")

    kind: Literal["tool_call"] = "tool_call"
    index: int = 0
    id: str = ""
    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    invalid_args: str | None = None


class ToolResult(Positional):
    """The answer to one tool call: text, or a JSON value."""

    by_position = ("call_id", "content", "is_error")

    kind: Literal["tool_result"] = "tool_result"
    call_id: str
    content: Any = ""
    is_error: bool = False

    @property
    def text(self) -> str:
        """The content as a model is shown it: text as it is, everything else as JSON; of images that they are there."""
        if isinstance(self.content, str):
            return self.content
        if blocks := self.blocks:
            return "\n".join(_told(block) for block in blocks)
        return json.dumps(self.content, ensure_ascii=False, separators=(",", ":"))

    @property
    def blocks(self) -> list[TextPart | ImagePart]:
        """The content of a tool that gave images, text and images in their order; of all others `[]`.

        Such content is a list of `{"kind": "text", "text"}` and `{"kind": "image", "media_type", "data"}`.
        """
        if not isinstance(self.content, list) or not any(_is_kind(item, "image") for item in self.content):
            return []
        try:
            return _BLOCKS.validate_python(self.content)
        except ValidationError:
            return []  # some JSON of the user's


def _is_kind(item: object, kind: str) -> bool:
    return isinstance(item, dict) and item.get("kind") == kind


def _told(block: TextPart | ImagePart) -> str:
    if isinstance(block, TextPart):
        return block.text
    return f"[{block.media_type}, {len(block.data.rstrip('=')) * 3 // 4} bytes: not shown]"


_BLOCKS: TypeAdapter[list[TextPart | ImagePart]] = TypeAdapter(
    list[Annotated[TextPart | ImagePart, Field(discriminator="kind")]]
)

Part: TypeAlias = Annotated[
    TextPart | ReasoningPart | OpaquePart | ToolCall | ToolResult, Field(discriminator="kind")
]


class Origin(Value):
    """The content items of a message exactly as its provider sent them, in their order."""

    provider: str
    items: list[dict[str, Any]]
    beside: dict[str, Any] = Field(default_factory=dict)
    """What stood beside the items and has to come back with them (the container that their code ran in)."""


class Message(Positional):
    """One message of a conversation.

    A str is a user's message, and `content` may stand for `parts`: `Message.model_validate("hello")`,
    `Message.model_validate({"role": "user", "content": "hello"})`.
    """

    by_position = ("role", "parts")

    role: Role
    parts: list[Part]
    origin: Origin | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_the_short_forms(cls, value: object) -> object:
        if isinstance(value, str):
            return {"role": "user", "parts": [{"kind": "text", "text": value}]}
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if "content" in value:
            if value.get("parts"):
                raise ValueError("a message has parts or content, not both")
            value["parts"] = value.pop("content")
        if value.get("role") in ("system", "developer"):
            raise ValueError("system text is no message of the conversation: pass it as instructions=")
        if "parts" in value:
            value["parts"] = _as_parts(value["parts"])
        return value

    @model_validator(mode="after")
    def _hold_what_the_role_may_say(self) -> Message:
        allowed = _PARTS_OF[self.role]
        for part in self.parts:
            if part.kind not in allowed:
                raise ValueError(f"a message of role {self.role!r} cannot hold a part of kind {part.kind!r}")
        return self

    @property
    def text(self) -> str:
        """All text blocks, joined with nothing between."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [part for part in self.parts if isinstance(part, ToolCall)]

    @property
    def tool_results(self) -> list[ToolResult]:
        return [part for part in self.parts if isinstance(part, ToolResult)]


_PARTS_OF: dict[str, tuple[str, ...]] = {
    "user": ("text",),
    "assistant": ("text", "reasoning", "opaque", "tool_call"),
    "tool": ("tool_result",),
}


def _as_parts(value: object) -> object:
    if isinstance(value, str):
        return [{"kind": "text", "text": value}]
    if isinstance(value, list | tuple):
        return [_as_part(item) for item in value]
    return value


def _as_part(value: object) -> object:
    if isinstance(value, str):
        return {"kind": "text", "text": value}
    # {"type": "text", "text": ...} is how both big APIs write it.
    if isinstance(value, dict) and value.get("type") == "text" and "kind" not in value:
        return {"kind": "text", "text": value.get("text")}
    return value


MessageLike: TypeAlias = Message | str | dict[str, Any]


def to_messages(value: MessageLike | Sequence[MessageLike]) -> list[Message]:
    """A conversation from a str, one message or several; raises `InvalidInput`."""
    items: Sequence[MessageLike] = [value] if isinstance(value, Message | str | dict) else value
    messages = []
    for position, item in enumerate(items):
        try:
            messages.append(item if isinstance(item, Message) else Message.model_validate(item))
        except ValidationError as error:
            reasons = "; ".join(_reason(detail["loc"], detail["msg"]) for detail in error.errors())
            raise InvalidInput(
                f"message {position} of the conversation does not validate: {reasons}"
            ) from error
    return messages


def _reason(where: tuple[int | str, ...], what: str) -> str:
    return f"{'.'.join(map(str, where))}: {what}" if where else what
