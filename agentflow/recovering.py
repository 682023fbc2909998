"""One attempt of a model call that looks for what may have been paid before it asks again: `"recover"`, `"strict"`.

A model that works in the background is given the job and then only looked at: by polls between which the run may leave
memory, or by a stream that is taken up again. One whose provider keeps its answers is looked up by metadata. Where
neither is to be had, or nothing is found, `"recover"` asks again and `"strict"` leaves it to a person.

What is to come later (`ModelSettings(latency=)`) is always such a job, that of a batch always `"strict"`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeGuard

from agentflow.asking import Asking, R, in_words
from agentflow.clock import to_datetime
from agentflow.errors import ConfigurationError, InDoubt, ProviderError
from agentflow.following import LATER, SECOND, SOON, Job, seconds_left
from agentflow.model_limits import model_turn
from agentflow.models.deferral import deferred
from agentflow.models.ledger import Billing, CallState, NextAct, act_on, state_after_crash
from agentflow.models.memo import ModelMemo
from agentflow.models.protocol import (
    BackgroundModel,
    JobLookupModel,
    JobSearch,
    LookupModel,
    Model,
    Submitted,
    model_ref,
)
from agentflow.models.registry import note_asked, resolve_model
from agentflow.models.response import ModelRequest, RawAnswer
from agentflow.step_runner import NotYet

if TYPE_CHECKING:
    from agentflow.step_runner import Attempt
    from agentflow.store.stored_types import ModelCall

logger = logging.getLogger(__name__)

LOOKUP_GRACE = 30 * SECOND
"""For so long after a loss is noticed a provider that keeps its answers is asked for the lost one."""
LONGEST_METADATA = 512
"""Characters of a value of OpenAI's metadata."""


class Recovering(Asking):
    """The attempt under `billing="recover"` or `"strict"`."""

    def __init__(self, attempt: Attempt, *args: Any, run_id: str, billing: Billing, **options: Any) -> None:
        super().__init__(attempt, *args, **options)
        self._run_id = run_id
        self._billing = billing
        self._latency = self._question.settings.latency
        self._earlier: list[ModelCall] | None = None
        self._in_doubt: list[ModelCall] = []

    async def ask(self, models: Sequence[Model]) -> ModelMemo:
        for model in models:
            note_asked(model)
        ways = models if self._latency is None else [deferred(model, self._latency) for model in models]
        for way in ways:
            check_can_recover(way, self._billing)
        found = await self._settle(models)
        if found is not None:
            return found
        self._earlier = None  # it has changed meanwhile
        return await super().ask(ways)

    # ------------------------------------------------------------------------------ what an earlier try left behind

    async def _settle(self, models: Sequence[Model]) -> ModelMemo | None:
        """The answer that the request made last has had, after all; `None` when it may be made again."""
        earlier = sorted(await self._earlier_calls(models), key=lambda row: row.attempt)
        if not earlier:
            return None
        row = earlier[-1]
        self._in_doubt = [call for call in earlier[:-1] if call.state == CallState.IN_DOUBT]
        model = _model_of(row, models)
        if row.ended_at is None:
            state = state_after_crash(CallState(row.state))
            if state is CallState.SUBMITTED:
                return await self._follow(model, row, is_taken_up=True)
            row = self._ended(row)
            await self._attempt.write_model_call(row)
        if row.state != CallState.IN_DOUBT:
            return None
        return await self._resolve(model, row)

    async def _earlier_calls(self, models: Sequence[Model]) -> list[ModelCall]:
        """Always looked at: a doubt that is being cleared up is no open row."""
        if self._earlier is None:
            self._earlier = await self._attempt.list_own_model_calls()
        return self._earlier

    async def _resolve(self, model: Model, row: ModelCall, *, retriable: bool = True) -> ModelMemo | None:
        """What becomes of a doubt: the answer is found, or a person is asked (`InDoubt`), or `None`: ask again."""
        capabilities = model.capabilities
        options: dict[str, Any] = {"billing": self._billing, "capabilities": capabilities}
        # Of a job whose id is known there is nothing more to be found.
        is_known = row.provider_id is not None
        act = act_on(CallState.IN_DOUBT, looked_up=is_known, retriable=retriable, **options)
        is_looked_up = act is NextAct.RECOVER
        if is_looked_up:
            found = await self._look_up(model, row, is_patient=retriable)
            if found is not None:
                return found
            act = act_on(CallState.IN_DOUBT, looked_up=True, retriable=retriable, **options)
        if act is NextAct.ASK_PERSON:
            self._end(row)
            raise _doubt(row, is_looked_up=is_looked_up)
        if is_looked_up and row.error is not None:
            # The failure was not counted as the step's yet. Now it is: its policy says when to ask again.
            self._end(row._replace(state=CallState.FAILED))
            raise ProviderError(
                f"{model_ref(model)} may have billed an answer that it does not have: {row.error}",
                provider=row.provider,
                model=row.model,
                billed="possible",
                retriable=retriable,
            )
        return None

    async def _look_up(self, model: Model, row: ModelCall, *, is_patient: bool) -> ModelMemo | None:
        """The stored answer of a request that was lost; `None` when there was none within the grace. Not `is_patient`
        is who has been told that there will be none."""
        now, since = self._now(), row.ended_at or 0
        search, unreachable = JobSearch(), ""
        found: tuple[ModelCall, RawAnswer] | None = None
        try:
            if _is_job_lookup(model):
                search = await model.find_job(self._metadata(row), since=to_datetime(row.started_at))
            elif _is_lookup(model):
                found = await self._find(model, row)
            else:
                return None
        except ConfigurationError:
            if self._billing == "strict":
                logger.exception("%s: a person has to decide", self._attempt.key)
                return None
            raise
        except Exception as error:
            # Who could not look must not say that there is nothing.
            unreachable = f", which could not be asked ({in_words(error)})"
            self._settle_failed_look(model, error)
        if found is not None:
            return self._recovered(model, *found)
        if search.provider_id is not None:
            return await self._take_up_found(model, row, search.provider_id)
        if search.is_open and not self._is_overdue(row):
            raise NotYet(
                now + LATER.after(now - since),
                f"step {self._attempt.key!r} looks for its job at {model_ref(model)}, where some do not tell yet whose "
                "they are",
            )
        if not is_patient or (not unreachable and now >= since + LOOKUP_GRACE):
            return None
        until = now + SOON.after(now - since)
        raise NotYet(
            until if unreachable else min(until, since + LOOKUP_GRACE),
            f"step {self._attempt.key!r} looks for a lost answer at {model_ref(model)}{unreachable}",
        )

    async def _find(self, model: LookupModel, row: ModelCall) -> tuple[ModelCall, RawAnswer] | None:
        """The stored answer of this request, or of one before it that is in doubt too."""
        for call in (row, *reversed(self._in_doubt)):
            answer = await model.find(self._metadata(call))
            if answer is not None:
                return call, answer
        return None

    async def _take_up_found(self, model: Model, row: ModelCall, provider_id: str) -> ModelMemo:
        """The answer of a job that was submitted, although nobody had heard its id."""
        logger.info("%s: the job %s was found again", self._attempt.key, provider_id)
        row = row._replace(
            state=CallState.SUBMITTED, provider_id=provider_id, ended_at=None, error=None, billed="possible"
        )
        await self._attempt.write_model_call(row)
        self._row = None  # that it was in doubt is not to be written any more
        return await self._follow(model, row, is_taken_up=True)

    def _is_overdue(self, row: ModelCall) -> bool:
        left = seconds_left(self._attempt, row, now=self._now())
        return left is not None and left <= 0

    def _settle_failed_look(self, model: Model, error: Exception) -> None:
        """Go on only after a failure that may pass."""
        failure = model.classify(error)
        if not failure.retriable:
            if failure.error is error:
                raise error
            raise failure.error from error

    def _recovered(self, model: Model, row: ModelCall, answer: RawAnswer) -> ModelMemo:
        logger.info("%s: the answer %s was found again", self._attempt.key, answer.provider_id)
        request = self._request(model)
        if request.digest() != row.digest:
            logger.warning(
                "%s: the code would ask something else now than what the answer that was found answers",
                self._attempt.key,
            )
        done, paid = self._done(row, model, answer)
        if row.latency is not None:
            done = done._replace(provider_id=row.provider_id)  # the batch's: the answer's own is in the memo
        return self._memo(done, request, paid)

    # --------------------------------------------------------------------------------------------------- the request

    async def _ask_one(self, model: Model, number: int, unended: Sequence[ModelCall]) -> ModelMemo:
        try:
            if not _is_background(model):
                return await super()._ask_one(model, number, unended)
            row, answer = await self._submit(model, number, unended)
        except ProviderError as error:
            memo = await self._after_failure(model, error)
            if memo is None:
                raise
            return memo
        if answer is not None:
            return self._recovered(model, row, answer)
        return await self._follow(model, row, is_taken_up=False)

    async def _exchange(self, model: Model, request: ModelRequest, row: ModelCall) -> RawAnswer:
        if not _is_lookup(model):
            return await super()._exchange(model, request, row)
        self._teller.begin()
        metadata = self._metadata(row)
        if not (self._stream and model.capabilities.streaming):
            return await model.request_stored(request, metadata=metadata)
        return await self._told(model.stream_stored(request, metadata=metadata))

    async def _send(
        self, model: Model, row: ModelCall, unended: Sequence[ModelCall], exchange: Callable[[], Awaitable[R]]
    ) -> R:
        async def in_time() -> R:
            # Before the step's own timeout strikes, which would leave no time to see to what is lost.
            async with asyncio.timeout(seconds_left(self._attempt, row, now=self._now())):
                return await exchange()

        try:
            return await super()._send(model, row, unended, in_time)
        except ProviderError as error:
            if isinstance(error.__cause__, ConfigurationError):
                raise error.__cause__ from None  # the server refuses what this way of billing needs
            raise

    async def _after_failure(self, model: Model, error: ProviderError) -> ModelMemo | None:
        """The answer to a request that has failed and may be billed; `None`: the failure stands."""
        row = self._row
        if row is None or row.state != CallState.IN_DOUBT:
            return None
        await self._attempt.write_model_call(row)
        return await self._resolve(model, row, retriable=error.retriable)

    async def _submit(
        self, model: BackgroundModel, number: int, unended: Sequence[ModelCall]
    ) -> tuple[ModelCall, RawAnswer | None]:
        """Give the job to the provider, and commit by which id it is found; with its answer if that came at once."""
        request = self._checked_request(model)
        row = (await self._new_row(model, request, number))._replace(latency=self._latency)
        self._has_asked = False
        metadata, stream = self._metadata(row), self._wants_stream(model)

        async def submit() -> Submitted:
            return await model.submit(request, metadata=metadata, stream=stream)

        async with model_turn(self._attempt, model.provider, number=number, request=request) as turn:
            submitted = await self._send(model, row, unended, submit)
            answer = submitted.answer
            if answer is not None:
                turn.used = model.parse(answer.raw).usage.total_tokens or None
        if answer is not None:
            # Who answers at once knows of no later, and of no price for it.
            return row._replace(provider_id=submitted.provider_id, latency=None), answer
        row = row._replace(state=CallState.SUBMITTED, provider_id=submitted.provider_id)
        await self._attempt.write_model_call(row)
        return row, None

    def _wants_stream(self, model: Model) -> bool:
        return self._stream and model.capabilities.streaming

    # ----------------------------------------------------------------------------------------------------- the job

    async def _follow(self, model: Model, row: ModelCall, *, is_taken_up: bool) -> ModelMemo:
        """The answer of a job, however long it takes. Raises `NotYet` where the run may leave memory until then."""
        if not _is_background(model):
            raise ConfigurationError(
                f"{model_ref(model)} was given the job {row.provider_id} and cannot be asked for it now: it has to "
                "stay the provider it was until the run has ended"
            )
        job = Job(
            self._attempt,
            model,
            row,
            now=self._now,
            tell=self._told if self._wants_stream(model) else None,
            begin=self._teller.begin,
            is_taken_up=is_taken_up,
        )
        try:
            answer = await job.answer()
        except asyncio.CancelledError:
            if self._attempt.goes_on:  # else another worker follows the job, or cancels it with the run
                await job.cancel()
                self._end(
                    self._ended_in_doubt(row, "cancelled: it took longer than it may, or was not wanted")
                )
            raise
        except ProviderError as error:
            self._end(self._ended_without_answer(row, error))
            memo = await self._after_failure(model, error)
            if memo is None:
                raise
            return memo
        return self._recovered(model, row, answer)

    def _ended_without_answer(self, row: ModelCall, error: ProviderError) -> ModelCall:
        if error.billed != "no":
            return self._ended_in_doubt(row, in_words(error))
        return row._replace(
            state=CallState.NOT_BILLED, billed="no", ended_at=self._now(), error=in_words(error)
        )

    def _ended_in_doubt(self, row: ModelCall, error: str) -> ModelCall:
        return row._replace(state=CallState.IN_DOUBT, billed="possible", ended_at=self._now(), error=error)

    def _metadata(self, row: ModelCall) -> Mapping[str, str]:
        """By what a request is found again: the same in every process."""
        step = row.key if len(row.key) <= LONGEST_METADATA else sha256(row.key.encode()).hexdigest()
        return {
            "agentflow_run": self._run_id,
            "agentflow_step": step,
            "agentflow_attempt": str(row.attempt),
        }


def check_can_recover(model: Model, billing: Billing) -> None:
    """Raise `ConfigurationError` for a model of which an answer that is lost cannot be found again."""
    capabilities = model.capabilities
    can = capabilities.background or capabilities.lookup or capabilities.asks_again or capabilities.offline
    if billing == "recover" and not can:
        raise ConfigurationError(
            f'billing="recover" cannot hold for {model_ref(model)}: its provider does not find an answer again. Use '
            '"strict", which lets a person decide, or "at_least_once", which asks again'
        )


def _is_background(model: Model) -> TypeGuard[BackgroundModel]:
    return model.capabilities.background and isinstance(model, BackgroundModel)


def _is_job_lookup(model: Model) -> TypeGuard[JobLookupModel]:
    return model.capabilities.lookup and isinstance(model, JobLookupModel)


def _is_lookup(model: Model) -> TypeGuard[LookupModel]:
    return model.capabilities.lookup and isinstance(model, LookupModel)


def _model_of(row: ModelCall, models: Sequence[Model]) -> Model:
    """The model that a row's request was made of, by the way it was made."""
    named = (model for model in models if (model.provider, model.model) == (row.provider, row.model))
    model = next(named, None) or resolve_model(f"{row.provider}:{row.model}")
    return model if row.latency is None else deferred(model, row.latency)


def _doubt(row: ModelCall, *, is_looked_up: bool) -> InDoubt:
    why = f" ({row.error})" if row.error else ": its worker died"
    looked = " and is not found there" if is_looked_up else ""
    return InDoubt(
        f"request {row.attempt} of model call {row.key!r} may have been answered and billed by {row.provider}:"
        f"{row.model}{looked}{why}; a person decides what is to be done",
        model=f"{row.provider}:{row.model}",
        provider_id=row.provider_id,
    )
