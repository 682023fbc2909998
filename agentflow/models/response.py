"""What is asked of a model and what comes of it: request, raw answer, response, usage.

The provider's raw answer is the memo of a model call. `ModelResponse` is always derived from it, so a
reader that is mended later reads old answers right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from decimal import Decimal
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, field_validator
from pydantic.dataclasses import dataclass

from agentflow.errors import InvalidInput
from agentflow.models.media import FilePart, ImagePart
from agentflow.models.messages import Message, ToolCall, to_messages
from agentflow.models.values import Derived, Value, canonical_json

Latency: TypeAlias = Literal["batch", "2h", "8h"]
"""How much later than at once a cheaper answer may come."""

FinishReason: TypeAlias = Literal["stop", "tool_calls", "length", "refusal", "content_filter", "pause"]


class Usage(Value):
    """Tokens of one call or of many: input includes cached and cache-write, output includes reasoning."""

    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )


class ModelSettings(Derived):
    """How a model is to answer. None leaves the choice to the provider.

    `extra` is merged into the provider's request body last, as it is: what only one provider knows goes
    there.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = Field(default=None, gt=0)
    stop: tuple[str, ...] = ()
    seed: int | None = None
    tool_choice: str | None = None
    """`auto`, `required`, `none`, or the name of the tool to call."""
    parallel_tool_calls: bool | None = None
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """How hard to think, for models that do."""
    thinking_tokens: int | None = Field(default=None, gt=0)
    """A budget for thinking, for models that take one (Anthropic)."""
    latency: Latency | None = None
    """Cheaper and later: the batch APIs (up to a day), or the completion windows of OpenAI's Responses."""
    cache: Literal["5m", "1h", "24h"] | None = None
    """For how long the provider is to keep the beginning of the prompt: instructions, tools, what was said. Reading it
    there again is much cheaper. Anthropic's API keeps nothing unless it is told to, and then 5 minutes or an hour
    (writing it for an hour costs twice the input); OpenAI's keeps by itself, and longer for `24h`."""
    cache_key: str | None = Field(default=None, min_length=1)
    """Says which requests begin alike, so that OpenAI sends them where their beginning is kept."""
    extra: dict[str, Any] = Field(default_factory=dict)

    derived: ClassVar[tuple[str, ...]] = ("canonical",)

    @cached_property
    def canonical(self) -> str:
        """The canonical JSON of the settings that somebody made: one that comes to be later leaves the digests of
        before as they are."""
        return canonical_json(self.model_dump(mode="json", exclude_defaults=True))

    def merged(self, other: ModelSettings | None) -> ModelSettings:
        """These settings, with what `other` sets taking their place."""
        if other is None:
            return self
        return ModelSettings.model_validate(
            self.model_dump(exclude_unset=True)
            | other.model_dump(exclude_unset=True)
            | {"extra": {**self.extra, **other.extra}}
        )


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ToolSpec:
    """A tool as the model is told of it; `schema` is the JSON Schema of its arguments."""

    name: str
    description: str
    schema: dict[str, Any]

    @cached_property
    def canonical(self) -> str:
        """Its canonical JSON, which each request of an agent that has the tool holds."""
        return canonical_json(_TOOL.dump_python(self, mode="json"))


_TOOL = TypeAdapter(ToolSpec)

OutputMode: TypeAlias = Literal["native", "tool", "prompted"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class OutputSpec:
    """A structured output as the model is told of it.

    `schema` always describes an object. A type that is none (a list, a number, a union) is `wrapped`: it is
    the object's one property `value`.
    """

    name: str
    schema: dict[str, Any]
    mode: OutputMode = "native"
    wrapped: bool = False


_OUTPUT = TypeAdapter(OutputSpec)


class ModelRequest(Derived):
    """One question to a model. `model` is "provider:model"."""

    model: str
    messages: list[Message]
    instructions: str | None = None
    tools: tuple[ToolSpec, ...] = ()
    output: OutputSpec | None = None
    settings: ModelSettings = ModelSettings()

    @field_validator("messages", mode="before")
    @classmethod
    def _accept_what_messages_may_be(cls, value: Any) -> list[Message]:
        return to_messages(value)

    @property
    def prompt(self) -> str:
        """The text of the last user message, `""` when there is none."""
        return next((message.text for message in reversed(self.messages) if message.role == "user"), "")

    @property
    def media(self) -> list[ImagePart | FilePart]:
        """The images and files in its messages."""
        return [part for message in self.messages for part in message.media]

    derived: ClassVar[tuple[str, ...]] = ("canonical", "_digest")

    @cached_property
    def canonical(self) -> str:
        """The request's canonical JSON, put together from what its parts keep: a conversation grows by a message, and
        the messages before are what they were."""
        output = None if self.output is None else _OUTPUT.dump_python(self.output, mode="json")
        return (
            f'{{"instructions":{canonical_json(self.instructions)}'
            f',"messages":[{",".join([message.canonical for message in self.messages])}]'
            f',"model":{canonical_json(self.model)}'
            f',"output":{canonical_json(output)}'
            f',"settings":{self.settings.canonical}'
            f',"tools":[{",".join([tool.canonical for tool in self.tools])}]}}'
        )

    def digest(self) -> str:
        """SHA-256 of the request's canonical JSON: what the ledger keeps in place of the request."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        try:
            return "sha256:" + hashlib.sha256(self.canonical.encode()).hexdigest()
        except UnicodeEncodeError as error:
            around = ascii(self.canonical[max(error.start - 20, 0) : error.end + 20])
            raise InvalidInput(
                f"what {self.model} is to be asked holds a lone surrogate, which has no UTF-8: {around}"
            ) from None


class RawAnswer(Value):
    """A provider's answer exactly as it came: the memo of a model call.

    `cost` and `priced_by` are set when it is stored, at the prices of that day.
    """

    provider: str
    model: str
    raw: dict[str, Any]
    provider_id: str | None = None
    cost: Decimal | None = None
    priced_by: str | None = None


class ModelResponse(Value):
    """A model's answer in normal form.

    `text` is all text blocks joined; `output` the validated output, the text itself when none was asked for;
    `tool_calls` what the caller is to answer; `messages` what the answer adds to the conversation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    text: str = ""
    output: Any = None
    tool_calls: list[ToolCall] = Field(default_factory=list)
    messages: list[Message] = Field(default_factory=list)
    usage: Usage = Usage()
    cost: Decimal | None = None
    finish_reason: FinishReason = "stop"
    provider_id: str | None = None
    model: str = ""
    raw: dict[str, Any] = Field(default_factory=dict)


class NumberedDelta(Value):
    """A piece of an answer; `number` is the provider's, where its streams can be resumed after one."""

    number: int | None = None


class TextDelta(NumberedDelta):
    """More of the answer's text."""

    kind: Literal["text"] = "text"
    text: str


class ReasoningDelta(NumberedDelta):
    """More of what the model lets see of its thinking."""

    kind: Literal["reasoning"] = "reasoning"
    text: str


class ToolArgsDelta(NumberedDelta):
    """More of the arguments of tool call `index`, as JSON text; `name` is set on the first one."""

    kind: Literal["tool_args"] = "tool_args"
    index: int
    text: str
    name: str | None = None


class AttemptReset(Value):
    """What was told of the answer so far is void: the model is asked again. It comes from `agent.stream`."""

    kind: Literal["attempt_reset"] = "attempt_reset"


Delta: TypeAlias = TextDelta | ReasoningDelta | ToolArgsDelta


def total_usage(usages: Sequence[Usage]) -> Usage:
    return sum(usages, Usage())


messages_adapter: TypeAdapter[list[Message]] = TypeAdapter(list[Message])
"""Conversations to and from JSON."""
