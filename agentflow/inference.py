"""`step.ai`: one call of a model as one durable step.

What is memoized is the provider's raw answer, before anything reads it: text, tool calls, output and usage are
derived from it again on every replay. The ledger has a row for each request, committed before the request leaves,
so that after a crash it is known that an answer may have been paid for.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from agentflow.asking import Asking
from agentflow.codec import Codec, faithful_codec
from agentflow.doubts import decide, memo_of_person
from agentflow.durations import Duration, parse_duration
from agentflow.errors import ConfigurationError, InDoubt
from agentflow.keys import escape
from agentflow.models.conversation import check_conversation, check_size
from agentflow.models.deferral import billing_under, check_latency, check_streams
from agentflow.models.ledger import Billing
from agentflow.models.memo import ModelMemo, Question, name_of, read_memo
from agentflow.models.messages import MessageLike, to_messages
from agentflow.models.protocol import Model
from agentflow.models.registry import ModelLike, resolve_model
from agentflow.models.response import ModelResponse, ModelSettings, ToolSpec
from agentflow.recovering import Recovering
from agentflow.retry import Retry
from agentflow.runs import StepKind
from agentflow.step_runner import Body, RawId
from agentflow.telling import DeltaListener, Listener

if TYPE_CHECKING:
    from agentflow.step import Step
    from agentflow.step_runner import Attempt
    from agentflow.store.stored_types import Reservation

logger = logging.getLogger(__name__)

R = TypeVar("R")


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

        `billing` says what becomes of an answer that may have been paid for and was lost (a crash, a timeout): it is
        asked for again; or with `"recover"` found at the provider first; or with `"strict"` never asked for again
        silently: if it is not found, a person decides, by an approval.

        `settings=ModelSettings(latency="batch")` has it answered within a day, for half the price: a job that is waited
        for in no memory, always `"strict"`; `"2h"` and `"8h"` likewise, at OpenAI, and never less than `"recover"`.

        Raises `ProviderError` (`RateLimited`, `ContextTooLong`, ...) when the provider failed for good, `InDoubt` when
        a person did not let a lost call be made again, `ConfigurationError` where `billing` or `latency` cannot hold.
        """
        check_billing(billing)
        models = (model, *fallback)
        latency = None if settings is None else settings.latency
        check_latency(models, latency)
        check_streams(stream, latency, of=f"step.ai.infer({id!r}, stream=True)")
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
            billing=billing_under(billing, latency),
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
    """Raise `ConfigurationError` for a way of billing that there is not."""
    if billing not in ("at_least_once", "recover", "strict"):
        raise ConfigurationError(f'billing={billing!r}: give "at_least_once", "recover" or "strict"')


# ------------------------------------------------------------------------------------------------- the step


@dataclass(frozen=True)
class Asked:
    """A model call that has its answer. `is_new`: it was asked just now, not remembered."""

    key: str
    memo: ModelMemo
    is_new: bool


def check_unchanged(step: Step, asked: Asked, question: Question, *, because: str = "") -> None:
    """Say so when the code now asks something else than what the stored answer answers, and why where that is known."""
    now = question.request(asked.memo.model, asked.memo.output).digest()
    if now == asked.memo.digest:
        return
    from agentflow.step import runner_of

    runner = runner_of(step)
    told = f"model call {asked.key!r} would ask something else now than what its stored answer answers"
    if because:
        told += f" ({because})"
    if runner.settings.strict_replay:
        raise runner.mismatch(told)
    logger.warning("run %s: %s; the stored answer is used", runner.run_id, told)


_MEMO: Codec[ModelMemo] = faithful_codec(ModelMemo)


def ask_model(
    step: Step,
    id: str,
    prepare: Callable[[Attempt], Awaitable[Question]],
    *,
    name: str,
    models: Callable[[], Sequence[Model]],
    billing: Billing = "at_least_once",
    agent: str | None = None,
    shared: Sequence[Reservation] = (),
    stream: bool = False,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    on_delta: DeltaListener | None = None,
) -> Coroutine[Any, Any, Asked]:
    """The step itself. `prepare` and `models` are called in its body, so on the first run only. `shared` is what it may
    use together with others, beside the app's budgets.

    A call that is in doubt under `"strict"` fails as a step; what a person decides of it is another step, and the call
    that is made again, or the answer that was given, a third one.
    """
    from agentflow.step import runner_of, take_key

    runner = runner_of(step)
    key = take_key(step, id)
    own_id = id if isinstance(id, RawId) else escape(id)
    limit = None if timeout is None else parse_duration(timeout)
    listener = None if on_delta is None else Listener(on_delta)
    is_new = False

    async def call(given: tuple[Any, ...], attempt: Attempt) -> ModelMemo:
        nonlocal is_new
        is_new = True
        question = await prepare(attempt)
        check_conversation(question.messages)
        check_size(question.messages, most=runner.settings.max_step_bytes)
        if given:
            return memo_of_person(question, *given)
        options: dict[str, Any] = {
            "now": runner.now,
            "agent": agent,
            "shared": shared,
            "stream": stream,
            "listener": listener,
        }
        # A job that comes later is followed to its end also when the code that began it has changed meanwhile.
        under_way = None if attempt.open_call is None else attempt.open_call.latency
        way = billing_under(billing, under_way)
        if way == "at_least_once":
            return await Asking(attempt, question, **options).ask(models())
        return await Recovering(attempt, question, run_id=runner.run_id, billing=way, **options).ask(models())

    async def asked() -> Asked:
        nonlocal key
        given: tuple[Any, ...] = ()
        while True:
            body = Body(
                StepKind.INFER, name, partial(call, given), _MEMO, retry, limit, raises_own_errors=True
            )
            try:
                return Asked(key, await runner.perform(key, body), is_new)
            except InDoubt as doubt:
                if billing != "strict":
                    raise
                decision = await decide(step, own_id, doubt)
            given = () if decision.approved else (decision.value,)
            key = take_key(step, RawId(f"{own_id}/again"))

    return asked()
