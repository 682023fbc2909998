"""A crowd's work: many agents at once, whose model takes its time, in one process. Seconds for all, and memory."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Sequence
from typing import Any

from agentflow import Agent, App, ModelRequest, ToolCall, tool
from bench.talk import Figures, Work, Workloads, answer

INSTRUCTIONS = "You look numbers up."
PROMPT = "Is everything fine?"
MODEL = "gpt-5-mini"
MODEL_MILLISECONDS = 200


async def bare(work: Work) -> Figures:
    """The same calls with OpenAI's own SDK and `asyncio.gather`; nothing of it is durable."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=work.url, api_key="none", max_retries=0)
    parameters = {"type": "object", "properties": {"number": {"type": "integer"}}}
    tools: list[Any] = [{"type": "function", "name": "look_up", "parameters": parameters, "strict": False}]

    async def one() -> str:
        said: list[Any] = [{"role": "user", "content": PROMPT}]
        while True:
            asked: Any = {"model": MODEL, "instructions": INSTRUCTIONS, "input": said, "tools": tools}
            async for event in await client.responses.create(**asked, stream=True):
                if event.type == "response.completed":
                    response = event.response
            [item] = response.output
            if item.type != "function_call":
                return response.output_text
            result = {"type": "function_call_output", "call_id": item.call_id, "output": "fine"}
            said += [item.model_dump(), result]

    await one()  # the SDK loads the most of itself at the first call
    return await _measured([one() for _ in range(work.sizes["agents"])])


async def durable(work: Work) -> Figures:
    """Agents over the same SDK: each turn's call and each tool call a durable step."""
    from agentflow_openai import OpenAIResponses

    from agentflow.models.clients import imported

    await imported("openai", "openai.resources.responses", "agentflow_openai")
    return await _agents(work, OpenAIResponses(MODEL, base_url=work.url, api_key="none"))


async def function(work: Work) -> Figures:
    """Agents whose model is a function that sleeps: what agentflow itself takes."""
    turns = work.sizes["turns"]

    async def reply(request: ModelRequest) -> str | ToolCall:
        await asyncio.sleep(MODEL_MILLISECONDS / 1000)
        turn = len(request.messages) // 2 + 1
        return "done" if turn == turns else ToolCall(name="look_up", args={"number": turn})

    return await _agents(work, reply)


async def _agents(work: Work, model: Any) -> Figures:
    @tool
    async def look_up(number: int) -> str:
        """Look a number up."""
        return "fine"

    app = App("crowd", database_url=f"sqlite:///{work.folder}/crowd.db")
    clerk = Agent("clerk", model=model, instructions=INSTRUCTIONS, tools=[look_up])
    app.add(clerk)

    async def one() -> str:
        answered: str = await (await app.start(clerk, PROMPT)).result()
        return answered

    async with app.running(concurrency=work.sizes["agents"]):
        return await _measured([one() for _ in range(work.sizes["agents"])])


async def _measured(agents: Sequence[Awaitable[str]]) -> Figures:
    began = time.perf_counter()
    assert set(await asyncio.gather(*agents)) == {"done"}
    took = time.perf_counter() - began
    return {"seconds": took, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}


WORKLOADS: Workloads = {"bare": bare, "durable": durable, "function": function}

if __name__ == "__main__":
    answer(WORKLOADS)
