"""The values of a function's configuration: how many runs, how often, in what order, and when to give up.

They only say what is wanted, with Inngest's meaning; the engine does it. A value that makes no sense is a
`ConfigurationError` naming class and field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal, TypeVar, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict

from agentflow.durations import Duration, to_micros
from agentflow.errors import ConfigurationError, InvalidInput
from agentflow.events import Event
from agentflow.expressions import LONGEST_EXPRESSION
from agentflow.matching import check_path
from agentflow.runs import ErrorInfo

V = TypeVar("V")

MOST_CONCURRENCY: Final = 2
MOST_CANCEL_ON: Final = 5
MOST_COST_USD: Final = 10_000_000
LONGEST_NAME: Final = 200

Key = str | Callable[[dict[str, Any]], Any]
"""A dotted path (`data.user_id`), a CEL expression over `event`, or a function that gets the event."""

_PATH = re.compile(r"[^\W\d][\w-]*(\.[\w-]+)*")


@dataclass(frozen=True)
class Concurrency:
    """At most `limit` runs execute at once, per value of `key`; one that sleeps or waits does not count."""

    limit: int
    key: Key | None = None
    scope: Literal["function", "app"] = "function"

    def __post_init__(self) -> None:
        _check_count(self, "limit")
        check_key(self, "key")
        _check_choice(self, "scope", "function", "app")


@dataclass(frozen=True)
class Throttle:
    """At most `limit` runs begin in a `period`, `burst` of them at once; the others begin later."""

    limit: int
    period: Duration
    burst: int = 1
    key: Key | None = None

    def __post_init__(self) -> None:
        _check_count(self, "limit")
        _check_duration(self, "period")
        _check_count(self, "burst")
        check_key(self, "key")


@dataclass(frozen=True)
class RateLimit:
    """At most `limit` runs are started in a `period`; the others are `skipped`."""

    limit: int
    period: Duration
    key: Key | None = None

    def __post_init__(self) -> None:
        _check_count(self, "limit")
        _check_duration(self, "period")
        check_key(self, "key")


@dataclass(frozen=True)
class Debounce:
    """One run with the last event, once none has come for `period`, or `timeout` after the first one."""

    period: Duration
    key: Key | None = None
    timeout: Duration | None = None

    def __post_init__(self) -> None:
        _check_duration(self, "period")
        check_key(self, "key")
        _check_optional_duration(self, "timeout")
        if self.timeout is not None and to_micros(self.timeout) < to_micros(self.period):
            raise _complaint(self, "timeout", f"is shorter than the period {self.period!r}")


@dataclass(frozen=True)
class Batch:
    """One run for up to `max_size` events, begun when there are so many, or `timeout` after the first one."""

    max_size: int
    timeout: Duration
    key: Key | None = None

    def __post_init__(self) -> None:
        _check_count(self, "max_size")
        _check_duration(self, "timeout")
        check_key(self, "key")


@dataclass(frozen=True)
class Singleton:
    """One run at a time per value of `key`: a second one is skipped, or cancels the first."""

    key: Key | None = None
    mode: Literal["skip", "cancel"] = "skip"

    def __post_init__(self) -> None:
        check_key(self, "key")
        _check_choice(self, "mode", "skip", "cancel")


@dataclass(frozen=True)
class Idempotency:
    """One run per value of `key` in 24 hours; further ones are skipped."""

    key: Key

    def __post_init__(self) -> None:
        if self.key is None:
            raise _complaint(self, "key", "is missing")
        check_key(self, "key")


@dataclass(frozen=True)
class CancelOn:
    """Cancel the run when such an event arrives, within `timeout` of the run's start where that is given."""

    event: str
    match: str | None = None
    if_: str | None = None
    timeout: Duration | None = None

    def __post_init__(self) -> None:
        _check_name(self, "event", "is not the name of an event")
        if self.match is not None:
            _check_match(self, "match")
        _check_expression(self, "if_")
        _check_optional_duration(self, "timeout")


@dataclass(frozen=True)
class Timeouts:
    """Cancel a run that has not begun after `start`, or not ended `finish` after it began."""

    start: Duration | None = None
    finish: Duration | None = None

    def __post_init__(self) -> None:
        _check_optional_duration(self, "start")
        _check_optional_duration(self, "finish")
        if self.start is None and self.finish is None:
            raise _complaint(self, "start", "and finish are both missing")


@dataclass(frozen=True)
class ModelRateLimit:
    """At most so many requests and tokens of one provider in a `period`, shared by every worker on the database.

    `provider` is what stands before the colon of "provider:model". A tenth of a limit may be taken at once, the rest
    of it evenly over the period.
    """

    provider: str
    requests: int | None = None
    tokens: int | None = None
    period: Duration = "1m"

    def __post_init__(self) -> None:
        _check_name(self, "provider", "is not the name of a provider")
        for name in ("requests", "tokens"):
            if getattr(self, name) is not None:
                _check_count(self, name)
        if self.requests is None and self.tokens is None:
            raise _complaint(self, "requests", "and tokens are both missing")
        _check_duration(self, "period")


@dataclass(frozen=True)
class Budget:
    """At most so much money, or so many tokens, for model calls in a `period`, shared by every worker on the database.

    What a call may cost at most is reserved before it leaves, and settled to what it did cost; one that might pass the
    budget raises `BudgetExceeded`. A period begins at a multiple of its length (days at midnight UTC, weeks on Monday);
    `period=None` is the budget of all times. With `key` each of its values has a budget of its own. `agent`, `model`
    ("provider:model") and `provider` narrow it to some calls. Of a call that sets no `max_tokens`, `answer_tokens` are
    reserved for the answer.

        Budget("per-customer", cost_usd=5, period="1d", key="data.customer_id")
    """

    name: str
    _: KW_ONLY
    cost_usd: Decimal | float | str | None = None
    tokens: int | None = None
    period: Duration | None = None
    agent: str | None = None
    model: str | None = None
    provider: str | None = None
    key: Key | None = None
    answer_tokens: int = 16_384

    def __post_init__(self) -> None:
        _check_name(self, "name", "is not the name of a budget")
        if len(self.name) > LONGEST_NAME or "\x00" in self.name:
            raise _complaint(
                self, "name", f"has more than {LONGEST_NAME} characters, or one that cannot be stored"
            )
        if self.cost_usd is None and self.tokens is None:
            raise _complaint(self, "cost_usd", "and tokens are both missing")
        if self.cost_usd is not None:
            object.__setattr__(self, "cost_usd", _as_money(self, "cost_usd"))
        if self.tokens is not None:
            _check_count(self, "tokens")
        _check_optional_duration(self, "period")
        for name, what in (("agent", "an agent"), ("provider", "a provider"), ("model", "a model")):
            if getattr(self, name) is not None:
                _check_name(self, name, f"is not the name of {what}")
        if self.model is not None and ":" not in self.model:
            raise _complaint(self, "model", "names no provider: write 'provider:model'")
        check_key(self, "key")
        _check_count(self, "answer_tokens")


class CronTick(BaseModel):
    """The data of a run that a schedule started."""

    model_config = ConfigDict(frozen=True)

    nominal_at: AwareDatetime
    """When it was due, as the clock of the schedule's zone shows it; it may have begun later."""


class RunFailure(BaseModel):
    """What `on_failure` gets: the run, its error with the failing `step_id`, the event that started it."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    error: ErrorInfo
    event: Event | None = None


def as_concurrency(value: int | Concurrency | Sequence[Concurrency] | None) -> tuple[Concurrency, ...]:
    """`concurrency=` as values: a number, one `Concurrency`, or up to two."""
    if value is None:
        return ()
    if isinstance(value, int):
        return (Concurrency(value),)
    return _as_tuple("concurrency", value, Concurrency, most=MOST_CONCURRENCY)


def as_cancel_on(value: CancelOn | Sequence[CancelOn] | None) -> tuple[CancelOn, ...]:
    """`cancel_on=` as values: one `CancelOn`, or up to five."""
    return () if value is None else _as_tuple("cancel_on", value, CancelOn, most=MOST_CANCEL_ON)


def is_path(key: str) -> bool:
    """Whether a key is a dotted path; another text is a CEL expression."""
    return _PATH.fullmatch(key) is not None


def _as_tuple(option: str, value: V | Sequence[V], kind: type[V], *, most: int) -> tuple[V, ...]:
    if not isinstance(value, kind | list | tuple):
        raise ConfigurationError(f"{option}={value!r} is no {kind.__name__}")
    values = (value,) if isinstance(value, kind) else tuple(cast("Sequence[V]", value))
    for item in values:
        if not isinstance(item, kind):
            raise ConfigurationError(f"{option}={value!r}: {item!r} is no {kind.__name__}")
    if len(values) > most:
        raise ConfigurationError(f"{option}= holds {len(values)} values, at most {most} are possible")
    return values


def _complaint(config: object, name: str, reason: str) -> ConfigurationError:
    given = getattr(config, name, None)
    return ConfigurationError(f"{type(config).__name__}({name}={given!r}): {name} {reason}")


def _check_name(config: object, name: str, reason: str) -> None:
    text = getattr(config, name)
    if not isinstance(text, str) or not text:
        raise _complaint(config, name, reason)


def _check_count(config: object, name: str) -> None:
    count = getattr(config, name)
    if isinstance(count, bool) or not isinstance(count, int):
        raise _complaint(config, name, "is not a whole number")
    if count < 1:
        raise _complaint(config, name, "has to be at least 1")


def _as_money(config: object, name: str) -> Decimal:
    given = getattr(config, name)
    try:
        # A float as it is written: 0.1 is a tenth, not its binary neighbour.
        money = Decimal(str(given)) if isinstance(given, int | float | str) else given
    except InvalidOperation:
        money = None
    if isinstance(given, bool) or not isinstance(money, Decimal) or not money.is_finite():
        raise _complaint(config, name, "is not a number of US dollars")
    if not 0 < money <= MOST_COST_USD:
        raise _complaint(config, name, f"has to be more than nothing, and at most {MOST_COST_USD}")
    return money


def _check_optional_duration(config: object, name: str) -> None:
    if getattr(config, name) is not None:
        _check_duration(config, name)


def _check_duration(config: object, name: str) -> None:
    try:
        micros = to_micros(getattr(config, name))
    except InvalidInput as error:
        raise _complaint(config, name, f"is wrong: {error}") from None
    if micros == 0:
        raise _complaint(config, name, "has to be longer than nothing")


def check_key(config: object, name: str) -> None:
    """Complain of a key that is neither a path, an expression nor a function."""
    key = getattr(config, name)
    if key is None or callable(key):
        return
    if not isinstance(key, str):
        raise _complaint(config, name, "is neither a dotted path, an expression nor a function of the event")
    if is_path(key):
        _check_match(config, name)
    else:
        _check_expression(config, name)


def _check_match(config: object, name: str) -> None:
    path = getattr(config, name)
    if not isinstance(path, str):
        raise _complaint(config, name, "is not a dotted path such as 'data.user_id'")
    try:
        check_path(path)
    except ConfigurationError as error:
        raise _complaint(config, name, f"is wrong: {error}") from None


def _check_expression(config: object, name: str) -> None:
    text = getattr(config, name)
    if text is None:
        return
    if not isinstance(text, str) or not text.strip():
        raise _complaint(config, name, "is not an expression")
    if len(text) > LONGEST_EXPRESSION:
        raise ConfigurationError(
            f"{type(config).__name__}: {name} has {len(text)} characters, "
            f"over the limit of {LONGEST_EXPRESSION}"
        )


def _check_choice(config: object, name: str, *choices: str) -> None:
    if getattr(config, name) not in choices:
        raise _complaint(config, name, f"has to be {' or '.join(map(repr, choices))}")
