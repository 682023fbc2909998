"""One attempt of a model call: each request has its row in the ledger, before and after."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from agentflow.budgets import reservations
from agentflow.crashpoints import point
from agentflow.errors import BudgetExceeded, ConfigurationError, InvalidInput, ProviderError
from agentflow.model_limits import model_turn
from agentflow.models.answers import Priced, priced
from agentflow.models.conversation import check_can_carry
from agentflow.models.ledger import CallState, state_after
from agentflow.models.memo import ModelMemo, Question
from agentflow.models.output import output_spec
from agentflow.models.protocol import Model, StreamEvent, model_ref
from agentflow.models.response import ModelRequest, RawAnswer
from agentflow.roundtrip import storable_text
from agentflow.step_runner import NotYet
from agentflow.store.charges import charges_of
from agentflow.store.stored_types import ModelCall, Reservation
from agentflow.telling import Listener, Teller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agentflow.step_runner import Attempt

logger = logging.getLogger(__name__)

R = TypeVar("R")

ERROR_CAP = 500
"""Characters of an error that a row keeps."""


class Asking:
    """The attempt under `billing="at_least_once"`: what may have been lost is asked for again, and counted."""

    def __init__(
        self,
        attempt: Attempt,
        question: Question,
        *,
        now: Callable[[], int],
        agent: str | None,
        shared: Sequence[Reservation],
        stream: bool,
        listener: Listener | None,
    ) -> None:
        self._attempt = attempt
        self._question = question
        self._now = now
        self._agent = agent
        self._shared = shared
        self._stream = stream
        self._teller = Teller(attempt, listener)
        self._reservations: tuple[Reservation, ...] = ()
        """For the request that is made now."""
        self._row: ModelCall | None = None
        """The end of the request made last, not written yet."""
        self._has_asked = False
        """Whether a request was made of the model whose turn it is."""

    async def ask(self, models: Sequence[Model]) -> ModelMemo:
        """The first answer that one of the models gives; the next one is asked only when nothing was billed."""
        earlier = await self._earlier_calls(models)
        number = max((call.attempt for call in earlier), default=-1) + 1
        lost = [call for call in earlier if call.ended_at is None]
        failure: ProviderError | None = None
        for position, model in enumerate(models):
            try:
                return await self._ask_one(model, number + position, lost)
            except BudgetExceeded:
                for call in lost:
                    await self._attempt.write_model_call(self._ended(call))
                raise
            except NotYet:
                if failure is not None and failure.retriable and not self._has_asked:
                    raise failure from None  # the first model is asked again before this one may be
                if self._row is not None:
                    await self._attempt.write_model_call(self._row)
                raise
            except InvalidInput as error:
                if failure is None:
                    raise
                logger.warning(
                    "%s: %s cannot be asked instead: %s", self._attempt.key, model_ref(model), error
                )
                if position == len(models) - 1:
                    raise failure from error
                continue
            except ProviderError as error:
                if position == len(models) - 1 or not _may_ask_another(error):
                    raise
                failure = error
                logger.warning("%s: %s; asking %s", self._attempt.key, error, model_ref(models[position + 1]))
            lost = [] if self._row is None else [self._row]
        raise ConfigurationError(f"model call {self._attempt.key!r} names no model")

    async def _earlier_calls(self, models: Sequence[Model]) -> list[ModelCall]:
        """This step's rows in the ledger; without a failure, a crash or a wait between two models there are none."""
        if self._attempt.number == 0 and self._attempt.open_call is None and len(models) == 1:
            return []
        return await self._attempt.list_own_model_calls()

    async def _ask_one(self, model: Model, number: int, unended: Sequence[ModelCall]) -> ModelMemo:
        request = self._checked_request(model)
        row = await self._new_row(model, request, number)
        self._has_asked = False
        async with model_turn(self._attempt, model.provider, number=number, request=request) as turn:
            answer = await self._send(model, row, unended, lambda: self._exchange(model, request, row))
            done, paid = self._done(row, model, answer)
            if done.input_tokens is not None and done.output_tokens is not None:
                turn.used = done.input_tokens + done.output_tokens
        return self._memo(done, request, paid)

    def _request(self, model: Model) -> ModelRequest:
        spec = output_spec(self._question.output, capabilities=model.capabilities)
        return self._question.request(model_ref(model), spec)

    def _checked_request(self, model: Model) -> ModelRequest:
        """The request. Raises `InvalidInput` for what the model's API cannot carry of it."""
        check_can_carry(model, self._question.messages)
        return self._request(model)

    async def _new_row(self, model: Model, request: ModelRequest, number: int) -> ModelCall:
        now = self._now()
        own = await reservations(self._attempt, model, request, agent=self._agent, now=now)
        self._reservations = (*own, *self._shared)
        return ModelCall(
            key=self._attempt.key,
            attempt=number,
            provider=model.provider,
            model=model.model,
            state=CallState.ATTEMPTED,
            # Who dies now leaves this row behind: it must not say that nothing was paid.
            billed="possible",
            started_at=now,
            digest=request.digest(),
            agent=self._agent,
            charges=charges_of(self._reservations),
        )

    async def _send(
        self, model: Model, row: ModelCall, unended: Sequence[ModelCall], exchange: Callable[[], Awaitable[R]]
    ) -> R:
        """Make the request between the two commits of its row. Raises what the model's `classify` makes of an error."""
        self._has_asked = True
        # The new row first: between the two commits a crash must not free the number of a lost one.
        await self._attempt.write_model_call(row, self._reservations)
        for call in unended:
            await self._attempt.write_model_call(self._ended(call))
        point("before_request")
        try:
            answer = await exchange()
        except asyncio.CancelledError:
            self._end(row._replace(state=CallState.IN_DOUBT, ended_at=self._now()))
            raise
        except Exception as error:
            failure = model.classify(error)
            self._end(
                row._replace(
                    state=state_after(failure),
                    billed=failure.billed,
                    ended_at=self._now(),
                    error=in_words(failure.error),
                )
            )
            if failure.error is error:
                raise
            raise failure.error from error
        point("after_request")
        return answer

    async def _exchange(self, model: Model, request: ModelRequest, row: ModelCall) -> RawAnswer:
        """Ask once."""
        self._teller.begin()
        if not (self._stream and model.capabilities.streaming):
            return await model.request(request)
        return await self._told(model.stream(request))

    async def _told(self, events: AsyncIterator[StreamEvent]) -> RawAnswer:
        """The answer of a stream, whose deltas are told meanwhile."""
        async for item in events:
            if isinstance(item, RawAnswer):
                await _close(events)
                return item
            self._teller.tell(item)
        raise ConnectionError("the stream ended without an answer")

    def _ended(self, call: ModelCall) -> ModelCall:
        """How a row ends: as it stands, or in doubt when a crash kept its end from being written."""
        if call.ended_at is not None:
            return call
        return call._replace(state=CallState.IN_DOUBT, billed="possible", ended_at=self._now())

    def _end(self, row: ModelCall) -> None:
        self._row = row
        self._attempt.end_model_call(row)

    def _memo(self, done: ModelCall, request: ModelRequest, paid: Priced) -> ModelMemo:
        self._end(done)
        return ModelMemo.of(paid.answer, request, self._question.keep, parsed=paid.response)

    def _done(self, row: ModelCall, model: Model, answer: RawAnswer) -> tuple[ModelCall, Priced]:
        """The row's end, and the answer with its price."""
        paid = priced(model, answer, latency=row.latency)
        answer = paid.answer
        usage = {} if paid.response is None else paid.response.usage.model_dump()
        return row._replace(
            state=CallState.DONE,
            billed="yes",
            ended_at=self._now(),
            provider_id=answer.provider_id,
            cost=None if answer.cost is None else format(answer.cost, "f"),
            price_version=answer.priced_by,
            error=None,
            **usage,
        ), paid


async def _close(events: AsyncIterator[StreamEvent]) -> None:
    """End a stream that has given its answer: else Python does, some time later and in a task of its own."""
    if isinstance(events, AsyncGenerator):
        try:
            await events.aclose()
        except Exception:  # the answer is there, and paid for
            logger.warning("a stream could not be closed", exc_info=True)


def _may_ask_another(error: ProviderError) -> bool:
    """Not after what may be billed, nor for a fault of the set-up (no key, a cassette that does not match)."""
    return error.billed == "no" and (error.retriable or error.status is not None)


def in_words(error: BaseException) -> str:
    """An error as a row of the ledger keeps it."""
    return storable_text(f"{type(error).__name__}: {error}")[:ERROR_CAP]
