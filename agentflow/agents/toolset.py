"""The tools that an agent has in one run of it: its own, and those of its MCP servers, which are listed as a step."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agentflow.agents.handoffs import handoff_name
from agentflow.agents.mcp import McpServer
from agentflow.agents.tools import Tool
from agentflow.codec import Codec, codec_for
from agentflow.errors import ConfigurationError
from agentflow.models.output import FINAL_ANSWER
from agentflow.models.response import ToolSpec
from agentflow.runs import StepKind
from agentflow.step import Step, runner_of, take_key
from agentflow.step_runner import Attempt, Body, RawId

if TYPE_CHECKING:
    from agentflow.agents.agent import Agent

_LISTED: Codec[list[ToolSpec]] = codec_for(list[ToolSpec])


class Toolset:
    """The tools of the agents of one loop. A server is asked once, whichever of them have it; replay asks the memo."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._listed: dict[str, tuple[McpServer, list[ToolSpec]]] = {}
        self._of: dict[str, tuple[Tool[..., Any], ...]] = {}
        self.steps: list[str] = []
        """The keys of the steps that asked servers."""

    async def prepare(self, agent: Agent[Any, Any]) -> None:
        """Know the agent's tools. Raises `ConfigurationError` where two have one name."""
        if agent.name not in self._of:
            await self._list(agent.servers)
            given = [server.tool(spec) for server in agent.servers for spec in self._listed[server.name][1]]
            self._of[agent.name] = (*agent.tools, *given)
            check_names(agent, self._of[agent.name])

    def of(self, agent: Agent[Any, Any]) -> tuple[Tool[..., Any], ...]:
        """The agent's tools, once they are known."""
        return self._of[agent.name]

    def find(self, agent: Agent[Any, Any], name: str) -> Tool[..., Any] | None:
        return next((tool for tool in self._of[agent.name] if tool.name == name), None)

    async def _list(self, servers: Sequence[McpServer]) -> None:
        for server in servers:
            known = self._listed.get(server.name)
            if known is not None and known[0] is not server:
                raise ConfigurationError(
                    f"two agents of one conversation have different MCP servers called {server.name!r}: "
                    "give one of them another name, or both the same server"
                )
        new = [server for server in servers if server.name not in self._listed]
        keys = [take_key(self._step, RawId(f"mcp/{server.name}")) for server in new]
        self.steps += keys
        asking = [self._ask(key, server) for key, server in zip(keys, new, strict=True)]
        lists = [await asking[0]] if len(asking) == 1 else await asyncio.gather(*asking)
        for server, specs in zip(new, lists, strict=True):
            self._listed[server.name] = (server, specs)

    async def _ask(self, key: str, server: McpServer) -> list[ToolSpec]:
        async def list_tools(_: Attempt) -> list[ToolSpec]:
            return await server.list_tools()

        specs: list[ToolSpec] = await runner_of(self._step).perform(
            key, Body(StepKind.RUN, server.name, list_tools, _LISTED, server.retry)
        )
        return specs


def check_names(agent: Agent[Any, Any], tools: Sequence[Tool[..., Any]]) -> None:
    """Raise `ConfigurationError` when two tools of the agent have one name, or one that is taken."""
    names = [*(tool.name for tool in tools), *(handoff_name(other.name) for other in agent.handoffs)]
    for name, times in Counter(names).items():
        if times > 1 or name == FINAL_ANSWER:
            why = "is the tool of the structured output" if name == FINAL_ANSWER else "is there twice"
            remedy = "give another name="
            if owners := [owner for tool in tools if tool.name == name and (owner := _owner(tool))]:
                remedy = f"it comes from {' and '.join(owners)}: give that a prefix=, or choose with only="
            raise ConfigurationError(f"agent {agent.name!r}: the tool name {name!r} {why}: {remedy}")


def _owner(tool: Tool[..., Any]) -> str:
    server = getattr(tool, "server", None)
    return "" if server is None else f"MCP server {server.name!r}"
