"""The configuration values: what they take, and how they complain."""

from dataclasses import FrozenInstanceError
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentflow.codec import codec_for
from agentflow.errors import ConfigurationError
from agentflow.events import Event
from agentflow.flow import (
    Batch,
    Budget,
    CancelOn,
    Concurrency,
    Debounce,
    Idempotency,
    ModelRateLimit,
    RateLimit,
    RunFailure,
    Singleton,
    Throttle,
    Timeouts,
    as_cancel_on,
    as_concurrency,
    is_path,
)
from agentflow.runs import ErrorInfo


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Concurrency, {"limit": 1}),
        (Concurrency, {"limit": 5, "key": "data.user_id", "scope": "app"}),
        (Concurrency, {"limit": 5, "key": lambda event: event["data"]["x"]}),
        (Concurrency, {"limit": 5, "key": "event.data.plan == 'free' ? event.data.id : ''"}),
        (Throttle, {"limit": 5, "period": "1m", "burst": 3, "key": "data.x"}),
        (RateLimit, {"limit": 5, "period": timedelta(hours=1)}),
        (Debounce, {"period": "5s", "timeout": "1m"}),
        (Batch, {"max_size": 10, "timeout": 30}),
        (Singleton, {}),
        (Singleton, {"key": "data.x", "mode": "cancel"}),
        (Idempotency, {"key": "data.order_id"}),
        (CancelOn, {"event": "order/cancelled", "match": "data.id", "if_": "async.data.ok", "timeout": "1d"}),
        (Timeouts, {"start": "1h"}),
        (Timeouts, {"finish": "1h"}),
        (ModelRateLimit, {"provider": "openai", "requests": 5}),
        (ModelRateLimit, {"provider": "openai", "tokens": 5, "period": "1h"}),
        (Budget, {"name": "all", "tokens": 5, "agent": "support", "model": "openai:gpt-5-mini"}),
        (Budget, {"name": "all", "cost_usd": Decimal("0.5"), "period": "1d", "key": "data.customer"}),
    ],
)
def test_a_sensible_value_is_kept_as_it_is(kind: Any, arguments: dict[str, Any]) -> None:
    value = kind(**arguments)
    assert {name: getattr(value, name) for name in arguments} == arguments
    with pytest.raises(FrozenInstanceError):
        setattr(value, next(iter(vars(value))), 1)


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        (Concurrency, {"limit": 0}, r"Concurrency\(limit=0\): limit has to be at least 1"),
        (Concurrency, {"limit": True}, "limit is not a whole number"),
        (Concurrency, {"limit": 1.5}, "limit is not a whole number"),
        (Concurrency, {"limit": 1, "scope": "world"}, "scope has to be 'function' or 'app'"),
        (Concurrency, {"limit": 1, "key": 5}, "key is neither a dotted path"),
        (Concurrency, {"limit": 1, "key": ""}, "key is not an expression"),
        (Concurrency, {"limit": 1, "key": "x" * 300}, "key is wrong: the path"),
        (Concurrency, {"limit": 1, "key": "a == '" + "x" * 4000}, "over the limit of 4000"),
        (Throttle, {"limit": 1, "period": "1y"}, "period is wrong: .*months and years"),
        (Throttle, {"limit": 1, "period": 0}, "period has to be longer than nothing"),
        (Throttle, {"limit": 1, "period": "1s", "burst": 0}, "burst has to be at least 1"),
        (RateLimit, {"limit": 1, "period": -1}, "period is wrong: .*negative"),
        (Debounce, {"period": "1m", "timeout": "5s"}, "timeout is shorter than the period '1m'"),
        (Batch, {"max_size": 0, "timeout": "1s"}, "max_size has to be at least 1"),
        (Batch, {"max_size": 2, "timeout": None}, "timeout is wrong"),
        (Singleton, {"mode": "wait"}, "mode has to be 'skip' or 'cancel'"),
        (Idempotency, {"key": None}, "key is missing"),
        (CancelOn, {"event": ""}, "event is not the name of an event"),
        (CancelOn, {"event": "a", "match": "data..x"}, "match is wrong"),
        (CancelOn, {"event": "a", "match": 5}, "match is not a dotted path"),
        (CancelOn, {"event": "a", "if_": " "}, "if_ is not an expression"),
        (Timeouts, {}, "start and finish are both missing"),
        (ModelRateLimit, {"provider": "openai"}, "requests and tokens are both missing"),
        (ModelRateLimit, {"provider": "openai", "tokens": 0}, "tokens has to be at least 1"),
        (ModelRateLimit, {"provider": "", "tokens": 1}, "provider is not the name"),
        (Budget, {"name": "a"}, "cost_usd and tokens are both missing"),
        (Budget, {"name": "", "tokens": 1}, "name is not the name of a budget"),
        (Budget, {"name": "a" * 201, "tokens": 1}, "name has more than 200 characters"),
        (Budget, {"name": "a", "tokens": 0}, "tokens has to be at least 1"),
        (Budget, {"name": "a", "cost_usd": 0}, "cost_usd has to be more than nothing"),
        (Budget, {"name": "a", "cost_usd": "much"}, "cost_usd is not a number of US dollars"),
        (Budget, {"name": "a", "cost_usd": True}, "cost_usd is not a number of US dollars"),
        (Budget, {"name": "a", "cost_usd": float("nan")}, "cost_usd is not a number of US dollars"),
        (Budget, {"name": "a", "cost_usd": 10**9}, "cost_usd has to be more than nothing, and at most"),
        (Budget, {"name": "a", "tokens": 1, "period": "1y"}, "period is wrong"),
        (Budget, {"name": "a", "tokens": 1, "model": "gpt-5-mini"}, "model names no provider"),
        (Budget, {"name": "a", "tokens": 1, "agent": ""}, "agent is not the name of an agent"),
        (Budget, {"name": "a", "tokens": 1, "key": 5}, "key is neither a dotted path"),
        (Budget, {"name": "a", "tokens": 1, "answer_tokens": 0}, "answer_tokens has to be at least 1"),
    ],
)
def test_a_senseless_value_is_a_configuration_error_naming_the_field(
    kind: Any, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says) as refused:
        kind(**arguments)
    assert kind.__name__ in str(refused.value)


@pytest.mark.parametrize("given", [0.1, "0.1", Decimal("0.1")])
def test_money_is_what_is_written(given: Any) -> None:
    assert Budget("all", cost_usd=given).cost_usd == Decimal("0.1")


def test_concurrency_may_be_a_number_one_value_or_two() -> None:
    one, other = Concurrency(1), Concurrency(2, scope="app")
    assert as_concurrency(None) == ()
    assert as_concurrency(3) == (Concurrency(3),)
    assert as_concurrency(one) == (one,)
    assert as_concurrency([one, other]) == (one, other)


@pytest.mark.parametrize("value", [0, True, "5", [Concurrency(1)] * 3, [5], [CancelOn("a")]])
def test_other_concurrency_is_a_configuration_error(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"(?i)concurrency"):
        as_concurrency(value)


def test_cancel_on_takes_up_to_five() -> None:
    one = CancelOn("a")
    assert as_cancel_on(None) == ()
    assert as_cancel_on(one) == (one,)
    assert as_cancel_on([one] * 5) == (one,) * 5
    with pytest.raises(ConfigurationError, match="cancel_on= holds 6 values, at most 5"):
        as_cancel_on([one] * 6)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("data.user_id", True),
        ("data.items.0.id", True),
        ("data.user-id", True),
        ("name", True),
        ("data.x == 5", False),
        ("event.data.x + 'a'", False),
        ("size(event.data)", False),
        ("'all'", False),
        ("5", False),
        ("data.x\n", False),
    ],
)
def test_a_dotted_path_is_told_from_an_expression(key: str, expected: bool) -> None:
    assert is_path(key) is expected


def test_a_run_failure_goes_through_the_database() -> None:
    failure = RunFailure(
        run_id="run_1",
        error=ErrorInfo(name="ValueError", message="x", step_id="charge"),
        event=Event(name="a", data={"x": 1}),
    )
    assert codec_for(RunFailure).round_trip(failure, "a")[1] == failure
