"""The limits of model providers, shared by every worker: a turn is taken before a call, and settled after it.

What calls a provider does so within `model_turn`; a call that may not begin yet leaves its step, which is executed
again at its time. That is no attempt of the step.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from agentflow.errors import BudgetExceeded, ConfigurationError, ProviderError, RateLimited
from agentflow.flow import ModelRateLimit
from agentflow.models.function import FunctionModel
from agentflow.models.media import CHARACTERS_PER_TOKEN, characters_that_count
from agentflow.models.registry import known_providers
from agentflow.models.response import ModelRequest

if TYPE_CHECKING:
    from agentflow.step_runner import Attempt

ModelLimits = Mapping[str, ModelRateLimit]
"""By provider."""

DEFAULT_BACK_OFF: Final = 5.0
LONGEST_BACK_OFF: Final = 3600.0
"""Seconds for which a 429 slows every worker: without a `retry-after`, and whatever it asks for."""


@dataclass
class ModelTurn:
    """The right to make one request. Set `used` to the tokens of its answer."""

    used: int | None = None


@asynccontextmanager
async def model_turn(
    attempt: Attempt, provider: str, *, number: int, request: ModelRequest
) -> AsyncIterator[ModelTurn]:
    """Make the request of `provider` in this block, as soon as the limits let it begin.

    `number` counts the step's requests. What it may use is estimated, what it did use is `turn.used`. A `ProviderError`
    that leaves the block gives the tokens back if nothing was billed, and a `RateLimited` that is worth a retry slows
    every worker.

        async with model_turn(attempt, "openai", number=0, request=request) as turn:
            answer = await client.responses.create(...)
            turn.used = answer.usage.total_tokens
    """
    await attempt.begin_model_call(provider, number=number, tokens=partial(estimate_tokens, request))
    turn = ModelTurn()
    try:
        yield turn
    except ProviderError as error:
        if isinstance(error, RateLimited) and error.retriable:
            wish = DEFAULT_BACK_OFF if error.retry_after is None else error.retry_after
            attempt.slow_model_calls(provider, min(max(wish, 0.0), LONGEST_BACK_OFF))
        attempt.settle_model_call(provider, number=number, used=0 if error.billed == "no" else None)
        raise
    except BudgetExceeded:
        attempt.settle_model_call(provider, number=number, used=0)
        raise
    attempt.settle_model_call(provider, number=number, used=turn.used)


def estimate_tokens(request: ModelRequest) -> int:
    """How many tokens a request may use: what is asked, by its length (of an image or a file by what it may show), and
    the longest answer that is allowed."""
    asked = request.model_dump_json(include={"messages", "instructions", "tools", "output"})
    characters = characters_that_count(len(asked), request.media)
    return characters // CHARACTERS_PER_TOKEN + (request.settings.max_tokens or 0)


def as_model_limits(values: Sequence[Any]) -> dict[str, ModelRateLimit]:
    """`model_limits=` by provider. Raises `ConfigurationError`."""
    if not isinstance(values, list | tuple):
        raise ConfigurationError(f"model_limits={values!r}: give a list of ModelRateLimit")
    limits: dict[str, ModelRateLimit] = {}
    for value in values:
        if not isinstance(value, ModelRateLimit):
            raise ConfigurationError(f"model_limits=: {value!r} is no ModelRateLimit")
        check_provider(value.provider, f"ModelRateLimit(provider={value.provider!r})")
        if value.provider in limits:
            raise ConfigurationError(
                f"model_limits=: there are two limits for {value.provider!r}: give its requests and tokens in one"
            )
        limits[value.provider] = value
    return limits


def check_provider(provider: str, given: str) -> None:
    """Raise `ConfigurationError` for a provider that nobody knows."""
    known = {*known_providers(), FunctionModel.provider}
    if provider not in known:
        raise ConfigurationError(
            f"{given}: no provider of that name is known, so that nothing would be "
            f"limited. Known: {', '.join(sorted(known))} (what stands before the colon of 'provider:model'). One of "
            "your own has to be registered before the App is made: agentflow.providers.register_provider"
        )
