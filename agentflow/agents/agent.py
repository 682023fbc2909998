"""`Agent`: a model with instructions and tools, run as a loop of durable steps."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import UnionType
from typing import Any, Generic, Union, cast

from typing_extensions import TypeVar

from agentflow.agents.compaction import Compaction
from agentflow.agents.guardrails import GuardFunction, Guardrail, as_guardrails
from agentflow.agents.limits import Limits
from agentflow.agents.loop import Loop
from agentflow.agents.mcp import McpServer
from agentflow.agents.result import AgentResult, Prompt
from agentflow.agents.stream import AgentStream
from agentflow.agents.subagents import AgentInput, AgentTool
from agentflow.agents.surroundings import DepsFactory
from agentflow.agents.tools import Tool, ToolLike, as_tools
from agentflow.agents.toolset import check_names
from agentflow.codec import codec_for
from agentflow.context import Context
from agentflow.errors import ConfigurationError
from agentflow.functions import Function
from agentflow.inference import check_billing
from agentflow.models.deferral import check_latency, check_streams
from agentflow.models.ledger import Billing
from agentflow.models.messages import UserPart
from agentflow.models.registry import ModelLike
from agentflow.models.response import ModelSettings
from agentflow.roundtrip import storable_text
from agentflow.step import Step, scoped

T = TypeVar("T", default=str)
Deps = TypeVar("Deps", default=Any)

Instructions = str | Callable[[Context[Any]], str | Awaitable[str]]

_NAME = re.compile(r"[\w.-]{1,200}")


class Agent(Generic[T, Deps]):
    """A model that works with tools until it can give an output.

    `model` is "provider:model", a `Model`, or an async function of a `ModelRequest`. `output` is any type pydantic
    knows. `deps` makes, in each process, what tools find in `ctx.deps`; it is never stored. `fallback` models are
    asked only after a failure that was not billed. `version` names what the agent is now: a run keeps the one that it
    began with, together with its model, rendered instructions and tools.

        support = Agent("support", model="anthropic:claude-sonnet-4-5", tools=[lookup_order, refund], output=Resolution)
        app.add(support)                                     # POST /agents/support/runs
        result = await support.run(step, "Where is my order?")   # or as steps of any function

    Every model call and tool call is a step: `support#0/turn0/model`, `support#0/turn0/0:lookup_order`.
    """

    def __init__(
        self,
        name: str,
        *,
        model: ModelLike,
        instructions: Instructions | None = None,
        tools: Sequence[ToolLike | McpServer] = (),
        output: type[T] | UnionType = cast("type[T]", str),  # noqa: B008 - a cast is no call
        handoffs: Sequence[Agent[Any, Any]] = (),
        limits: Limits | None = None,
        settings: ModelSettings | None = None,
        guardrails: Sequence[Guardrail | GuardFunction] = (),
        fallback: Sequence[ModelLike] = (),
        billing: Billing = "at_least_once",
        deps: DepsFactory | None = None,
        compaction: Compaction | None = None,
        version: str | None = None,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"Agent({name!r}): a name has letters, digits, '.', '-' and '_'")
        self.name = name
        self.model = model
        self.instructions = instructions
        own, self.servers = _own_and_servers(tools)
        self.tools: tuple[Tool[..., Any], ...] = as_tools(own, of=f"agent {name!r}")
        self.output: Any = output
        self.handoffs: tuple[Agent[Any, Any], ...] = tuple(handoffs)
        self.limits = limits or Limits()
        self.settings = settings or ModelSettings()
        self.guardrails = as_guardrails(guardrails)
        self.fallback = tuple(fallback)
        self.billing = billing
        self.deps = deps
        self.compaction = compaction
        self.version = version
        self._functions: dict[str, AgentFunction] = {}
        self._check()

    def __repr__(self) -> str:
        return f"<Agent {self.name}>"

    def run(
        self, step: Step, prompt: Prompt, *, deps: Deps | None = None, thread: str | None = None
    ) -> Coroutine[Any, Any, AgentResult[T]]:
        """Run the agent as steps of this run. Its steps are numbered when this is called: `support#0/...`.

        `deps` stands for what the agent's `deps` factory would make. On a `thread` it goes on from what was said there,
        and what is said now is kept there when it has come to its end; one turn at a time. Raises `BudgetExceeded`,
        `OutputInvalid`, `Refused`, `GuardrailTripped`, `ProviderError`, and `StepError` when a tool failed for good.
        """
        return Loop(self, scoped(step, self.name), prompt, deps=deps, thread=thread).execute()

    def stream(
        self, step: Step, prompt: Prompt, *, deps: Deps | None = None, thread: str | None = None
    ) -> AgentStream[AgentResult[T]]:
        """Run the agent and give what its models say while they say it; the last item is the `AgentResult`.

        On replay there are no deltas. An `AttemptReset` between them says that a call has failed and is made again:
        what it said so far is void. Raises `ConfigurationError` where the agent's answers come later (`latency=`).
        """
        check_streams(True, self.settings.latency, of=f"{self!r}.stream()")
        own = scoped(step, self.name)
        return AgentStream(
            lambda listen: Loop(self, own, prompt, deps=deps, thread=thread, on_delta=listen).execute()
        )

    def as_tool(self, description: str, *, name: str | None = None) -> AgentTool:
        """The agent as another one's tool: it takes a `prompt`, and its work is a run of its own."""
        return AgentTool(self, description, name=name or self.name)

    def as_function(self, app: str = "") -> AgentFunction:
        """The durable function `agents/<name>` of an app; its input is `AgentInput` or a str."""
        if app not in self._functions:
            self._functions[app] = AgentFunction(self, app)
        return self._functions[app]

    def override(self, **changes: Any) -> Agent[T, Deps]:
        """The same agent but for these arguments of `Agent(...)`: `agent.override(model="openai:gpt-5-mini")`."""
        current = {name: getattr(self, name) for name in _ARGUMENTS if name != "name"}
        current["tools"] = (*self.tools, *self.servers)
        given: dict[str, Any] = {name: changes.pop(name, value) for name, value in current.items()}
        if changes:
            raise ConfigurationError(
                f"agent {self.name!r} has no {', '.join(map(repr, changes))} to override"
            )
        return Agent(self.name, **given)

    def sub_agents(self) -> list[Agent[Any, Any]]:
        """Every other agent that it can call or hand over to, and theirs."""
        found: list[Agent[Any, Any]] = []
        pending: list[Agent[Any, Any]] = [self]
        while pending:
            agent = pending.pop()
            for other in agent.related:
                if other is not self and not any(other is known for known in found):
                    found.append(other)
                    pending.append(other)
        return found

    @property
    def related(self) -> list[Agent[Any, Any]]:
        """The agents that it calls or hands over to itself."""
        return [*(tool.agent for tool in self.tools if isinstance(tool, AgentTool)), *self.handoffs]

    def output_type(self) -> Any:
        """What a run of it may end with: its own output, or that of an agent it hands over to."""
        seen: list[Agent[Any, Any]] = [self]
        for agent in seen:
            seen += [other for other in agent.handoffs if not any(other is known for known in seen)]
        return Union[tuple(agent.output for agent in seen)]  # noqa: UP007 - their number is not known

    def _check(self) -> None:
        check_billing(self.billing)
        check_latency((self.model, *self.fallback), self.settings.latency)
        for model in (self.model, *self.fallback):
            if isinstance(model, str) and not all(model.partition(":")):
                raise ConfigurationError(
                    f"agent {self.name!r}: the model {model!r} names no provider: write 'provider:model'"
                )
        if self.output is None:
            raise ConfigurationError(f"agent {self.name!r}: output=None is no type; for text leave it out")
        version: object = self.version
        if version is not None and not (isinstance(version, str) and version):
            raise ConfigurationError(f"agent {self.name!r}: version={version!r}: give a str, as '2'")
        if self.compaction is not None and not isinstance(self.compaction, Compaction):
            raise ConfigurationError(
                f"agent {self.name!r}: compaction={self.compaction!r}: give a Compaction"
            )
        if (
            self.instructions is not None
            and not isinstance(self.instructions, str)
            and not callable(self.instructions)
        ):
            raise ConfigurationError(
                f"agent {self.name!r}: instructions= is a str or a function of the Context"
            )
        for other in self.handoffs:
            if not isinstance(other, Agent):
                raise ConfigurationError(f"agent {self.name!r}: handoffs={other!r}: give agents")
        names = [server.name for server in self.servers]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(f"agent {self.name!r} has two MCP servers called {name!r}")
        check_names(self, self.tools)
        codec_for(self.output)  # raises for what has no JSON form


_ARGUMENTS = (
    "name",
    "model",
    "instructions",
    "tools",
    "output",
    "handoffs",
    "limits",
    "settings",
    "guardrails",
    "fallback",
    "billing",
    "deps",
    "compaction",
    "version",
)


class AgentFunction(Function[AgentInput, Any]):
    """An agent as a durable function."""

    def __init__(self, agent: Agent[Any, Any], app: str) -> None:
        self.agent = agent

        async def run_agent(context: Context[AgentInput], step: Step) -> Any:
            given = context.data
            own = scoped(step, agent.name)
            loop = Loop(agent, own, _as_message(given.prompt), thread=given.thread, budget=given.budget)
            output = (await loop.execute()).output
            return storable_text(output) if type(output) is str else output

        super().__init__(
            run_agent,
            id=f"agents/{agent.name}",
            app=app,
            input_type=AgentInput,
            output_type=agent.output_type(),
            description=agent.instructions.strip().partition("\n")[0]
            if isinstance(agent.instructions, str)
            else "",
            is_agent=True,
            related=tuple(agent.related),
        )
        self.checks_of_tools = {tool.name: tool.validate for tool in agent.tools}


def _as_message(prompt: str | list[str | UserPart]) -> Prompt:
    """All of it is one message, also where there is nothing but texts."""
    return prompt if isinstance(prompt, str) else {"role": "user", "parts": prompt}


def _own_and_servers(
    given: Sequence[ToolLike | McpServer],
) -> tuple[Sequence[ToolLike], tuple[McpServer, ...]]:
    """Tools apart from the servers that will tell of theirs."""
    if not isinstance(given, list | tuple):
        return cast("Sequence[ToolLike]", given), ()  # refused by who reads it
    servers = tuple(item for item in given if isinstance(item, McpServer))
    return [item for item in given if not isinstance(item, McpServer)], servers
