"""From a raw answer to a response: the one way, on the first run and on every replay."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

from agentflow.models.output import with_output
from agentflow.models.pricing import cost_of, prices_version
from agentflow.models.protocol import Model, model_ref, prices_apart
from agentflow.models.response import ModelResponse, OutputSpec, RawAnswer

logger = logging.getLogger(__name__)


class Priced(NamedTuple):
    """An answer with today's cost, to be stored; and what it says, where it can be read."""

    answer: RawAnswer
    response: ModelResponse | None


def priced(model: Model, answer: RawAnswer, *, latency: str | None = None) -> Priced:
    """The answer with its price. Never raises: a paid answer must not be lost for want of a price, nor when it cannot
    be read."""
    try:
        response = model.parse(answer.raw)
    except Exception:
        logger.exception("answer %s of %s cannot be read", answer.provider_id, model_ref(model))
        return Priced(answer, None)
    try:
        cost = response.cost
        # An answer without usage is one of unknown cost, not a free one: some gateways count no tokens.
        if cost is None and response.usage.total_tokens:
            cost = cost_of(
                getattr(model, "priced_as", model.provider),
                response.model or model.model,
                response.usage,
                latency=latency,
                apart=model.priced_apart(answer.raw) if prices_apart(model) else None,
            )
    except Exception:
        logger.exception("no price for answer %s of %s", answer.provider_id, model_ref(model))
        return Priced(answer, response)
    return Priced(answer.model_copy(update={"cost": cost, "priced_by": prices_version(latency)}), response)


def read_answer(
    model: Model, answer: RawAnswer, *, spec: OutputSpec | None = None, output: Any = str
) -> ModelResponse:
    """The response in a stored answer, its output decoded as `output`; raises `OutputInvalid(.response)`.

    `model` is any model of the provider that gave the answer; `spec` is the request's `output`.
    """
    return finished(model.parse(answer.raw), answer, spec=spec, output=output)


class HasPrice(Protocol):
    """An answer, or the memo of one."""

    @property
    def cost(self) -> Decimal | None: ...

    @property
    def priced_by(self) -> str | None: ...


def finished(
    response: ModelResponse, stored: HasPrice, *, spec: OutputSpec | None, output: Any
) -> ModelResponse:
    """What a provider's `parse` made of the answer, with the cost that was stored and the output."""
    if stored.priced_by is not None and stored.cost != response.cost:
        response = response.model_copy(update={"cost": stored.cost})
    return with_output(response, spec, output)
