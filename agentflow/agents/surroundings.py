"""What the tools and guardrails of an agent's run are told of where they run, their dependencies among it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from agentflow.agents.tools import ToolContext
from agentflow.context import Context

DepsFactory: TypeAlias = Callable[[Context[Any]], Any | Awaitable[Any]]


class Surroundings:
    """Makes the `ToolContext` of each call. Dependencies are made when first needed, once in each process."""

    def __init__(self, agent: str, context: Context[Any], *, deps: Any, factory: DepsFactory | None) -> None:
        self.agent = agent
        self._context = context
        self._deps = deps
        self._factory = factory if deps is None else None
        self._making = asyncio.Lock()

    async def tool_context(
        self, step_id: str, *, attempt: int = 0, tool: str | None = None
    ) -> ToolContext[Any]:
        return ToolContext(
            deps=await self._made_deps(),
            run_id=self._context.run_id,
            step_id=step_id,
            attempt=attempt,
            agent=self.agent,
            tool=tool,
            logger=self._context.logger,
        )

    async def _made_deps(self) -> Any:
        if self._factory is None:
            return self._deps
        async with self._making:
            if self._factory is not None:
                made = self._factory(self._context)
                self._deps = await made if inspect.isawaitable(made) else made
                self._factory = None
        return self._deps
