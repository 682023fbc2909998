"""A job that a provider works on without us: it is looked at, or its stream is read, until it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from agentflow.asking import in_words
from agentflow.durations import to_micros
from agentflow.errors import Billed, ProviderError
from agentflow.models.protocol import BackgroundModel, StreamEvent, model_ref
from agentflow.models.response import RawAnswer
from agentflow.step_runner import NotYet

if TYPE_CHECKING:
    from agentflow.step_runner import Attempt
    from agentflow.store.stored_types import ModelCall

logger = logging.getLogger(__name__)

Tell: TypeAlias = Callable[[AsyncIterator[StreamEvent]], Awaitable[RawAnswer]]

SECOND = 1_000_000


@dataclass(frozen=True)
class Pace:
    """How often a job is looked at, the more seldom the longer it takes already."""

    shortest: int
    longest: int

    def after(self, elapsed: int) -> int:
        """Microseconds until the next look."""
        return min(max(elapsed // 2, self.shortest), self.longest)


SOON = Pace(SECOND, 30 * SECOND)
LATER = Pace(30 * SECOND, 300 * SECOND)
"""For what may take a day."""
CANCEL_SECONDS = 10.0
_GONE = (404, 410)
MOST_TO_SPARE_SECONDS = 2.0
_BILLED: dict[Billed, str] = {"no": "is not billed", "possible": "may be billed", "yes": "is billed"}


class Begin(Protocol):
    """Says that an answer comes from its beginning, or again from there."""

    def __call__(self, *, again: bool = False) -> None: ...


class Job:
    """The job of a row that is `submitted`, as one call of the step's body follows it.

    `tell` tells a stream's deltas and gives its answer; without it the job is only looked at. `is_taken_up`: an earlier
    call of the body has followed it, here or elsewhere.
    """

    def __init__(
        self,
        attempt: Attempt,
        model: BackgroundModel,
        row: ModelCall,
        *,
        now: Callable[[], int],
        tell: Tell | None,
        begin: Begin,
        is_taken_up: bool,
    ) -> None:
        self._attempt = attempt
        self._model = model
        self._row = row
        self._id = row.provider_id or ""
        self._now = now
        self._tell = tell
        self._begin = begin
        self._is_taken_up = is_taken_up
        self._is_late = False
        self._pace = pace_of(row)

    async def answer(self) -> RawAnswer:
        """Raises `ProviderError` when the job has ended without one, `NotYet` where the run may leave memory."""
        if self._tell is not None and not self._is_overdue():
            answer = await self._streamed(self._tell)
        else:
            answer = await self._polled() if self._is_taken_up else None
        if answer is not None:
            return answer
        if self._is_overdue():
            return await self._give_up()
        raise NotYet(
            self._next_look(),
            f"step {self._attempt.key!r} waits for {self._id} of {model_ref(self._model)}",
        )

    async def _polled(self) -> RawAnswer | None:
        try:
            return await self._model.poll(self._id)
        except ProviderError:
            raise  # the job's end
        except Exception as error:
            failure = self._model.classify(error)
            if failure.error.status in _GONE:
                raise self._lost("is not known there any more") from error
            if not failure.retriable:
                # Not billed is the look, which was refused; what the job has cost it does not tell.
                failure.error.billed = "possible"
                raise failure.error from error
            logger.warning("%s: %s; the job is looked at again", self._attempt.key, failure.error)
            return None

    async def _streamed(self, tell: Tell) -> RawAnswer | None:
        """Tell the job's deltas. `None` when there is no stream to be had now."""
        self._begin(again=self._is_taken_up)
        try:
            async with asyncio.timeout(seconds_left(self._attempt, self._row, now=self._now())):
                return await self._stream_to_its_end(tell)
        except TimeoutError:
            self._is_late = True
            return None

    async def _stream_to_its_end(self, tell: Tell) -> RawAnswer | None:
        """A stream that breaks off is taken up where it broke; where none brings anything new, the job is looked at."""
        place = _Place()
        while True:
            before = place.number
            try:
                events = place.passing(self._model.resume(self._id, after=before))
                async with contextlib.aclosing(events):
                    return await tell(events)
            except Exception as error:
                logger.info("%s: the stream of %s ended: %s", self._attempt.key, self._id, in_words(error))
            if place.number == before:
                return await self._polled()

    def _is_overdue(self) -> bool:
        limit = self._attempt.timeout
        return self._is_late or (limit is not None and self._now() >= self._row.started_at + to_micros(limit))

    def _next_look(self) -> int:
        now = self._now()
        until = now + self._pace.after(now - self._row.started_at)
        limit = self._attempt.timeout
        return (
            until if limit is None else min(until, max(self._row.started_at + to_micros(limit), now + SECOND))
        )

    async def _give_up(self) -> RawAnswer:
        """The step's timeout is over: cancel the job, unless it ends with its answer just now."""
        await self.cancel()
        billed: Billed = "possible"
        try:
            answer = await self._polled()
            if answer is not None:
                return answer
        except ProviderError as error:
            billed = "no" if error.billed == "no" else "possible"
        raise self._lost(f"took longer than timeout={self._attempt.timeout}, and was cancelled", billed)

    def _lost(self, why: str, billed: Billed = "possible") -> ProviderError:
        return ProviderError(
            f"the job {self._id} of {model_ref(self._model)} {why}: it {_BILLED[billed]}",
            provider=self._row.provider,
            model=self._row.model,
            billed=billed,
            retriable=True,
        )

    async def cancel(self) -> None:
        """Let the provider end it. Never raises: who cancels has something else to say."""
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                await self._model.cancel(self._id)
        except Exception as error:
            logger.warning("%s: job %s could not be cancelled: %r", self._attempt.key, self._id, error)


class _Place:
    """How far a numbered stream was read."""

    def __init__(self) -> None:
        self.number: int | None = None

    async def passing(self, events: AsyncIterator[StreamEvent]) -> AsyncGenerator[StreamEvent]:
        async for item in events:
            self.number = getattr(item, "number", None) or self.number
            yield item


def seconds_left(attempt: Attempt, row: ModelCall, *, now: int) -> float | None:
    """Until the step's timeout, less what it takes to see to the call before that strikes."""
    limit = attempt.timeout
    if limit is None:
        return None
    margin = min(limit.total_seconds() / 4, MOST_TO_SPARE_SECONDS)
    return limit.total_seconds() - (now - row.started_at) / 1e6 - margin


def pace_of(row: ModelCall) -> Pace:
    return SOON if row.latency is None else LATER
