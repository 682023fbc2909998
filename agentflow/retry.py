"""Whether a failed attempt is followed by another one, and when: a pure decision, nobody sleeps here."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from agentflow import errors
from agentflow.durations import parse_duration
from agentflow.errors import ConfigurationError, InvalidInput, NonRetriable, ProviderError, RetryAfter

if TYPE_CHECKING:
    from tenacity import BaseRetrying, RetryCallState

    Retry = int | BaseRetrying
else:
    Retry = int | Any

DEFAULT_RETRIES = 4
MOST_RETRIES = 20

_FIRST_DELAY = 1.0
_LONGEST_DELAY = 3600.0
_JITTER = 0.25

_FINAL_ERRORS = (
    NonRetriable,
    errors.AlreadyDecided,
    errors.ApprovalExpired,
    errors.BudgetExceeded,
    errors.ConfigurationError,
    errors.DigestMismatch,
    errors.GuardrailTripped,
    errors.IdempotencyConflict,
    errors.InDoubt,
    errors.InvalidInput,
    errors.InvokeTimeout,
    errors.LimitExceeded,
    errors.ModelRetry,
    errors.NestedStep,
    errors.NotFound,
    errors.NotPermitted,
    errors.NoWaiter,
    errors.OutputInvalid,
    errors.RunCancelled,
    errors.RunFailed,
    errors.RunSkipped,
    errors.SignalConflict,
    errors.StepError,
    errors.ToolFailed,
    errors.Unserialisable,
)


@dataclass(frozen=True)
class RetryIn:
    """Try again after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Stop:
    """No further attempt."""

    reason: Literal["final", "attempts"]


@dataclass(frozen=True)
class Accept:
    """The result stands."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how soon to try again.

    `RetryPolicy(4)` is five attempts with exponential delays from about a second to an hour. With
    `tenacity`, that object's stop, wait and retry decide instead; its sleeping loop is not used.
    """

    retries: int = DEFAULT_RETRIES
    tenacity: BaseRetrying | None = None

    def after_failure(
        self,
        error: BaseException,
        *,
        attempt: int,
        seconds_since_first: float,
        previous_delays: Sequence[float] = (),
        rng: random.Random,
    ) -> RetryIn | Stop:
        """What follows when attempt number `attempt` (from 1) raised `error`."""
        if is_final(error):
            return Stop("final")
        wish = _wished_delay(error)
        if self.tenacity is not None:
            answer = _consult(
                self.tenacity,
                lambda state: state.set_exception((type(error), error, error.__traceback__)),
                attempt=attempt,
                seconds_since_first=seconds_since_first,
                previous_delays=previous_delays,
                wish=wish,
                is_explicit=_asks_again(error),
            )
            return answer or Stop("final")
        if attempt > self.retries:
            return Stop("attempts")
        return RetryIn(wish if wish is not None else _default_delay(attempt, rng))

    def after_result(
        self,
        result: object,
        *,
        attempt: int,
        seconds_since_first: float,
        previous_delays: Sequence[float] = (),
    ) -> RetryIn | Stop | Accept:
        """What follows when an attempt returned: only a tenacity `retry_if_result` asks for another one."""
        if self.tenacity is None:
            return Accept()
        answer = _consult(
            self.tenacity,
            lambda state: state.set_result(result),
            attempt=attempt,
            seconds_since_first=seconds_since_first,
            previous_delays=previous_delays,
        )
        return answer or Accept()


def retry_policy(retry: Retry | None, *, default: RetryPolicy | None = None) -> RetryPolicy:
    """The policy that `retry=` means: a number of retries, a tenacity object, or None for `default`.

    Raises `ConfigurationError`.
    """
    if retry is None:
        return default or RetryPolicy()
    if isinstance(retry, bool):
        raise ConfigurationError(f"retry={retry} says nothing: give a number of retries, 0 to {MOST_RETRIES}")
    if isinstance(retry, int):
        if not 0 <= retry <= MOST_RETRIES:
            raise ConfigurationError(f"retry={retry} is out of range: 0 to {MOST_RETRIES} retries")
        return RetryPolicy(retry)
    if not _is_tenacity(retry):
        raise ConfigurationError(
            f"retry={retry!r} is neither a number of retries nor a tenacity Retrying or AsyncRetrying"
        )
    for part in ("stop", "wait", "retry"):
        if _is_async(getattr(retry, part)):
            raise ConfigurationError(f"the {part} of the tenacity object is async: it has to answer at once")
    return RetryPolicy(tenacity=retry)


def is_final(error: BaseException) -> bool:
    """Whether another attempt is pointless whatever the policy says."""
    if isinstance(error, ProviderError):
        return not error.retriable
    return isinstance(error, _FINAL_ERRORS)


def _wished_delay(error: BaseException) -> float | None:
    """The delay that the error itself asks for."""
    if isinstance(error, RetryAfter):
        try:
            return parse_duration(error.delay).total_seconds()
        except InvalidInput:
            return None
    if isinstance(error, ProviderError) and error.retry_after is not None and error.retry_after >= 0:
        return error.retry_after
    return None


def _default_delay(attempt: int, rng: random.Random) -> float:
    exponential = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(attempt - 1, 30))
    return min(_LONGEST_DELAY, exponential * rng.uniform(1 - _JITTER, 1 + _JITTER))


def _consult(
    policy: BaseRetrying,
    outcome: Callable[[RetryCallState], None],
    *,
    attempt: int,
    seconds_since_first: float,
    previous_delays: Sequence[float],
    wish: float | None = None,
    is_explicit: bool = False,
) -> RetryIn | Stop | None:
    """Ask tenacity's predicates in tenacity's own order: retry (None: it does not want one), wait, stop."""
    from tenacity import RetryCallState  # 80 ms to import, and whoever gave the object has paid that

    state = RetryCallState(policy, fn=None, args=(), kwargs={})
    state.attempt_number = attempt
    state.idle_for = sum(previous_delays)
    outcome(state)
    state.start_time, state.outcome_timestamp = 0.0, seconds_since_first
    if not is_explicit and not policy.retry(state):
        return None
    state.upcoming_sleep = float(policy.wait(state)) if wish is None else wish
    return Stop("attempts") if policy.stop(state) else RetryIn(max(0.0, state.upcoming_sleep))


def _asks_again(error: BaseException) -> bool:
    """Whether user code asked for another attempt in so many words, which no predicate overrules."""
    from tenacity import TryAgain

    return isinstance(error, RetryAfter | TryAgain)


def _is_tenacity(retry: object) -> TypeGuard[BaseRetrying]:
    if not all(callable(getattr(retry, part, None)) for part in ("stop", "wait", "retry")):
        return False
    from tenacity import BaseRetrying

    return isinstance(retry, BaseRetrying)


def _is_async(predicate: object) -> bool:
    call = getattr(type(predicate), "__call__", None)  # noqa: B004 - asked of the class, to see how it is written
    return inspect.iscoroutinefunction(predicate) or inspect.iscoroutinefunction(call)
