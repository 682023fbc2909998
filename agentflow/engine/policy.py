"""What a retry policy is asked after an attempt, and what it may look at."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

from agentflow.errors import LimitExceeded, NestedStep, Poisoned
from agentflow.retry import Accept, RetryIn, RetryPolicy, Stop, is_final
from agentflow.store.stored_types import Micros, StoredAttempt

NEVER_RETRIED = (NestedStep, LimitExceeded, Poisoned)
"""These fail the run at once, whatever anybody catches."""


class ResultRefused(Exception):
    """A tenacity policy asks for another attempt because of what the body returned."""

    def __init__(self, answer: RetryIn | Stop) -> None:
        super().__init__("the retry policy did not accept what the step returned")
        self.answer = answer


def check_result(
    policy: RetryPolicy, value: Any, failures: Sequence[StoredAttempt], *, started_at: Micros, now: Micros
) -> None:
    """Raise `ResultRefused` when the policy wants another result."""
    answer = policy.after_result(value, **_history(failures, started_at=started_at, now=now))
    if not isinstance(answer, Accept):
        raise ResultRefused(answer)


def after_failure(
    policy: RetryPolicy,
    error: BaseException,
    failures: Sequence[StoredAttempt],
    *,
    started_at: Micros,
    now: Micros,
    rng: random.Random,
) -> RetryIn | Stop:
    """Whether and when to try again, after the failures before and this one."""
    if isinstance(error, ResultRefused):
        return error.answer
    if isinstance(error, BaseExceptionGroup) and all(map(is_final, leaves(error))):
        return Stop("final")
    return policy.after_failure(error, rng=rng, **_history(failures, started_at=started_at, now=now))


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors of a group and of the groups in it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


class _History(TypedDict):
    attempt: int
    seconds_since_first: float
    previous_delays: list[float]


def _history(failures: Sequence[StoredAttempt], *, started_at: Micros, now: Micros) -> _History:
    first_at = failures[0].started_at if failures else started_at
    return _History(
        attempt=len(failures) + 1,
        seconds_since_first=(now - first_at) / 1e6,
        previous_delays=[max(0.0, (failure.next_at - failure.started_at) / 1e6) for failure in failures],
    )
