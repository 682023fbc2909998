"""Retry policies as pure decisions: how often, how soon, and which errors end it at once."""

import random
from datetime import timedelta
from typing import Any

import pytest
import tenacity
from tenacity import retry_if_exception_type, retry_if_not_exception_type, retry_if_result

from agentflow import errors
from agentflow.errors import ConfigurationError, NonRetriable, ProviderError, RateLimited, RetryAfter
from agentflow.retry import Accept, RetryIn, RetryPolicy, Stop, is_final, retry_policy


def after(policy: RetryPolicy, error: BaseException, attempt: int = 1, **given: Any) -> RetryIn | Stop:
    given = {"seconds_since_first": 0.0, "rng": random.Random(7)} | given
    return policy.after_failure(error, attempt=attempt, **given)


def delays(policy: RetryPolicy, error: BaseException) -> list[float]:
    """The delays of all retries the policy grants, on a clock that counts them alone."""
    waited: list[float] = []
    while len(waited) < 50:
        decision = after(
            policy,
            error,
            len(waited) + 1,
            seconds_since_first=sum(waited),
            previous_delays=waited,
        )
        if isinstance(decision, Stop):
            return waited
        waited.append(decision.seconds)
    raise AssertionError("the policy never stops")


def test_retries_counts_retries_and_not_attempts() -> None:
    assert len(delays(retry_policy(4), OSError())) == 4
    assert after(retry_policy(0), OSError()) == Stop("attempts")
    assert retry_policy(None) == RetryPolicy(4)
    assert retry_policy(None, default=RetryPolicy(1)) == RetryPolicy(1)


def test_the_default_delays_double_from_about_a_second_up_to_an_hour() -> None:
    waited = delays(retry_policy(20), OSError())
    assert 0.75 <= waited[0] <= 1.25
    for n, delay in enumerate(waited):
        assert 0.75 * min(2**n, 3600) <= delay <= min(1.25 * 2**n, 3600)


def test_the_jitter_comes_from_the_generator_that_is_given() -> None:
    first = [after(retry_policy(4), OSError(), rng=random.Random(seed)) for seed in range(20)]
    assert len(set(first)) == 20
    assert first == [after(retry_policy(4), OSError(), rng=random.Random(seed)) for seed in range(20)]


@pytest.mark.parametrize("retry", [-1, 21, True, "4", 1.5, object()])
def test_what_is_no_policy_is_a_configuration_error(retry: Any) -> None:
    with pytest.raises(ConfigurationError, match="retry="):
        retry_policy(retry)


def test_retry_after_sets_the_next_delay_and_uses_an_attempt() -> None:
    assert after(retry_policy(1), RetryAfter("30s")) == RetryIn(30)
    assert after(retry_policy(1), RetryAfter(timedelta(hours=2))) == RetryIn(7200)
    assert after(retry_policy(1), RetryAfter("30s"), 2) == Stop("attempts")


def test_a_retry_after_that_means_nothing_gives_the_default_delay() -> None:
    decision = after(retry_policy(1), RetryAfter("soon"))
    assert isinstance(decision, RetryIn)
    assert 0.75 <= decision.seconds <= 1.25


def test_a_provider_decides_whether_and_when() -> None:
    assert after(retry_policy(4), ProviderError("no")) == Stop("final")
    assert after(retry_policy(4), RateLimited("slow", retriable=True, retry_after=12.5)) == RetryIn(12.5)
    assert isinstance(after(retry_policy(4), ProviderError("busy", retriable=True)), RetryIn)
    assert after(retry_policy(0), RateLimited("slow", retriable=True, retry_after=1)) == Stop("attempts")


@pytest.mark.parametrize(
    "error",
    [
        NonRetriable("no"),
        errors.Unserialisable("x"),
        errors.InvalidInput("x"),
        errors.SignalConflict("x"),
        errors.InvokeTimeout("x"),
        errors.OutputInvalid("x"),
        errors.NestedStep("x"),
        errors.LimitExceeded("x"),
        errors.StepError("a", name="ValueError", message="x"),
        errors.ToolFailed("x"),
        errors.Refused("x"),
    ],
)
@pytest.mark.parametrize("policy", [RetryPolicy(20), RetryPolicy(tenacity=tenacity.Retrying())])
def test_final_errors_end_it_whatever_the_policy_says(error: Exception, policy: RetryPolicy) -> None:
    assert is_final(error)
    assert after(policy, error) == Stop("final")


@pytest.mark.parametrize("error", [OSError(), RetryAfter(1), errors.ReplayMismatch("x"), TimeoutError()])
def test_other_errors_are_retried(error: Exception) -> None:
    assert not is_final(error)
    assert isinstance(after(RetryPolicy(1), error), RetryIn)


# --- tenacity -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [tenacity.Retrying, tenacity.AsyncRetrying])
def test_the_stop_and_wait_of_tenacity_decide(kind: Any) -> None:
    policy = retry_policy(kind(stop=tenacity.stop_after_attempt(4), wait=tenacity.wait_incrementing(2, 3)))
    assert delays(policy, OSError()) == [2, 5, 8]


def test_tenacity_stops_by_the_time_since_the_first_attempt() -> None:
    policy = retry_policy(tenacity.Retrying(stop=tenacity.stop_after_delay(10), wait=tenacity.wait_fixed(4)))
    assert delays(policy, OSError()) == [4, 4, 4]
    before = retry_policy(tenacity.Retrying(stop=tenacity.stop_before_delay(10), wait=tenacity.wait_fixed(4)))
    assert delays(before, OSError()) == [4, 4]


def test_the_retry_predicate_of_tenacity_says_which_errors() -> None:
    policy = retry_policy(tenacity.Retrying(retry=retry_if_exception_type(OSError)))
    assert after(policy, OSError()) == RetryIn(0)
    assert after(policy, ValueError()) == Stop("final")
    but = retry_policy(tenacity.Retrying(retry=retry_if_not_exception_type(OSError)))
    assert after(but, OSError()) == Stop("final")


@pytest.mark.parametrize("error", [RetryAfter(30), tenacity.TryAgain()])
def test_asking_for_another_attempt_overrules_the_predicate_but_not_the_stop(error: Exception) -> None:
    policy = retry_policy(
        tenacity.Retrying(
            retry=retry_if_exception_type(OSError),
            stop=tenacity.stop_after_attempt(2),
            wait=tenacity.wait_fixed(30),
        )
    )
    assert after(policy, error, 1) == RetryIn(30)
    assert after(policy, error, 2) == Stop("attempts")


def test_a_providers_delay_goes_before_tenacitys_wait() -> None:
    policy = retry_policy(tenacity.Retrying(wait=tenacity.wait_fixed(2)))
    assert after(policy, RateLimited("slow", retriable=True, retry_after=40)) == RetryIn(40)


def test_the_predicate_sees_attempt_error_and_time_waited() -> None:
    seen: list[tuple[int, float, float | None, BaseException | None]] = []

    def wait(state: tenacity.RetryCallState) -> float:
        assert state.outcome is not None
        seen.append(
            (state.attempt_number, state.idle_for, state.seconds_since_start, state.outcome.exception())
        )
        return 1

    error = OSError("x")
    policy = retry_policy(tenacity.Retrying(wait=wait))
    after(policy, error, 3, seconds_since_first=9.5, previous_delays=[2, 5])
    assert seen == [(3, 7, 9.5, error)]


def test_a_result_may_ask_for_another_attempt() -> None:
    policy = retry_policy(
        tenacity.Retrying(
            retry=retry_if_result(lambda value: value is None),
            stop=tenacity.stop_after_attempt(2),
            wait=tenacity.wait_fixed(3),
        )
    )
    assert policy.after_result(5, attempt=1, seconds_since_first=0) == Accept()
    assert policy.after_result(None, attempt=1, seconds_since_first=0) == RetryIn(3)
    assert policy.after_result(None, attempt=2, seconds_since_first=0) == Stop("attempts")
    assert retry_policy(4).after_result(None, attempt=1, seconds_since_first=0) == Accept()


def test_nothing_of_tenacity_sleeps_or_calls_back() -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("called")

    policy = retry_policy(
        tenacity.Retrying(sleep=never, before=never, after=never, before_sleep=never, reraise=True)
    )
    assert after(policy, OSError()) == RetryIn(0)


def test_an_async_predicate_is_refused() -> None:
    async def wanted(error: BaseException) -> bool:
        return True

    with pytest.raises(ConfigurationError, match="the retry of the tenacity object is async"):
        retry_policy(
            tenacity.AsyncRetrying(retry=tenacity.asyncio.retry_if_exception(wanted)),
        )
