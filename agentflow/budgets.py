"""The budgets of an app: what a model call may cost at most is reserved before it leaves.

A reservation is made in the transaction that enters the request in the ledger, and the write that enters its end
settles it (`store.operations_budgets`): whoever asks a model does nothing for that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from agentflow.clock import to_datetime
from agentflow.codec import canonical_json
from agentflow.durations import to_micros
from agentflow.errors import BudgetExceeded, ConfigurationError
from agentflow.expressions import Expression
from agentflow.flow import Budget, is_path
from agentflow.model_limits import check_provider
from agentflow.models.pricing import cost_of
from agentflow.models.protocol import Model, model_ref
from agentflow.models.response import ModelRequest, ModelSettings, Usage
from agentflow.models.wrapped import WrappedCall
from agentflow.store.charges import MOST, OF_A_TURN, to_nanos, to_usd
from agentflow.store.outcome_types import OverBudget
from agentflow.store.stored_types import Micros, Reservation

if TYPE_CHECKING:
    from agentflow.step_runner import Attempt

FREE: Final = "scripted"
"""The provider that reaches no API. Of all others a price that is not known is not nothing."""
MOST_PER_IMAGE: Final = 50_000
MOST_PER_FILE: Final = 1_000_000
"""The longest context that there is."""
LEAST_PER_FILE: Final = 50_000
"""A short file may have many pages, and of one that is elsewhere nobody has counted them."""
PREAMBLE: Final = 1_000
"""Tokens that a provider adds by itself where there are tools or a structured output; Anthropic's are some hundreds."""
_LONG_KEPT: Final = re.compile(r'\\?"(cache|ttl)\\?":\\?"(1h|24h)\\?"')
"""In a request that has a beginning kept for an hour: by its settings, by their `extra`, or in a wrapped call."""
FIRST_MONDAY: Final = 4 * 86_400_000_000
"""1970-01-05: from there periods are counted, so that days begin at midnight UTC and weeks on Monday."""
_LIMITS_OF_AN_ANSWER: Final = ("max_tokens", "max_output_tokens", "max_completion_tokens")


async def reservations(
    attempt: Attempt, model: Model, request: ModelRequest, *, agent: str | None, now: Micros
) -> tuple[Reservation, ...]:
    """What is to be reserved for the request, of each of the app's budgets that is for it.

    Raises `BudgetExceeded` where a budget of money is for a model whose price is not known.
    """
    if not attempt.budgets or _asks_no_model(model):
        return ()
    return tuple(
        [
            await _reservation(attempt, budget, model, request, now)
            for budget in attempt.budgets
            if _is_for(budget, model, agent)
        ]
    )


def as_budgets(values: Sequence[Any]) -> tuple[Budget, ...]:
    """`budgets=`. Raises `ConfigurationError`."""
    if not isinstance(values, list | tuple):
        raise ConfigurationError(f"budgets={values!r}: give a list of Budget")
    names: set[str] = set()
    for value in values:
        if not isinstance(value, Budget):
            raise ConfigurationError(f"budgets=: {value!r} is no Budget")
        if value.name in names:
            raise ConfigurationError(
                f"budgets=: there are two budgets {value.name!r}: give each a name of its own"
            )
        names.add(value.name)
        provider = value.provider or (value.model or "").partition(":")[0]
        if provider:
            check_provider(provider, f"Budget({value.name!r}, ...)")
        if isinstance(value.key, str) and not is_path(value.key):
            try:
                Expression.compile(value.key)
            except ConfigurationError as error:
                raise ConfigurationError(f"Budget({value.name!r}, key={value.key!r}): {error}") from None
    return tuple(values)


def exceeded(over: OverBudget, *, key: str) -> BudgetExceeded:
    """What is raised for a request that would pass a budget."""
    wanted = over.reservation
    whose = "" if wanted.value is None else f" of {wanted.value}"
    until = None if wanted.ends_at is None else to_datetime(wanted.ends_at)
    if over.is_of_cost:
        limit, spent, reserved, needs = (
            f"{to_usd(nanos):f} US dollars"
            for nanos in (wanted.cost_limit or 0, over.spent_cost, over.reserved_cost, wanted.cost)
        )
    else:
        limit, spent, reserved, needs = (
            f"{tokens} tokens"
            for tokens in (wanted.token_limit or 0, over.spent_tokens, over.reserved_tokens, wanted.tokens)
        )
    if wanted.name == OF_A_TURN:
        return BudgetExceeded(
            f"model call {key!r} was not made: of {limit}, which its limits leave to all agents that were called by "
            f"{wanted.value!r}, they have used {spent}"
        )
    again = "it does not begin again" if until is None else f"it begins again at {until.isoformat()}"
    return BudgetExceeded(
        f"model call {key!r} was not made: it may use {needs}, and budget {wanted.name!r}{whose} has {limit}, of which "
        f"{spent} are spent and {reserved} reserved for calls under way; {again}. Rerun the run then, raise the "
        "budget, or have less reserved for a call by ModelSettings(max_tokens=)",
        budget=wanted.name,
        resets_at=until,
    )


def period_of(budget: Budget, now: Micros) -> tuple[Micros, Micros | None]:
    """When the budget's present period began, and when it ends."""
    if budget.period is None:
        return 0, None
    length = to_micros(budget.period)
    start = now - (now - FIRST_MONDAY) % length
    return start, start + length


def most_it_may_use(
    request: ModelRequest, *, answer_tokens: int, arguments: Mapping[str, Any] | None = None
) -> Usage:
    """The tokens of the request and of its answer at most.

    No text has more tokens than bytes, whatever the tokenizer. `answer_tokens` counts where nothing limits the answer;
    `arguments` are those of a call of an SDK.
    """
    # Of a message that a model wrote either its own items are sent back or its parts.
    asked = sum(
        max(_weight(message.origin.items if message.origin else ()), _weight(message.model_dump()["parts"]))
        for message in request.messages
    )
    asked += _weight(request.model_dump(include={"instructions", "tools", "output"}))
    if request.tools or request.output is not None or arguments is not None:
        asked += PREAMBLE
    answer = _longest_answer(request.settings, arguments, answer_tokens=answer_tokens)
    return Usage(input_tokens=min(asked, MOST), output_tokens=min(answer, MOST))


async def _reservation(
    attempt: Attempt, budget: Budget, model: Model, request: ModelRequest, now: Micros
) -> Reservation:
    arguments = model.arguments if isinstance(model, WrappedCall) else None
    most = most_it_may_use(request, answer_tokens=budget.answer_tokens, arguments=arguments)
    value = None if budget.key is None else await attempt.budget_value(budget.key)
    start, end = period_of(budget, now)
    assert not isinstance(budget.cost_usd, float | str)  # it was made a Decimal
    return Reservation(
        key=canonical_json([budget.name, value]),
        name=budget.name,
        value=value,
        period_start=start,
        ends_at=end,
        cost=0
        if budget.cost_usd is None
        else _most_it_may_cost(budget, model, most, key=attempt.key, asked=request.canonical),
        tokens=most.total_tokens,
        cost_limit=None if budget.cost_usd is None else to_nanos(budget.cost_usd),
        token_limit=budget.tokens,
    )


def _is_for(budget: Budget, model: Model, agent: str | None) -> bool:
    return (
        budget.agent in (None, agent)
        and budget.provider in (None, model.provider)
        and budget.model in (None, model_ref(model))
    )


def _asks_no_model(model: Model) -> bool:
    """Whether it is a call of an SDK, or of any function, that names no model: no tokens are paid for it."""
    return isinstance(model, WrappedCall) and "model" not in model.arguments


def _most_it_may_cost(budget: Budget, model: Model, most: Usage, *, key: str, asked: str) -> int:
    if model.provider == FREE:
        return 0
    priced_as = getattr(model, "priced_as", model.provider)
    # To be written into a cache costs more than to be read, at some providers, and more the longer it is to be kept.
    written = most.model_copy(update={"cache_write_tokens": most.input_tokens})
    costs = [cost_of(priced_as, model.model, usage) for usage in (most, written)]
    if _LONG_KEPT.search(asked):
        apart = {"cache_write_1h_tokens": most.input_tokens}
        costs.append(cost_of(priced_as, model.model, written, apart=apart))
    known = [cost for cost in costs if cost is not None]
    if not known:
        raise BudgetExceeded(
            f"model call {key!r} was not made: nobody knows what {model_ref(model)} costs, it may pass cost_usd="
            f"{budget.cost_usd} of budget {budget.name!r}. Give that budget tokens= instead, or narrow it to other "
            "calls by model=, provider= or agent=",
            budget=budget.name,
        )
    return to_nanos(max(known))


def _longest_answer(
    settings: ModelSettings, arguments: Mapping[str, Any] | None, *, answer_tokens: int
) -> int:
    given = settings.extra if arguments is None else arguments
    # What is given by its own name goes to the provider last, as it is.
    longest = max((_count(given.get(name)) for name in _LIMITS_OF_AN_ANSWER), default=0)
    if not longest:
        longest = settings.max_tokens or answer_tokens + (settings.thinking_tokens or 0)
    return longest * max(_count(given.get("n")), 1)


def _count(value: object) -> int:
    """A whole number above nothing; 0 for everything else."""
    return value if isinstance(value, int) and value > 0 else 0


def _weight(value: object) -> int:
    """The bytes of a value's JSON, nearly; of an image what it counts for at most."""
    match value:
        case str():
            return len(value.encode("utf-8", "replace")) + 2
        case {"kind": "image", "data": str(data)}:
            return min(len(data), MOST_PER_IMAGE)
        # By all their fields, as `ToolResult.blocks` knows them: a user's own JSON is weighed as text.
        case {"kind": "image", "data": None, "file_id": _, "url": _, "detail": _}:
            return MOST_PER_IMAGE
        case {"kind": "file", "text": None, "data": str(data), "file_id": _, "url": _}:
            return min(max(len(data), LEAST_PER_FILE), MOST_PER_FILE)
        case {"kind": "file", "text": None, "data": None, "file_id": _, "url": _, "name": _}:
            return LEAST_PER_FILE
        case dict():
            return 2 + sum(_weight(name) + _weight(item) + 2 for name, item in value.items())
        case list() | tuple():
            return 2 + sum(_weight(item) + 1 for item in value)
        case _:
            return len(str(value))
