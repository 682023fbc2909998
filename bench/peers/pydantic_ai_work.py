"""pydantic-ai's side of the contest: an agent whose model is a function. Nothing of it is durable."""

from __future__ import annotations

import time
from statistics import median

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from bench.talk import Figures, Work, Workloads, answer, rounds


async def agent(work: Work) -> Figures:
    turns = work.sizes["turns"]
    took: list[float] = []

    async def reply(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        turn = len(messages) // 2 + 1
        call = ToolCallPart("look_up", {"number": turn})
        return ModelResponse(parts=[TextPart("done") if turn == turns else call])

    clerk = Agent(FunctionModel(reply), instructions="You look numbers up.")

    @clerk.tool_plain
    async def look_up(number: int) -> str:
        """Look a number up."""
        return f"number {number} is fine"

    async def run_one(n: int) -> None:
        began = time.perf_counter()
        result = await clerk.run("Is everything fine?")
        took.append((time.perf_counter() - began) / turns)
        assert result.output == "done"

    await rounds(work, work.sizes["agent_runs"], run_one)
    return {"turn": median(took)}


WORKLOADS: Workloads = {"agent": agent}

if __name__ == "__main__":
    answer(WORKLOADS)
