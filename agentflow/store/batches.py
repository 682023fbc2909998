"""How a batch is brought to an end, whoever commits it: again, later, or in halves until one is to blame.

Sans-IO: a generator that asks for commits and pauses, so that a thread and a task of the loop do the same.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple

from agentflow.errors import DatabaseUnavailable
from agentflow.store.hints import Hint
from agentflow.store.operations.dispatch import weight_of

logger = logging.getLogger("agentflow.store")

MOST_OPERATIONS = 500
MOST_BYTES = 750_000
CONFLICT_TRIES = 6
LONGEST_PAUSE = 1.0


class Fault(Enum):
    """What an error of a batch means."""

    CONFLICT = "two transactions got in each other's way: play it again"
    OUTAGE = "the database cannot be reached or written: play it again when it can"
    POISON = "something in the batch is to blame"


class Submission(NamedTuple):
    """An operation, and who waits for its outcome."""

    operation: Any
    future: asyncio.Future[Any]


class Commit(NamedTuple):
    """Commit these, and give (outcomes, hints); `recover` first, if the database was away."""

    operations: list[Any]
    recover: bool


class Pause(NamedTuple):
    """Wait; `is_short` where another transaction was in the way."""

    seconds: float
    is_short: bool


Answer = Callable[[Sequence[Submission], list[Any], list[Hint]], None]


def carry_out(
    batch: Sequence[Submission],
    *,
    diagnose: Callable[[Exception], Fault],
    answer: Answer,
    give_up_at: Callable[[], float],
) -> Generator[Commit | Pause, Any, None]:
    """Commit a batch, and answer each of its operations."""
    operations = [submission.operation for submission in batch]
    pause, conflicts, is_down = 0.01, 0, False
    blamed: Exception
    while True:
        try:
            outcomes, hints = yield Commit(operations, recover=is_down)
        except Exception as error:
            fault = diagnose(error)
            if fault is Fault.CONFLICT and conflicts < CONFLICT_TRIES:
                conflicts += 1
                yield Pause(random.uniform(0, pause), is_short=True)
            elif fault is Fault.OUTAGE and time.monotonic() < give_up_at():
                if not is_down:
                    told = str(error) or type(error).__name__
                    logger.warning("cannot write to the database, trying again: %s", told)
                is_down = True
                yield Pause(pause * random.uniform(0.5, 1), is_short=False)
            else:
                blamed = _gave_up(error) if fault is Fault.OUTAGE else error
                break
            pause = min(pause * 2, LONGEST_PAUSE)
        else:
            if is_down:
                logger.warning("the database can be written again")
            answer(batch, outcomes, hints)
            return
    if len(batch) == 1:
        answer(batch, [blamed], [])
        return
    middle = len(batch) // 2
    for half in (batch[:middle], batch[middle:]):
        yield from carry_out(half, diagnose=diagnose, answer=answer, give_up_at=give_up_at)


def _gave_up(error: Exception) -> DatabaseUnavailable:
    told = DatabaseUnavailable(
        f"the store was closed while the database could not be written: {error or type(error).__name__}; whether this "
        "was carried out is not known"
    )
    told.__cause__ = error
    return told


def acknowledge(batch: Sequence[Submission], outcomes: list[Any]) -> None:
    """Give everybody who waits the outcome, or the error that the operation alone had. In the loop."""
    for (_, future), outcome in zip(batch, outcomes, strict=True):
        if future.done():
            continue  # whoever asked was cancelled; it is written all the same
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def how_many_fit(queued: Iterable[Submission], *, most: int = MOST_OPERATIONS) -> int:
    """How many of these, from the first, are one batch: the first always, then up to `most` and `MOST_BYTES`."""
    count = size = 0
    for submission in queued:
        size += weight_of(submission.operation)
        if count and (count == most or size > MOST_BYTES):
            break
        count += 1
    return count
