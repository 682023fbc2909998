"""`Step`: what a durable function calls. Each call becomes a memoized step of its run.

A method takes the step's key **when it is called** and returns a coroutine, so it works with `await`,
`asyncio.gather` and `TaskGroup.create_task` alike. What to do is told to the run as a `Body` (something is executed
here) or a `Wait` (something is waited for); the run itself is known only by the `StepRunner` protocol.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from datetime import datetime, timedelta
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload
from weakref import WeakKeyDictionary

from agentflow.approvals import Approval, ApprovalRules, Decision, approval_digest
from agentflow.clock import NEVER, from_datetime
from agentflow.codec import PLAIN, Codec, canonical_json, codec_for, codec_for_return, size_of
from agentflow.durations import Duration, parse_duration, to_micros
from agentflow.errors import ConfigurationError, InvalidInput, InvokeTimeout, LimitExceeded
from agentflow.events import Event, Signal
from agentflow.expressions import BOTH_EVENTS, Expression
from agentflow.functions import Function, Target
from agentflow.ids import validate_id, validate_text
from agentflow.matching import MISSING, correlation, find
from agentflow.retry import Retry
from agentflow.runs import StepKind
from agentflow.starts import child_run
from agentflow.step_runner import Attempt, Body, StepRunner, TakenKey, Wait, WaitPlan
from agentflow.store.stored_types import Json, Micros, NewApproval

if TYPE_CHECKING:
    from agentflow.inference import Inference

R = TypeVar("R")

EventLike = Event | dict[str, Any]


class Step:
    """The durable operations of one run. Step ids come first, are positional-only, and may repeat."""

    __slots__ = ("_runner", "_scope")

    def __init__(self, runner: StepRunner, scope: str = "") -> None:
        self._runner = runner
        self._scope = scope

    @property
    def ai(self) -> Inference:
        """Model calls as steps."""
        # Late: it needs Step itself, and nobody but its callers needs the models.
        from agentflow.inference import Inference

        return Inference(self)

    # ------------------------------------------------------------------------------------------- bodies

    @overload
    def run(
        self,
        id: str,
        fn: Callable[..., Awaitable[R]],
        /,
        *args: Any,
        retry: Retry | None = ...,
        timeout: Duration | None = ...,
        output: Any = ...,
    ) -> Coroutine[Any, Any, R]: ...

    @overload
    def run(
        self,
        id: str,
        fn: Callable[..., R],
        /,
        *args: Any,
        retry: Retry | None = ...,
        timeout: Duration | None = ...,
        output: Any = ...,
    ) -> Coroutine[Any, Any, R]: ...

    def run(
        self,
        id: str,
        fn: Callable[..., Any],
        /,
        *args: Any,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        output: Any = None,
    ) -> Coroutine[Any, Any, Any]:
        """Call `fn(*args)` once and for all; give what it returned, after the JSON round trip.

        The type comes from `output`, else from the return annotation of `fn`; without either only plain JSON values
        are accepted. A sync `fn` runs in a thread. `retry` is the number of retries or a tenacity policy, `timeout`
        the time one attempt may take. Raises `StepError` when the attempts are used up.

            order = await step.run("load order", load_order, order_id)
        """
        key = self._runner.take_key(self._scope, id)
        if not callable(fn):
            raise _not_callable(key, fn)
        is_coroutine, codec = _known(fn)
        if output is not None:
            codec = codec_for(output, coerce=True)
        limit = None if timeout is None else parse_duration(timeout)
        if is_coroutine:
            return self._runner.perform(
                key, Body(StepKind.RUN, None, lambda _: fn(*args), codec, retry, limit)
            )
        bound = functools.partial(fn, *args)
        return self._runner.perform(
            key, Body(StepKind.RUN, None, lambda attempt: _in_thread(attempt, bound), codec, retry, limit)
        )

    def send_event(
        self, id: str, event_or_events: EventLike | Sequence[EventLike], /
    ) -> Coroutine[Any, Any, list[str]]:
        """Send one event or many, exactly once; give their ids."""
        key = self._runner.take_key(self._scope, id)

        async def send(attempt: Attempt) -> list[str]:
            return await attempt.send_events(as_events(event_or_events))

        return self._runner.perform(key, Body(StepKind.SEND, None, send, _STRINGS))

    def send_signal(
        self, id: str, name: str, data: Any = None, /, buffer: Duration | None = None
    ) -> Coroutine[Any, Any, str | None]:
        """Send a signal, exactly once; give the id of the run that got it, `None` when it was buffered."""
        key = self._runner.take_key(self._scope, id)

        async def send(attempt: Attempt) -> str | None:
            return await attempt.send_signal(name, data, None if buffer is None else parse_duration(buffer))

        return self._runner.perform(key, Body(StepKind.SEND, _name_or_none(name, "signal name"), send, PLAIN))

    def publish(self, id: str, topic: str, data: Any = None, /) -> Coroutine[Any, Any, None]:
        """Put one message into the run's live stream: an item of kind `publish`, `{"topic": ..., "data": ...}`."""
        key = self._runner.take_key(self._scope, id)

        async def publish(attempt: Attempt) -> None:
            message = {"topic": validate_id(topic, "topic"), "data": data}
            size = size_of(PLAIN.encode(message, f"the message of step {key!r}"))
            most = self._runner.settings.max_event_bytes
            if size > most:
                raise LimitExceeded(
                    f"the message of step {key!r} has {size} bytes, over the limit of {most} (Settings.max_event_bytes)"
                )
            attempt.stream("publish", message)

        return self._runner.perform(
            key, Body(StepKind.PUBLISH, _name_or_none(topic, "topic"), publish, PLAIN)
        )

    # -------------------------------------------------------------------------------------------- waits

    def sleep(self, id: str, duration: Duration, /) -> Coroutine[Any, Any, None]:
        """Sleep, durably: the run leaves memory and goes on when the time has come, wherever a worker lives."""
        key = self._runner.take_key(self._scope, id)
        return self._runner.wait(
            key, Wait(StepKind.SLEEP, lambda _: WaitPlan(deadline=self._deadline(key, duration)), _nothing)
        )

    def sleep_until(self, id: str, until: datetime, /) -> Coroutine[Any, Any, None]:
        """Sleep until a moment (an aware datetime); one that is past continues at once."""
        key = self._runner.take_key(self._scope, id)

        def plan(_: str) -> WaitPlan:
            deadline = from_datetime(until)
            self._check_wait(key, timedelta(microseconds=deadline - self._runner.now()))
            return WaitPlan(deadline=deadline)

        return self._runner.wait(key, Wait(StepKind.SLEEP, plan, _nothing))

    def wait_for_event(
        self,
        id: str,
        /,
        *,
        event: str,
        timeout: Duration,
        match: str | None = None,
        if_: str | None = None,
        lookback: Duration | None = None,
    ) -> Coroutine[Any, Any, Event | None]:
        """Wait for an event of that name; `None` when `timeout` passes first.

        `match="data.user_id"` also demands that the arriving event has the same value there as the event that started
        this run. `if_="async.data.amount > event.data.total"` is a CEL expression over the arriving event (`async`)
        and the one that started this run (`event`); a bad one fails the run. `lookback="5m"` takes an event that
        arrived up to so long before the wait was registered.
        """
        key = self._runner.take_key(self._scope, id)

        def plan(_: str) -> WaitPlan:
            _check_event_name(event)
            return WaitPlan(
                name=validate_text(event, "event name"),
                topic=event,
                correlation=None if match is None else self._correlation(match),
                condition=None if if_ is None else _condition(key, if_),
                deadline=self._deadline(key, timeout),
                lookback_from=None
                if lookback is None
                else self._runner.now() - to_micros(parse_duration(lookback)),
            )

        return self._runner.wait(key, Wait(StepKind.EVENT, plan, _EVENT.decode))

    def wait_for_signal(
        self,
        id: str,
        /,
        *,
        signal: str,
        timeout: Duration,
        on_conflict: Literal["fail", "replace"] = "fail",
        output: Any = None,
    ) -> Coroutine[Any, Any, Signal | None]:
        """Wait for the signal of that name; `None` when `timeout` passes first. `output` validates its data.

        A second live wait of one name raises `SignalConflict`, or with `on_conflict="replace"` takes the name over:
        the first one then ends with `None`.
        """
        key = self._runner.take_key(self._scope, id)
        codec = PLAIN if output is None else codec_for(output)

        def plan(_: str) -> WaitPlan:
            _check_choice("on_conflict", on_conflict, "fail", "replace")
            return WaitPlan(
                name=validate_id(signal, "signal name"),
                topic=signal,
                deadline=self._deadline(key, timeout),
                replace=on_conflict == "replace",
            )

        def decode(text: Json) -> Signal | None:
            stored = PLAIN.decode(text)  # looked at when it was sent; here it is one level deeper
            if stored is None:
                return None
            return Signal(name=stored["name"], data=codec.decode(json.dumps(stored["data"])))

        return self._runner.wait(key, Wait(StepKind.SIGNAL, plan, decode, is_from_outside=True))

    def approval(
        self, id: str, /, *, title: str, details: Any = None, policy: Approval | None = None
    ) -> Coroutine[Any, Any, Decision]:
        """Ask a person, and wait for the decision; no decision in time is a denial."""
        return self._ask(id, tool=None, title=title, details=details, args=None, policy=policy or Approval())

    def _ask(
        self,
        id: str,
        *,
        tool: str | None,
        title: str,
        details: Any,
        args: dict[str, Any] | None,
        policy: Approval,
    ) -> Coroutine[Any, Any, Decision]:
        key = self._runner.take_key(self._scope, id)

        def plan(_: str) -> WaitPlan:
            if not isinstance(title, str):
                raise InvalidInput(
                    f"title={title!r} of an approval is a {type(title).__name__}, it has to be a str"
                )
            deadline = self._deadline(key, policy.timeout)
            approval_id = new_secret_id()
            request = NewApproval(
                id=approval_id,
                tool=tool,
                title=title,
                details=None
                if details is None
                else PLAIN.encode(details, f"the details of approval {key!r}"),
                args=None if args is None else canonical_json(args),
                args_digest=approval_digest(tool=tool, args=args, title=title, details=details),
                approvers=policy.approvers,
                min_approvals=policy.min_approvals,
                editable=policy.editable,
                policy=ApprovalRules.of(policy, now=self._runner.now()).model_dump_json(
                    exclude_defaults=True
                ),
                requested_at=self._runner.now(),
                expires_at=deadline,
            )
            return WaitPlan(
                name=tool or title,
                topic=approval_id,
                deadline=deadline,
                timeout_output=_DECISION.encode(Decision(approved=False, reason="timeout"), key),
                approval=request,
            )

        return self._runner.wait(key, Wait(StepKind.APPROVAL, plan, _DECISION.decode))

    def invoke(
        self,
        id: str,
        function: Target,
        /,
        *,
        data: Any = None,
        timeout: Duration | None = None,
        on_timeout: Literal["leave", "cancel"] = "leave",
        detach: bool = False,
    ) -> Coroutine[Any, Any, Any]:
        """Start a run of another function or agent, wait for it, and give its output, typed.

        Its failure raises `StepError`; a `timeout` raises `InvokeTimeout` and leaves the child running, or cancels it.
        `detach=True` does not wait: it gives the child's run id at once, and cancelling this run leaves it alone.
        """
        key = self._runner.take_key(self._scope, id)
        runner = self._runner
        target = function.as_function() if hasattr(function, "as_function") else function
        child_id = child_run_id(runner.run_id, key)

        async def plan(key: str) -> WaitPlan:
            _check_choice("on_timeout", on_timeout, "leave", "cancel")
            resolved = await runner.resolve_target(target)
            child = child_run(
                resolved, data, run_id=child_id, parent=runner, parent_key=None if detach else key
            )
            return WaitPlan(
                name=child.function,
                topic=child_id,
                deadline=NEVER if timeout is None else self._deadline(key, timeout),
                timeout_output=json.dumps(child_id) if detach else None,
                timeout_error=None
                if detach
                else InvokeTimeout(
                    f"step {key!r}: run {child_id} of {child.function!r} did not end within {timeout}"
                ),
                child=child,
            )

        async def cancel() -> None:
            await runner.cancel_child(child_id)

        output_codec = target.output_codec if isinstance(target, Function) else PLAIN
        return runner.wait(
            key,
            Wait(
                StepKind.INVOKE,
                plan,
                PLAIN.decode if detach else output_codec.decode,
                on_timeout=cancel if on_timeout == "cancel" else None,
                resolves_at_once=detach,
            ),
        )

    def race(
        self, id: str, /, **branches: Callable[[Step], Awaitable[Any]]
    ) -> Coroutine[Any, Any, tuple[str, Any]]:
        """Run the branches beside each other; give the name of the first to succeed, and what it returned.

        A branch is `async def (step)`; the Step it is given is its own. The others are withdrawn: their bodies are
        cancelled, their waits forgotten, their approvals and the runs they invoked cancelled. A branch that raises
        ends nothing; when all have, the last error is raised.

            name, value = await step.race("answer", mail=ask_by_mail, phone=ask_by_phone)
        """
        # Late: it needs Step itself.
        from agentflow.race import contenders

        key = self._runner.take_key(self._scope, id)
        return self._runner.race(key, contenders(self._runner, key, branches))

    # ------------------------------------------------------------------------------------------ helpers

    def _deadline(self, key: str, duration: Duration) -> Micros:
        length = parse_duration(duration)
        self._check_wait(key, length)
        return self._runner.now() + to_micros(length)

    def _check_wait(self, key: str, length: timedelta) -> None:
        longest = self._runner.settings.max_wait
        if length > longest:
            raise LimitExceeded(
                f"step {key!r} waits {length}, over the limit of {longest} (Settings.max_wait)"
            )

    def _correlation(self, path: str) -> str:
        value = find(path, self._runner.trigger_event)
        # A path that the starting event does not have can never match: the wait runs into its timeout.
        return NEVER_MATCHES if value is MISSING else correlation(path, value)


NEVER_MATCHES = "!"


def _condition(key: str, text: str) -> str:
    try:
        return Expression.condition(text, variables=BOTH_EVENTS).text
    except ConfigurationError as error:
        raise ConfigurationError(f"step {key!r}: if_: {error}") from error


def scoped(step: Step, name: str) -> Step:
    """A Step whose keys all begin with `name` and its ordinal: `support#0/...`. The ordinal is taken now."""
    ordinal = step._runner.take_ordinal(step._scope, name)
    return within(step, f"{name}#{ordinal}")


def within(step: Step, segment: str) -> Step:
    """A Step whose keys all begin with this segment, below those of `step`."""
    return Step(step._runner, f"{step._scope}{segment}/")


def ask_person(
    step: Step, id: str, *, tool: str, title: str, details: Any, args: dict[str, Any], policy: Approval
) -> Coroutine[Any, Any, Decision]:
    """The approval of a tool call: the digest covers tool and arguments."""
    return step._ask(id, tool=tool, title=title, details=details, args=args, policy=policy)


def runner_of(step: Step) -> StepRunner:
    return step._runner


def take_key(step: Step, id: str) -> TakenKey:
    """Take a step's key now, for a step that is made later, or in a task of its own."""
    return TakenKey(step._runner.take_key(step._scope, id))


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: async functions, partials of them, and objects with an async `__call__`."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)


def _known(fn: Callable[..., Any]) -> tuple[bool, Codec[Any]]:
    """Whether a function is async, and the codec of what it returns; found out once for each."""
    if type(fn) is not FunctionType:
        return is_async(fn), codec_for_return(fn)
    known = _functions.get(fn)
    if known is None:
        known = _functions[fn] = (is_async(fn), codec_for_return(fn))
    return known


_functions: WeakKeyDictionary[FunctionType, tuple[bool, Codec[Any]]] = WeakKeyDictionary()


def _not_callable(key: str, fn: object) -> ConfigurationError:
    called = inspect.iscoroutine(fn)
    if called:
        fn.close()  # type: ignore[attr-defined]  # else Python warns that nobody has awaited it
    what = "a coroutine: the function is called already" if called else f"{fn!r}, which is no function"
    return ConfigurationError(
        f"step {key!r} is given {what}; give the function itself, then its arguments: "
        "step.run(id, function, argument)"
    )


def _check_event_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"event={name!r} names no event: give the name of the one to wait for")


def _check_choice(name: str, value: object, *choices: str) -> None:
    if value not in choices:
        raise InvalidInput(f"{name}={value!r}: write {' or '.join(map(repr, choices))}")


def _name_or_none(name: str, what: str) -> str | None:
    """The name a step is shown with; of one that is not legal the body says so, as the step's outcome."""
    try:
        return validate_id(name, what)
    except InvalidInput:
        return None


def as_events(given: EventLike | Sequence[EventLike]) -> list[Event]:
    """Events from what a user may give. Raises `InvalidInput`."""
    single = isinstance(given, Event | dict)
    codec: Codec[list[Event]] = codec_for(list[Event])
    if not single and not isinstance(given, Iterable):
        raise InvalidInput(
            f"{given!r} is no event: give an Event, a dict with name and data, or a list of them"
        )
    return codec.validate([given] if single else list(given))


def child_run_id(run_id: str, key: str) -> str:
    """One child per step, whatever the retries and crashes: its id follows from the step's."""
    from hashlib import blake2b

    return f"run_{blake2b(f'{run_id}|{key}'.encode(), digest_size=16).hexdigest()}"


def new_secret_id() -> str:
    """128 random bits, or nearly: an approval's id must not be guessed, nor begin like an option of a command."""
    from secrets import token_urlsafe

    while not (made := token_urlsafe(16))[0].isalnum():
        pass
    return made


async def _in_thread(attempt: Attempt, bound: Callable[[], Any]) -> Any:
    value = await attempt.in_thread(bound)
    # A lambda around an async function looks sync until it is called.
    return await value if inspect.isawaitable(value) else value


def _nothing(_: Json) -> None:
    return None


_EVENT: Codec[Event | None] = codec_for(Event | None)
_DECISION: Codec[Decision] = codec_for(Decision)
_STRINGS: Codec[list[str]] = codec_for(list[str])
