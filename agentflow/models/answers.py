"""From a raw answer to a response: the one way, on the first run and on every replay."""

from __future__ import annotations

import logging
from typing import Any

from agentflow.models.output import with_output
from agentflow.models.pricing import cost_of, prices_version
from agentflow.models.protocol import Model
from agentflow.models.response import ModelResponse, OutputSpec, RawAnswer

logger = logging.getLogger(__name__)


def priced(model: Model, answer: RawAnswer) -> RawAnswer:
    """The answer with today's cost, to be stored. Never raises: a paid answer must not be lost for want of
    a price.
    """
    try:
        response = model.parse(answer.raw)
        cost = response.cost
        # An answer without usage is one of unknown cost, not a free one: some gateways count no tokens. No table has a
        # price for what has no API.
        if cost is None and response.usage.total_tokens and not model.capabilities.offline:
            cost = cost_of(
                getattr(model, "priced_as", model.provider), response.model or model.model, response.usage
            )
    except Exception:
        logger.exception("no price for answer %s of %s:%s", answer.provider_id, answer.provider, answer.model)
        return answer
    return answer.model_copy(update={"cost": cost, "priced_by": prices_version()})


def read_answer(
    model: Model, answer: RawAnswer, *, spec: OutputSpec | None = None, output: Any = str
) -> ModelResponse:
    """The response in a stored answer, its output decoded as `output`; raises `OutputInvalid(.response)`.

    `model` is any model of the provider that gave the answer; `spec` is the request's `output`.
    """
    response = model.parse(answer.raw)
    if answer.priced_by is not None:
        response = response.model_copy(update={"cost": answer.cost})
    return with_output(response, spec, output)
