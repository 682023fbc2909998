"""`step.ai`: one call of a model as one durable step.

What is memoized is the provider's raw answer, before anything reads it: text, tool calls, output and usage are
derived from it again on every replay. The ledger has a row for each request, committed before the request leaves,
so that after a crash it is known that an answer may have been paid for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, overload

from agentflow.codec import Codec, codec_for
from agentflow.crashpoints import point
from agentflow.durations import Duration, parse_duration
from agentflow.errors import ConfigurationError, ProviderError
from agentflow.model_limits import estimate_tokens, model_turn
from agentflow.models.answers import priced
from agentflow.models.conversation import check_conversation
from agentflow.models.ledger import Billing, CallState, state_after
from agentflow.models.memo import ModelMemo, Question, name_of, read_memo
from agentflow.models.messages import MessageLike, to_messages
from agentflow.models.output import output_spec
from agentflow.models.protocol import Model, model_ref
from agentflow.models.registry import ModelLike, resolve_model
from agentflow.models.response import (
    AttemptReset,
    Delta,
    ModelRequest,
    ModelResponse,
    ModelSettings,
    RawAnswer,
    ReasoningDelta,
    TextDelta,
    ToolArgsDelta,
    ToolSpec,
)
from agentflow.retry import Retry
from agentflow.runs import StepKind
from agentflow.step_runner import NotYet
from agentflow.store.protocol import ModelCall

if TYPE_CHECKING:
    from agentflow.step import Step
    from agentflow.step_runner import Attempt

logger = logging.getLogger(__name__)

R = TypeVar("R")
DeltaListener: TypeAlias = Callable[[Delta | AttemptReset], None]


class HasSpec(Protocol):
    """A tool made with `@tool`."""

    @property
    def spec(self) -> ToolSpec: ...


class Inference:
    """The model calls of one run."""

    __slots__ = ("_step",)

    def __init__(self, step: Step) -> None:
        self._step = step

    def infer(
        self,
        id: str,
        /,
        *,
        model: ModelLike,
        messages: MessageLike | Sequence[MessageLike],
        instructions: str | None = None,
        tools: Sequence[ToolSpec | HasSpec] = (),
        output: Any = None,
        settings: ModelSettings | None = None,
        fallback: Sequence[ModelLike] = (),
        billing: Billing = "at_least_once",
        stream: bool = False,
        retry: Retry | None = None,
        timeout: Duration | None = None,
    ) -> Coroutine[Any, Any, ModelResponse]:
        """Ask a model once; give its answer, parsed from what the provider sent.

        `output` is a type that the answer has to validate as: `response.output` then holds the value, and an answer
        that does not validate raises `OutputInvalid` with the `.response`; it is paid for and never asked again here.
        A refusal is an answer (`finish_reason="refusal"`). The models of `fallback` are asked only after a failure
        that was not billed. `stream=True` also tells the answer to the run's live stream while it comes.

            answer = await step.ai.infer("classify", model="openai:gpt-5-mini", messages=text, output=Category)

        Raises `ProviderError` (`RateLimited`, `ContextTooLong`, ...) when the provider failed for good.
        """
        check_billing(billing)
        models = (model, *fallback)
        question = Question(
            messages=to_messages(messages),
            instructions=instructions,
            tools=tuple(tool if isinstance(tool, ToolSpec) else tool.spec for tool in tools),
            output=output,
            settings=settings or ModelSettings(),
        )

        async def prepare(_: Attempt) -> Question:
            return question

        asking = ask_model(
            self._step,
            id,
            prepare,
            name=name_of(model),
            models=lambda: [resolve_model(candidate) for candidate in models],
            stream=stream,
            retry=retry,
            timeout=timeout,
        )
        return _answer(self._step, asking, question, models)

    @overload
    def wrap(
        self, id: str, sdk_call: Callable[..., Awaitable[R]], /, **kwargs: Any
    ) -> Coroutine[Any, Any, R]: ...

    @overload
    def wrap(self, id: str, sdk_call: Callable[..., R], /, **kwargs: Any) -> Coroutine[Any, Any, R]: ...

    def wrap(self, id: str, sdk_call: Callable[..., Any], /, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Call a method of a provider's own SDK once and for all; give the SDK's own object, rebuilt from its JSON.

        Every keyword argument is the SDK's, `timeout` too: the step is retried and timed by its function's `retries`,
        `retry` and `step_timeout`. The client may be sync or async; its own retries are turned off. Usage and cost are
        entered in the ledger. What another SDK or a function of yours returns comes back as plain JSON.

            response = await step.ai.wrap("ask", client.responses.create, model="gpt-5-mini", input=question)

        Raises `ConfigurationError` for a stream or what is no call, `ProviderError` (`RateLimited`, ...) when the
        provider failed for good, `Unserialisable` for an answer that is no JSON (a file, a sound).
        """
        from agentflow.wrapping import wrap_call  # it is made of what is below

        return wrap_call(self._step, id, sdk_call, kwargs)


async def _answer(
    step: Step,
    asking: Coroutine[Any, Any, Asked],
    question: Question,
    models: Sequence[ModelLike],
) -> ModelResponse:
    asked = await asking
    if not asked.is_new:
        check_unchanged(step, asked, question)
    return read_memo(asked.memo, models, output=question.output)


def check_billing(billing: Billing) -> None:
    """Raise `ConfigurationError` for a way of billing that this version cannot hold."""
    if billing not in ("at_least_once", "recover", "strict"):
        raise ConfigurationError(f'billing={billing!r}: give "at_least_once", "recover" or "strict"')
    if billing != "at_least_once":
        raise ConfigurationError(
            f"billing={billing!r} is not supported by this version: it cannot look for an answer at the provider "
            'after a crash. Use billing="at_least_once", which asks again and says so in the ledger'
        )


# ------------------------------------------------------------------------------------------------- the step


@dataclass(frozen=True)
class Asked:
    """A model call that has its answer. `is_new`: it was asked just now, not remembered."""

    key: str
    memo: ModelMemo
    is_new: bool


def check_unchanged(step: Step, asked: Asked, question: Question) -> None:
    """Say so when the code now asks something else than what the stored answer answers."""
    now = question.request(asked.memo.model, asked.memo.output).digest()
    if now == asked.memo.digest:
        return
    from agentflow.step import runner_of

    runner = runner_of(step)
    told = f"model call {asked.key!r} would ask something else now than what its stored answer answers"
    if runner.settings.strict_replay:
        raise runner.mismatch(told)
    logger.warning("run %s: %s; the stored answer is used", runner.run_id, told)


_MEMO: Codec[ModelMemo] = codec_for(ModelMemo)


def ask_model(
    step: Step,
    id: str,
    prepare: Callable[[Attempt], Awaitable[Question]],
    *,
    name: str,
    models: Callable[[], Sequence[Model]],
    agent: str | None = None,
    stream: bool = False,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    on_delta: DeltaListener | None = None,
) -> Coroutine[Any, Any, Asked]:
    """The step itself. `prepare` and `models` are called in its body, so on the first run only."""
    from agentflow.step import runner_of, take_key
    from agentflow.step_runner import Body

    runner = runner_of(step)
    key = take_key(step, id)
    limit = None if timeout is None else parse_duration(timeout)
    listener = None if on_delta is None else _Listener(on_delta)
    is_new = False

    async def call(attempt: Attempt) -> ModelMemo:
        nonlocal is_new
        is_new = True
        question = await prepare(attempt)
        check_conversation(question.messages)
        asking = _Asking(attempt, question, now=runner.now, agent=agent, stream=stream, listener=listener)
        return await asking.ask(models())

    async def asked() -> Asked:
        body = Body(StepKind.INFER, name, call, _MEMO, retry, limit, raises_own_errors=True)
        memo = await runner.perform(key, body)
        return Asked(key, memo, is_new)

    return asked()


class _Asking:
    """One attempt of a model call: each request has its row in the ledger, before and after."""

    def __init__(
        self,
        attempt: Attempt,
        question: Question,
        *,
        now: Callable[[], int],
        agent: str | None,
        stream: bool,
        listener: _Listener | None,
    ) -> None:
        self._attempt = attempt
        self._question = question
        self._now = now
        self._agent = agent
        self._stream = stream
        self._teller = _Teller(attempt, listener)
        self._row: ModelCall | None = None
        """The end of the request made last, not written yet."""

    async def ask(self, models: Sequence[Model]) -> ModelMemo:
        """The first answer that one of the models gives; the next one is asked only when nothing was billed."""
        earlier = await self._earlier_calls(models)
        number = max((call.attempt for call in earlier), default=-1) + 1
        lost = [call for call in earlier if call.ended_at is None]
        failure: ProviderError | None = None
        for position, model in enumerate(models):
            try:
                return await self._ask_one(model, number + position, lost)
            except NotYet:
                if failure is not None and failure.retriable:
                    raise failure from None  # the first model is asked again before this one may be
                if self._row is not None:
                    await self._attempt.write_model_call(self._row)
                raise
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
        question = self._question
        spec = output_spec(question.output, capabilities=model.capabilities)
        request = question.request(model_ref(model), spec)
        row = ModelCall(
            key=self._attempt.key,
            attempt=number,
            provider=model.provider,
            model=model.model,
            state=CallState.ATTEMPTED,
            # Who dies now leaves this row behind: it must not say that nothing was paid.
            billed="possible",
            started_at=self._now(),
            digest=request.digest(),
            agent=self._agent,
        )
        tokens = estimate_tokens(request)
        async with model_turn(self._attempt, model.provider, number=number, tokens=tokens) as turn:
            answer = await self._ask_in_turn(model, request, row, unended)
            done = self._done(row, model, answer)
            if done.input_tokens is not None and done.output_tokens is not None:
                turn.used = done.input_tokens + done.output_tokens
        self._end(done)
        return ModelMemo.of(answer, request, question.keep)

    async def _ask_in_turn(
        self, model: Model, request: ModelRequest, row: ModelCall, unended: Sequence[ModelCall]
    ) -> RawAnswer:
        # The new row first: between the two commits a crash must not free the number of a lost one.
        await self._attempt.write_model_call(row)
        for call in unended:
            await self._attempt.write_model_call(self._ended(call))
        point("before_request")
        try:
            answer = await self._exchange(model, request)
        except asyncio.CancelledError:
            self._end(row._replace(state=CallState.IN_DOUBT, ended_at=self._now()))
            raise
        except Exception as error:
            failure = model.classify(error)
            self._end(row._replace(state=state_after(failure), billed=failure.billed, ended_at=self._now()))
            if failure.error is error:
                raise
            raise failure.error from error
        point("after_request")
        return priced(model, answer)

    async def _exchange(self, model: Model, request: ModelRequest) -> RawAnswer:
        self._teller.begin()
        if not (self._stream and model.capabilities.streaming):
            return await model.request(request)
        async for item in model.stream(request):
            if isinstance(item, RawAnswer):
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

    def _done(self, row: ModelCall, model: Model, answer: RawAnswer) -> ModelCall:
        row = row._replace(
            state=CallState.DONE,
            billed="yes",
            ended_at=self._now(),
            provider_id=answer.provider_id,
            cost=None if answer.cost is None else format(answer.cost, "f"),
            price_version=answer.priced_by,
        )
        try:
            usage = model.parse(answer.raw).usage
        except Exception:  # a paid answer is kept even when it cannot be read
            logger.exception(
                "the usage in answer %s of %s cannot be read", answer.provider_id, model_ref(model)
            )
            return row
        return row._replace(**usage.model_dump())


def _may_ask_another(error: ProviderError) -> bool:
    """Not after what may be billed, nor for a fault of the set-up (no key, a cassette that does not match)."""
    return error.billed == "no" and (error.retriable or error.status is not None)


class _Listener:
    """Who hears an answer in this process while it comes, over all its attempts."""

    def __init__(self, hear: DeltaListener) -> None:
        self._hear = hear
        self._has_heard = False

    def begin(self) -> None:
        if self._has_heard:
            self._hear(AttemptReset())
        self._has_heard = False

    def tell(self, delta: Delta) -> None:
        self._has_heard = True
        self._hear(delta)


class _Teller:
    """Tells an answer that is just coming to the run's live stream."""

    def __init__(self, attempt: Attempt, listener: _Listener | None) -> None:
        self._attempt = attempt
        self._listener = listener
        self._call_index: int | None = None
        # A process that died in the middle has told a part of an answer, and could not take it back.
        self._has_told = attempt.open_call is not None

    def begin(self) -> None:
        """A model is asked: what was told of another answer is void."""
        if self._has_told:
            self._attempt.stream("attempt.reset", None)
        self._has_told, self._call_index = False, None
        if self._listener is not None:
            self._listener.begin()

    def tell(self, delta: Delta) -> None:
        self._has_told = True
        match delta:
            case TextDelta(text=text):
                self._attempt.stream("text.delta", _storable(text))
            case ReasoningDelta(text=text):
                self._attempt.stream("reasoning.delta", _storable(text))
            case ToolArgsDelta(index=index, text=text, name=name):
                if index != self._call_index:
                    self._call_index = index
                    self._attempt.stream("tool_call", {"index": index, "name": name})
                self._attempt.stream("tool_args.delta", _storable(text))
        if self._listener is not None:
            self._listener.tell(delta)


def _storable(text: str) -> str:
    """Without what neither database can keep; the stream is for people, the memo has it all."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
