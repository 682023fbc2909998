"""What is said in a conversation: messages and their parts, the same for every provider.

The parts are the normal form. A message that a model wrote also keeps its `Origin`, the provider's own
content items untouched: thinking signatures, encrypted reasoning and citations go back byte for byte on the
next turn, and another provider, which could not read them, is told the parts alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from agentflow.errors import InvalidInput
from agentflow.models.media import FilePart, ImagePart, Media
from agentflow.models.values import Derived, Positional, Value, canonical_json

Role: TypeAlias = Literal["user", "assistant", "tool"]


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
    """The answer to one tool call: text, a JSON value, or what a tool gave to be shown (`blocks`)."""

    by_position = ("call_id", "content", "is_error")

    kind: Literal["tool_result"] = "tool_result"
    call_id: str
    content: Any = ""
    is_error: bool = False

    @property
    def text(self) -> str:
        """The content as a model is shown it that reads text alone: text as it is, everything else as JSON; of images
        and files that they are there."""
        if isinstance(self.content, str):
            return self.content
        if blocks := self.blocks:
            return "\n".join(block.text if isinstance(block, TextPart) else block.told for block in blocks)
        return json.dumps(self.content, ensure_ascii=False, separators=(",", ":"))

    @property
    def blocks(self) -> list[UserPart]:
        """The content of a tool that gave images or files, these and the text between in their order; of all others
        `[]`.

        Such content is a part as pydantic writes it, or a list of them and of str; or, as MCP servers give it, a list
        of `{"kind": "text", "text"}` and `{"kind": "image", "media_type", "data"}`.
        """
        items = self.content if isinstance(self.content, list) else [self.content]
        if not any(_is_shown(item) for item in items):
            return []
        try:
            return _BLOCKS.validate_python([_as_part(item) for item in items])
        except ValidationError:
            return []  # some JSON of the user's


def _is_shown(item: object) -> bool:
    """Whether it is an image or a file. JSON of the user's may look much alike: each field has to be there."""
    if not isinstance(item, dict):
        return False
    if item.get("kind") == "image" and {"media_type", "data"} <= item.keys():
        return True
    fields = {"image": ImagePart.model_fields, "file": FilePart.model_fields}.get(str(item.get("kind")))
    return fields is not None and fields.keys() <= item.keys()


UserPart: TypeAlias = TextPart | ImagePart | FilePart
"""What a user's message is made of."""
_BLOCKS: TypeAdapter[list[UserPart]] = TypeAdapter(list[Annotated[UserPart, Field(discriminator="kind")]])

Part: TypeAlias = Annotated[
    TextPart | ImagePart | FilePart | ReasoningPart | OpaquePart | ToolCall | ToolResult,
    Field(discriminator="kind"),
]


class Origin(Value):
    """The content items of a message exactly as its provider sent them, in their order."""

    provider: str
    items: list[dict[str, Any]]
    beside: dict[str, Any] = Field(default_factory=dict)
    """What stood beside the items and has to come back with them (the container that their code ran in)."""


class Message(Positional, Derived):
    """One message of a conversation.

    A str is a user's message, and `content` may stand for `parts`: `Message.model_validate("hello")`,
    `Message.model_validate({"role": "user", "content": "hello"})`. A user's parts are text, images and files.
    """

    by_position = ("role", "parts")

    role: Role
    parts: list[Part]
    origin: Origin | None = None

    derived: ClassVar[tuple[str, ...]] = ("canonical", "media")

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

    @cached_property
    def canonical(self) -> str:
        """Its canonical JSON, which each request of the conversation from then on holds."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def text(self) -> str:
        """All text blocks, joined with nothing between."""
        return "".join([part.text for part in self.parts if part.kind == "text"])

    def with_text(self, text: str) -> Message:
        """The same with this text alone, where its first text is; images and files stay where they are."""
        place = next((n for n, part in enumerate(self.parts) if isinstance(part, TextPart)), 0)
        before, after = self.parts[:place], self.parts[place:]
        others = [part for part in after if not isinstance(part, TextPart)]
        return self.model_copy(update={"parts": [*before, TextPart(text=text), *others]})

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [part for part in self.parts if part.kind == "tool_call"]

    @property
    def tool_results(self) -> list[ToolResult]:
        return [part for part in self.parts if part.kind == "tool_result"]

    @property
    def user_parts(self) -> list[UserPart]:
        """Its texts, images and files, in their order."""
        return [part for part in self.parts if isinstance(part, TextPart | ImagePart | FilePart)]

    @cached_property
    def media(self) -> list[ImagePart | FilePart]:
        """Its images and files, those of tool results too."""
        if self.role == "tool":
            blocks = [block for result in self.tool_results for block in result.blocks]
            return [block for block in blocks if block.kind != "text"]
        return [part for part in self.parts if part.kind == "image" or part.kind == "file"]


_PARTS_OF: dict[str, tuple[str, ...]] = {
    "user": ("text", "image", "file"),
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


_MESSAGES = frozenset((Message,))

MessageLike: TypeAlias = Message | str | dict[str, Any] | UserPart


def to_messages(value: MessageLike | Sequence[MessageLike]) -> list[Message]:
    """A conversation from a str, one message or several; raises `InvalidInput`.

    In a list that holds parts (`["What is this?", ImagePart(...)]`), those and the str beside them are one message of
    the user's; in any other list a str is a message of its own.
    """
    if isinstance(value, list | tuple) and _MESSAGES.issuperset(map(type, value)):
        return list(value)
    items: Sequence[MessageLike] = (
        [value] if isinstance(value, Message | str | dict | TextPart | Media) else list(value)
    )
    if any(_is_part(item) for item in items):
        items = _with_parts_as_messages(items)
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


def _is_part(item: object) -> bool:
    return isinstance(item, TextPart | Media) or (
        isinstance(item, dict) and "kind" in item and "role" not in item
    )


def _with_parts_as_messages(items: Sequence[MessageLike]) -> list[MessageLike]:
    made: list[MessageLike] = []
    said: list[Any] = []
    for item in items:
        if isinstance(item, str) or _is_part(item):
            if not said:
                made.append({"role": "user", "parts": said})
            said.append(item)
        else:
            made.append(item)
            said = []
    return made


def _reason(where: tuple[int | str, ...], what: str) -> str:
    return f"{'.'.join(map(str, where))}: {what}" if where else what
