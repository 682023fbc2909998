"""Agents and durable functions as tools: their work is a run of its own, invoked by the call's step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import to_jsonable_python

from agentflow.agents.calls import Made
from agentflow.agents.guardrails import Guardrail
from agentflow.agents.limits import Rest
from agentflow.agents.signatures import Arguments
from agentflow.agents.surroundings import Surroundings
from agentflow.agents.tools import FunctionTool, Tool
from agentflow.models.messages import ToolCall, UserPart
from agentflow.step import Step, child_run_id, runner_of

if TYPE_CHECKING:
    from agentflow.agents.agent import Agent


class AgentInput(BaseModel):
    """What an agent is started with; a str is taken for the prompt, which may have images and files beside its text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[str | Annotated[UserPart, Field(discriminator="kind")]], Field(min_length=1)]
    )
    thread: str | None = Field(default=None, min_length=1, max_length=512)
    """The conversation that it goes on with."""
    budget: SkipJsonSchema[Rest | None] = Field(default=None, exclude_if=lambda budget: budget is None)
    """What the agent may use at most, beside its own limits: the rest of its parent's."""

    if not TYPE_CHECKING:  # AgentInput("text") is how people write it

        def __init__(self, prompt: str | list[str | UserPart] | None = None, /, **fields: Any) -> None:
            super().__init__(**({} if prompt is None else {"prompt": prompt}), **fields)

    @model_validator(mode="before")
    @classmethod
    def _accept_a_prompt(cls, value: object) -> object:
        return {"prompt": value} if isinstance(value, str | list) else value


class AgentTool(Tool[..., Any]):
    """An agent as a tool: it takes a prompt, and its result is the agent's output."""

    def __init__(self, agent: Agent[Any, Any], description: str, *, name: str) -> None:
        async def ask(prompt: str) -> Any: ...

        super().__init__(ask, name=name, description=description)
        self.agent = agent


class Delegated(Made):
    """A call of a sub-agent."""

    def __init__(
        self,
        call: ToolCall,
        tool: AgentTool,
        *,
        step: Step,
        turn: int,
        around: Surroundings,
        guardrails: Sequence[Guardrail],
        budget: Rest | None,
    ) -> None:
        super().__init__(call, tool, step=step, turn=turn, around=around, guardrails=guardrails)
        self._agent = tool.agent
        self._budget = budget

    @property
    def run_id(self) -> str:
        """The run that does the work, whether or not it has begun."""
        return child_run_id(runner_of(self._step).run_id, self.key)

    async def _run(self, arguments: Arguments, approved: dict[str, Any] | None) -> Any:
        data = AgentInput(prompt=arguments.values["prompt"], budget=self._budget)
        return to_jsonable_python(await self._step.invoke(self.key, self._agent, data=data), by_alias=True)


class Invoked(Made):
    """A call of a durable function."""

    def __init__(
        self,
        call: ToolCall,
        tool: FunctionTool,
        *,
        step: Step,
        turn: int,
        around: Surroundings,
        guardrails: Sequence[Guardrail],
    ) -> None:
        super().__init__(call, tool, step=step, turn=turn, around=around, guardrails=guardrails)
        self._function = tool.invoked

    @property
    def run_id(self) -> str:
        """The run that does the work, whether or not it has begun."""
        return child_run_id(runner_of(self._step).run_id, self.key)

    @property
    def _is_step(self) -> bool:
        return False  # what was approved is looked at in a step before

    async def _run(self, arguments: Arguments, approved: dict[str, Any] | None) -> Any:
        if approved is not None:
            await self._check_approved(approved)
        output = await self._step.invoke(self.key, self._function, data=arguments.values["data"])
        return to_jsonable_python(output, by_alias=True)
