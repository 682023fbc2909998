"""Durable functions: what `@app.function` makes, and the registry that holds them."""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from hashlib import sha256
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

from pydantic.errors import PydanticInvalidForJsonSchema

from agentflow.admission import gate_limits, rules_as_json, rules_from_json
from agentflow.codec import Codec, codec_for
from agentflow.context import Context
from agentflow.durations import Duration, parse_duration, to_micros
from agentflow.errors import ConfigurationError, InvalidInput, NotFound
from agentflow.events import EventTrigger
from agentflow.expressions import BOTH_EVENTS, Expression
from agentflow.flow import CancelOn, RunFailure, Timeouts
from agentflow.flow_control import NO_FLOW_CONTROL, FlowControl
from agentflow.retry import MOST_RETRIES, Retry, RetryPolicy, retry_policy
from agentflow.store.claim_types import FunctionInfo
from agentflow.store.stored_types import GateLimits
from agentflow.timetable import Schedule

T = TypeVar("T")
R = TypeVar("R")
Handler = Callable[[Context[Any], Any], Awaitable[Any]]

_ID = re.compile(r"[\w.-]+(/[\w.-]+)*")


@dataclass(frozen=True)
class FunctionRef:
    """A function by name: one of this app, or of another app in the same database."""

    id: str
    app: str | None = None


@dataclass(frozen=True)
class RegisteredRef(FunctionRef):
    """A function that is not known here, but registered in this database."""

    cancel_on: tuple[CancelOn, ...] = ()
    flow: FlowControl = NO_FLOW_CONTROL
    start_within: int | None = None

    @staticmethod
    def find(ref: FunctionRef, infos: Iterable[FunctionInfo], *, app: str) -> RegisteredRef | None:
        """The function of that name; without an app it is one of `app`."""
        for info in infos:
            if (info.app, info.id) == (ref.app or app, ref.id):
                return RegisteredRef(
                    info.id,
                    info.app,
                    cancel_on=cancel_on_of(info),
                    flow=flow_of(info),
                    start_within=start_within_of(info),
                )
        return None


@dataclass(frozen=True, kw_only=True)
class FunctionConfig:
    """How a function's runs behave. `retry` is the default of its steps and rules the code between them too."""

    retries: int = 4
    retry: Retry | None = None
    step_timeout: Duration | None = None
    on_failure: Handler | None = None
    timeouts: Timeouts | None = None
    cancel_on: tuple[CancelOn, ...] = ()
    flow: FlowControl = NO_FLOW_CONTROL
    policy: RetryPolicy = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if type(self.retries) is not int or not 0 <= self.retries <= MOST_RETRIES:
            raise ConfigurationError(
                f"retries={self.retries!r}: give a number of retries, 0 to {MOST_RETRIES}"
            )
        if self.step_timeout is not None:
            try:
                parse_duration(self.step_timeout)
            except InvalidInput as error:
                raise ConfigurationError(f"step_timeout={self.step_timeout!r}: {error}") from None
        if not isinstance(self.timeouts, Timeouts | None):
            raise ConfigurationError(f"timeouts={self.timeouts!r}: give Timeouts(start=..., finish=...)")
        for rule in self.cancel_on:
            if rule.if_ is not None:
                try:
                    Expression.condition(rule.if_, variables=BOTH_EVENTS)
                except ConfigurationError as error:
                    raise ConfigurationError(
                        f"cancel_on=CancelOn({rule.event!r}, if_=...): {error}"
                    ) from error
        policy = retry_policy(self.retries if self.retry is None else self.retry)
        object.__setattr__(self, "policy", policy)

    @property
    def start_within(self) -> int | None:
        """How long a run may stay without beginning, in microseconds."""
        start = None if self.timeouts is None else self.timeouts.start
        return None if start is None else to_micros(start)

    def of_failures(self) -> FunctionConfig:
        """How the runs of `on_failure` behave: with the same patience, but no flow control and no failure of theirs."""
        return FunctionConfig(retries=self.retries, retry=self.retry, step_timeout=self.step_timeout)


class Function(Generic[T, R]):
    """A durable function. Still callable as the plain function it was made from."""

    def __init__(
        self,
        handler: Handler,
        *,
        id: str,
        app: str,
        triggers: tuple[EventTrigger | Schedule, ...] = (),
        config: FunctionConfig | None = None,
        input_type: Any = inspect.Parameter.empty,
        output_type: Any = inspect.Parameter.empty,
        description: str = "",
        is_agent: bool = False,
        related: tuple[Invocable, ...] = (),
    ) -> None:
        self.id = id
        self.app = app
        self.handler = handler
        self.triggers = tuple(trigger for trigger in triggers if isinstance(trigger, EventTrigger))
        self.schedules = tuple(trigger for trigger in triggers if isinstance(trigger, Schedule))
        self.config = config or FunctionConfig()
        self.input_codec: Codec[Any] = codec_for(input_type)
        self.output_codec: Codec[Any] = codec_for(output_type)
        self.description = description
        self.is_agent = is_agent
        self.related = related
        """What has to be registered with it: the functions it invokes by itself."""
        self.on_failure: Function[RunFailure, Any] | None = None
        """What a failed run starts: the function `<id>-failure`."""
        if self.config.on_failure is not None:
            self.on_failure = Function(
                self.config.on_failure,
                id=f"{id}-failure",
                app=app,
                config=self.config.of_failures(),
                input_type=RunFailure,
                output_type=function_types(self.config.on_failure)[1],
                description=(self.config.on_failure.__doc__ or f"After a failed run of {id}.").strip(),
            )
            self.related = (*related, self.on_failure)
        self.checks_of_tools: Mapping[str, Callable[[dict[str, Any]], object]] = {}
        """For an agent, by tool: what raises an `AgentflowError` for arguments that the tool would not take."""
        self._info: FunctionInfo | None = None

    def __call__(self, ctx: Context[T], step: Any) -> Awaitable[R]:
        return cast("Awaitable[R]", self.handler(ctx, step))

    def __repr__(self) -> str:
        return f"<Function {self.app}:{self.id}>"

    def as_function(self) -> Function[Any, Any]:
        return self

    def info(self) -> FunctionInfo:
        """What the database keeps of it, for senders that do not import it."""
        # Asked for by each send, and nothing of it changes: the JSON Schemas alone would take a millisecond.
        if self._info is None:
            self._info = self._describe()
        return self._info

    def _describe(self) -> FunctionInfo:
        schemas = {
            "input": json_schema(self.input_codec),
            "output": json_schema(self.output_codec),
            "agent": self.is_agent,
            "description": self.description,
        }
        triggers = json.dumps(
            [
                *(trigger.model_dump() for trigger in self.triggers),
                *(schedule.describe() for schedule in self.schedules),
            ]
        )
        config = json.dumps(
            {"retries": self.config.retries}
            | ({"cancel_on": list(map(asdict, self.config.cancel_on))} if self.config.cancel_on else {})
            | ({"flow": rules_as_json(self.config.flow)} if self.config.flow else {})
            | ({} if self.config.start_within is None else {"start_within": self.config.start_within}),
            default=timedelta.total_seconds,
        )
        text = json.dumps(schemas, sort_keys=True)
        version = sha256(f"{triggers}{config}{text}".encode()).hexdigest()[:12]
        return FunctionInfo(self.app, self.id, version, triggers, config, text, rules=self.config.flow)


@runtime_checkable
class Invocable(Protocol):
    """What can be started or invoked: a function, or something that stands for one, as an agent does."""

    def as_function(self) -> Function[Any, Any]: ...


Target = Invocable | FunctionRef | str


class Registry:
    """The functions of one app."""

    def __init__(self, app: str) -> None:
        self.app = app
        self._functions: dict[str, Function[Any, Any]] = {}
        self._frozen_by: str | None = None

    def add(self, function: Function[Any, Any]) -> None:
        if self._frozen_by is not None:
            raise ConfigurationError(
                f"function {function.id!r} was registered after app {self.app!r} was {self._frozen_by}: "
                "register every function before that, usually by importing its module"
            )
        if not _ID.fullmatch(function.id):
            raise ConfigurationError(
                f"function id {function.id!r}: use letters, digits, '.', '-', '_' and '/'"
            )
        other = self._functions.get(function.id)
        if other is not None:
            raise ConfigurationError(
                f"function id {function.id!r} is registered twice in app {self.app!r} "
                f"({_place(other.handler)} and {_place(function.handler)}): give one of them another id"
            )
        self._functions[function.id] = function

    def freeze(self, by: str) -> None:
        """From now on `add` refuses; `by` says what happened to the app."""
        self._frozen_by = self._frozen_by or by

    def __iter__(self) -> Iterator[Function[Any, Any]]:
        return iter(self._functions.values())

    def __len__(self) -> int:
        return len(self._functions)

    def ids(self) -> tuple[str, ...]:
        return tuple(self._functions)

    def gates(self) -> dict[str, GateLimits]:
        """How wide the gates are of those functions that have some."""
        limits = {function.id: gate_limits(function.config.flow) for function in self}
        return {id: limit for id, limit in limits.items() if limit is not None}

    def find(self, function_id: str) -> Function[Any, Any] | None:
        return self._functions.get(function_id)

    def resolve(self, target: Target) -> Function[Any, Any] | FunctionRef:
        """The function itself where it is known here, else a reference to one that another app may have."""
        if isinstance(target, Function) and self._functions.get(target.id) is target:
            return target
        if isinstance(target, str):
            target = FunctionRef(target)
        if isinstance(target, FunctionRef):
            if target.app not in (None, self.app):
                return target
            found = self._functions.get(target.id)
            if found is None:
                known = ", ".join(sorted(self._functions)) or "none"
                raise NotFound(f"app {self.app!r} has no function {target.id!r}; it has: {known}")
            return found
        if isinstance(target, Invocable):
            function = target.as_function()
            if self._functions.get(function.id) is None:
                raise NotFound(
                    f"{function.id!r} is not registered in app {self.app!r}: "
                    "use @app.function, or app.add(...) for an agent"
                )
            return self._functions[function.id]
        raise ConfigurationError(
            f"{target!r} is no function: give a Function, an Agent, a FunctionRef or an id"
        )


def cancel_on_of(info: FunctionInfo) -> tuple[CancelOn, ...]:
    """Which events cancel the runs of a registered function."""
    return tuple(CancelOn(**rule) for rule in json.loads(info.config).get("cancel_on", ()))


def flow_of(info: FunctionInfo) -> FlowControl:
    """The flow control of a registered function."""
    if isinstance(info.rules, FlowControl):
        return info.rules
    return rules_from_json(json.loads(info.config).get("flow", {}))


def start_within_of(info: FunctionInfo) -> int | None:
    """How long a run of a registered function may stay without beginning, in microseconds."""
    within: int | None = json.loads(info.config).get("start_within")
    return within


def function_types(fn: Callable[..., Any]) -> tuple[Any, Any]:
    """`(T, R)` of `async def f(ctx: Context[T], step: Step) -> R`; `empty` where nothing is annotated."""
    if not inspect.iscoroutinefunction(fn):
        raise ConfigurationError(f"{_place(fn)} is not async: a durable function is `async def f(ctx, step)`")
    parameters = list(inspect.signature(fn).parameters.values())
    if len(parameters) != 2:
        raise ConfigurationError(
            f"{_place(fn)} takes {len(parameters)} argument(s): a durable function takes (ctx, step)"
        )
    try:
        hints = typing.get_type_hints(fn, include_extras=True)
    except NameError as error:
        raise ConfigurationError(
            f"the annotations of {_place(fn)} cannot be resolved: {error}. "
            "Define or import the type at the module's top level, before the function"
        ) from error
    context, step = (hints.get(parameter.name) for parameter in parameters)
    if step is Context or typing.get_origin(step) is Context:
        raise ConfigurationError(
            f"{_place(fn)} takes its context second: a durable function takes (ctx, step), in this order"
        )
    arguments = typing.get_args(context) if typing.get_origin(context) is Context else ()
    return (
        arguments[0] if arguments else inspect.Parameter.empty,
        hints.get("return", inspect.Parameter.empty),
    )


def kebab(name: str) -> str:
    """`handle_ticket` as `handle-ticket`."""
    return name.strip("_").replace("_", "-").lower()


def json_schema(codec: Codec[Any]) -> dict[str, Any]:
    """The JSON Schema of a codec's type; `{}` (anything) where pydantic knows none."""
    try:
        return codec.json_schema()
    except PydanticInvalidForJsonSchema:  # it validates all the same: others only lose the form for it
        return {}


def _place(fn: Callable[..., Any]) -> str:
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', repr(fn))}"
