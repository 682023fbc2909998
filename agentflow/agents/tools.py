"""Tools: functions that a model may call. `@tool` reads name, description and JSON Schema from the function."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, Literal, ParamSpec, TypeAlias, get_origin, overload

from pydantic_core import PydanticSerializationError, to_jsonable_python
from typing_extensions import TypeVar

from agentflow.agents.signatures import Arguments, ArgumentsInvalid, Signature, read_signature
from agentflow.approvals import Approval
from agentflow.codec import PLAIN, Codec
from agentflow.durations import Duration, parse_duration
from agentflow.errors import ConfigurationError, InvalidInput, Unserialisable
from agentflow.functions import Function, json_schema
from agentflow.models.response import ToolSpec
from agentflow.retry import Retry
from agentflow.step import Step, is_async

P = ParamSpec("P")
R = TypeVar("R")
Deps = TypeVar("Deps", default=Any)

Effect: TypeAlias = Literal["idempotent", "once"]

# What both big APIs take as the name of a tool.
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class ToolContext(Generic[Deps]):
    """What a tool or a guardrail may know of where it runs: a parameter annotated `ToolContext` gets it."""

    deps: Deps
    """What the agent's `deps` factory made in this process."""
    run_id: str
    step_id: str
    """The key of the step."""
    attempt: int
    """0 for the first."""
    agent: str
    tool: str | None = None
    """The tool that is called, `None` for a guardrail on input or output."""
    logger: logging.LoggerAdapter[logging.Logger] = field(repr=False)

    @property
    def idempotency_key(self) -> str:
        """The same in every attempt, and unlike any other step's: give it to services that deduplicate."""
        return f"{self.run_id}:{self.step_id}"


class Tool(Generic[P, R]):
    """A function that a model may call; still callable as the plain function."""

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        description: str | None = None,
        approval: bool | Approval = False,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        effect: Effect = "idempotent",
    ) -> None:
        self.function = function
        self.name = checked_name(name or str(getattr(function, "__name__", "")))
        self._signature: Signature = read_signature(function, name=self.name, special=_special)
        self.description = self._signature.told.description if description is None else description
        self.approval = _policy(approval)
        self.retry = retry
        self.timeout: timedelta | None = None if timeout is None else parse_duration(timeout)
        self.is_async = is_async(function)
        kinds = self._signature.special
        self.context_parameter = next((name for name, kind in kinds.items() if kind == "context"), None)
        self.step_parameter = next((name for name, kind in kinds.items() if kind == "step"), None)
        self.effect: Effect = effect
        self._check()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Tool {self.name}>"

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the arguments."""
        return self._signature.schema

    @property
    def spec(self) -> ToolSpec:
        """The tool as a model is told of it."""
        return ToolSpec(name=self.name, description=self.description, schema=self.schema)

    def validate(self, given: dict[str, Any]) -> Arguments:
        """A model's arguments as the function takes them. Raises `ArgumentsInvalid`."""
        return self._signature.validate(given)

    def plain(self, arguments: Arguments) -> dict[str, Any]:
        """The arguments as `Approval.when` gets them: a dict of plain values."""
        return self._signature.plain(arguments)

    def _check(self) -> None:
        if self.effect not in ("idempotent", "once"):
            raise ConfigurationError(
                f'tool {self.name!r}: effect={self.effect!r}; give "idempotent" or "once"'
            )
        if self.effect == "once" and self.retry is not None:
            raise ConfigurationError(
                f'tool {self.name!r}: effect="once" is not tried again by itself, so that retry= means nothing: leave '
                "it out, and `raise RetryAfter(...)` in the tool where it knows that nothing has happened"
            )
        if self.effect == "once" and self.step_parameter is not None:
            raise ConfigurationError(
                f'tool {self.name!r} takes a Step and is no step itself: effect="once" cannot hold for it; make the '
                "effect a tool of its own"
            )
        if self.step_parameter is None:
            return
        if not self.is_async:
            raise ConfigurationError(f"tool {self.name!r} takes a Step: make it `async def`")
        if self.retry is not None or self.timeout is not None:
            raise ConfigurationError(
                f"tool {self.name!r} takes a Step and is no step itself: give retry= and timeout= to the steps it runs"
            )


class FunctionTool(Tool[..., Any]):
    """A durable function as a tool: a call of it is a run of its own, invoked by the call's step."""

    def __init__(
        self,
        function: Function[Any, Any],
        *,
        name: str | None = None,
        description: str | None = None,
        approval: bool | Approval = False,
    ) -> None:
        async def invoke(data: Any) -> Any: ...

        super().__init__(
            invoke,
            name=name or re.sub(r"[^a-zA-Z0-9_-]", "_", function.id)[:64],
            description=function.description if description is None else description,
            approval=approval,
        )
        self.invoked = function
        self._input_schema = json_schema(function.input_codec)
        self.takes_fields = self._input_schema.get("type") == "object"
        """Whether the arguments are the fields of its input; else they are one, `data`."""

    @property
    def schema(self) -> dict[str, Any]:
        if self.takes_fields:
            return self._input_schema
        given = dict(self._input_schema)
        definitions = given.pop("$defs", None)
        wrapped: dict[str, Any] = {"type": "object", "properties": {"data": given}}
        if self._input_schema:
            wrapped["required"] = ["data"]
        return wrapped if definitions is None else wrapped | {"$defs": definitions}

    def validate(self, given: dict[str, Any]) -> Arguments:
        if not self.takes_fields and (unknown := given.keys() - {"data"}):
            raise ArgumentsInvalid(f"The arguments do not validate: there is no {', '.join(sorted(unknown))}")
        try:
            self.invoked.input_codec.validate(given if self.takes_fields else given.get("data"))
        except InvalidInput as error:
            raise ArgumentsInvalid(f"The arguments do not validate: {error}") from error
        return Arguments(values={"data": given if self.takes_fields else given.get("data")}, json=given)

    def plain(self, arguments: Arguments) -> dict[str, Any]:
        return dict(arguments.json)


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = ...,
    description: str | None = ...,
    approval: bool | Approval = ...,
    retry: Retry | None = ...,
    timeout: Duration | None = ...,
    effect: Effect = ...,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    approval: bool | Approval = False,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    effect: Effect = "idempotent",
) -> Any:
    """Make a function a tool. Its docstring is the description, with what it says of the parameters.

    With `approval` a person decides before it runs. `retry` and `timeout` are those of its step. With `effect="once"`
    it is never run again by itself: when its process died in the midst of it, or it raised what says nothing of its
    effect, a person decides (approve: run it again; respond: this is its result; deny: the run fails). A parameter
    annotated `ToolContext` or `Step` is not told to the model; a tool that takes a `Step` runs steps of its own.
    In the tool, `raise ModelRetry(text)` asks the model again and `raise ToolFailed(text)` tells it of the failure;
    any other exception fails the step, which is retried. Of a durable function, a call is a run of its own.

        @tool(approval=Approval(when=lambda args: args["amount"] > 100))
        async def refund(order_id: str, amount: Decimal, ctx: ToolContext) -> str: ...
    """

    def make(function: Callable[..., Any]) -> Tool[..., Any]:
        if isinstance(function, Function):
            if retry is not None or timeout is not None or effect != "idempotent":
                raise ConfigurationError(
                    f"{function.id!r} is a durable function: it has its own retries and timeouts, and runs as often as "
                    "its own steps say. Leave out retry=, timeout= and effect="
                )
            return FunctionTool(function, name=name, description=description, approval=approval)
        return Tool(
            function,
            name=name,
            description=description,
            approval=approval,
            retry=retry,
            timeout=timeout,
            effect=effect,
        )

    return make if function is None else make(function)


ToolLike: TypeAlias = Tool[..., Any] | Callable[..., Any]


def as_tools(given: Sequence[ToolLike], *, of: str) -> tuple[Tool[..., Any], ...]:
    """Tools, from tools and plain functions. Raises `ConfigurationError` when two have one name."""
    if not isinstance(given, list | tuple):
        raise ConfigurationError(f"{of}: tools={given!r}: give a list of tools")
    tools: dict[str, Tool[..., Any]] = {}
    for item in given:
        if not isinstance(item, Tool) and (not callable(item) or isinstance(item, type)):
            raise ConfigurationError(f"{of}: {item!r} is no tool: give a function, or one made with @tool")
        made = item if isinstance(item, Tool) else tool(item)
        if made.name in tools:
            raise ConfigurationError(
                f"{of} has two tools called {made.name!r}: give one of them another name="
            )
        tools[made.name] = made
    return tuple(tools.values())


class ResultCodec(Codec[Any]):
    """What a tool returns, as the model is told it: any value that pydantic can write as JSON."""

    def round_trip(self, value: Any, where: str) -> tuple[str, Any]:
        try:
            plain = to_jsonable_python(value, by_alias=True)
        except (PydanticSerializationError, ValueError) as error:
            raise Unserialisable(f"{where}: the tool's result has no JSON form: {error}") from error
        return PLAIN.round_trip(plain, where)

    def decode(self, text: str | bytes) -> Any:
        return PLAIN.decode(text)

    def validate(self, value: object) -> Any:
        return PLAIN.validate(value)

    def json_schema(self) -> dict[str, Any]:
        return {}


def checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no name for a tool: use 1 to 64 letters, digits, '_' and '-', or give name="
        )
    return name


def _policy(approval: bool | Approval) -> Approval | None:
    if isinstance(approval, Approval):
        return approval
    return Approval() if approval else None


def _special(annotation: Any) -> str | None:
    if (get_origin(annotation) or annotation) is ToolContext:
        return "context"
    return "step" if annotation is Step else None
