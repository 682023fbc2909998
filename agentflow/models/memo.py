"""The memo of a model call: what is stored of it, and how it is read again, on the first run and on every replay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, NoReturn, cast

from pydantic import BaseModel, ConfigDict

from agentflow.codec import PLAIN
from agentflow.errors import ConfigurationError, Unserialisable
from agentflow.models.answers import finished, read_answer
from agentflow.models.function import FunctionModel
from agentflow.models.messages import Message
from agentflow.models.protocol import Model, model_ref
from agentflow.models.registry import ModelLike, is_model, resolve_model
from agentflow.models.response import (
    ModelRequest,
    ModelResponse,
    ModelSettings,
    OutputSpec,
    RawAnswer,
    ToolSpec,
)
from agentflow.roundtrip import whole_characters, with_texts


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a model is asked, before it is known which model."""

    messages: Sequence[Message]
    instructions: str | None = None
    tools: tuple[ToolSpec, ...] = ()
    output: Any = None
    settings: ModelSettings = field(default_factory=ModelSettings)
    keep: dict[str, Any] | None = None
    """Plain JSON that the caller wants stored beside the answer."""

    def request(self, ref: str, spec: OutputSpec | None) -> ModelRequest:
        return ModelRequest(
            model=ref,
            messages=list(self.messages),
            instructions=self.instructions,
            tools=self.tools,
            output=spec,
            settings=self.settings,
        )


class ModelMemo(BaseModel):
    """The memo of a model call: the raw answer, and what is needed to read it."""

    model_config = ConfigDict(frozen=True)

    model: str
    """ "provider:model" that gave the answer."""
    raw: dict[str, Any] | None
    raw_text: str | None = None
    """The answer as ASCII JSON text, where it holds what a database cannot keep (NUL, lone surrogates).

    `read_memo` reads what has no UTF-8 as U+FFFD: the next request could not say it.
    """
    provider_id: str | None = None
    cost: Decimal | None = None
    """US dollars, at the prices of the day it was made."""
    priced_by: str | None = None
    digest: str
    """The request's."""
    output: OutputSpec | None = None
    """What the answer was asked to be."""
    keep: dict[str, Any] | None = None

    parsed: ClassVar[ModelResponse | None] = None
    """What the answer was parsed as when it was priced, for who has just asked. It is not stored."""

    @classmethod
    def of(
        cls,
        answer: RawAnswer,
        request: ModelRequest,
        keep: dict[str, Any] | None,
        *,
        parsed: ModelResponse | None = None,
    ) -> ModelMemo:
        raw = _as_stored(answer.raw)
        memo = cls(
            model=request.model,
            raw=raw,
            raw_text=json.dumps(answer.raw) if raw is None else None,
            provider_id=answer.provider_id,
            cost=answer.cost,
            priced_by=answer.priced_by,
            digest=request.digest(),
            output=request.output,
            keep=keep,
        )
        if raw == answer.raw:
            object.__setattr__(memo, "parsed", parsed)
        return memo

    @property
    def answer(self) -> RawAnswer:
        provider, _, name = self.model.partition(":")
        return RawAnswer(
            provider=provider,
            model=name,
            raw=self.raw if self.raw is not None else json.loads(self.raw_text or "{}"),
            provider_id=self.provider_id,
            cost=self.cost,
            priced_by=self.priced_by,
        )


def _as_stored(raw: dict[str, Any]) -> dict[str, Any] | None:
    """The answer as it comes back from the database, `None` where that cannot keep it."""
    try:
        return cast(dict[str, Any], PLAIN.round_trip(raw, "an answer")[1])
    except Unserialisable:
        return None


def read_memo(memo: ModelMemo, models: Sequence[ModelLike], *, output: Any) -> ModelResponse:
    """The response in a memo. Raises `OutputInvalid`. `models` are those that may have given it."""
    if memo.parsed is not None:
        return finished(memo.parsed, memo, spec=memo.output, output=output)
    answer = memo.answer
    if memo.raw is None:
        answer = answer.model_copy(update={"raw": with_texts(answer.raw, whole_characters)})
    return read_answer(_reader(memo, models), answer, spec=memo.output, output=output)


def name_of(model: ModelLike) -> str:
    if isinstance(model, str):
        return model
    return model_ref(model) if is_model(model) else f"function:{getattr(model, '__name__', 'model')}"


def _reader(memo: ModelMemo, models: Sequence[ModelLike]) -> Model:
    """A model of the provider that gave the answer; of it only the pure `parse` is used."""
    provider = memo.model.partition(":")[0]
    for candidate in models:
        if isinstance(candidate, str) and candidate.partition(":")[0] != provider:
            continue
        model = resolve_model(candidate)
        if model.provider == provider:
            return model
    return FunctionModel(_gone) if provider == FunctionModel.provider else resolve_model(memo.model)


async def _gone(request: ModelRequest) -> NoReturn:
    raise ConfigurationError(f"the function that was the model {request.model!r} is gone")
