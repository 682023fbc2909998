"""An app whose agent speaks as fast as a test lets it: the replicas of tests/http/test_replicas.py serve it.

`GATE` is a file; the model says as many pieces in a turn as the file has bytes, then waits for it to grow. With
`READS_ALONE` in its environment a replica has no worker.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI
from pydantic import BaseModel

from agentflow import Agent, App, ModelRequest, Settings, ToolCall
from agentflow.models.function import FunctionModel
from agentflow.providers import RawAnswer, ReasoningDelta, TextDelta, ToolArgsDelta

GATE = os.environ.get("GATE", os.devnull)


class Report(BaseModel):
    title: str
    words: list[str]


REPORT = Report(title="On weights", words=[f"word-{number}" for number in range(60)])


class Speaker(FunctionModel):
    """Thinks, calls a tool, then writes a report as structured output."""

    def __init__(self) -> None:
        super().__init__(_reply, name="speaker")

    async def stream(
        self, request: ModelRequest
    ) -> AsyncIterator[TextDelta | ReasoningDelta | ToolArgsDelta | RawAnswer]:
        said = 0
        for piece in ("First I weigh ", "it, then ", "I write."):
            yield ReasoningDelta(text=piece)
        async for item in super().stream(request):
            while not isinstance(item, RawAnswer) and said >= os.stat(GATE).st_size:
                await asyncio.sleep(0.005)
            said += 1
            yield item


def _reply(request: ModelRequest) -> ToolCall | Report:
    return REPORT if request.messages[-1].tool_results else ToolCall(name="weigh", args={"thing": "an anvil"})


async def weigh(thing: str) -> int:
    """Weigh it."""
    return len(thing)


flow = App("speaking", settings=Settings(lease_seconds=float(os.environ.get("LEASE_SECONDS", "30"))))
flow.add(Agent("speaker", model=Speaker(), tools=[weigh], output=Report))

api = FastAPI()
api.include_router(flow.router(prefix="/agentflow", run_worker="READS_ALONE" not in os.environ))
