"""Research: one agent plans, sub-agents look things up at the same time, and a typed report comes of it.

Each sub-agent works in a run of its own. Kill the process at any point and start it again: what was looked up is not
looked up a second time.

    python examples/agents/research.py
    RESEARCH_MODEL=openai:gpt-5-mini python examples/agents/research.py     # ask a real model
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from pydantic import BaseModel

from agentflow import Agent, App, ModelRequest, ToolCall, tool

LIBRARY = {
    "boiling point": "Water boils at 100 °C at sea level, and at 71 °C on Mount Everest.",
    "pressure": "Air pressure on Mount Everest is a third of that at sea level.",
    "tea": "Black tea wants water of at least 90 °C.",
}


class Report(BaseModel):
    answer: str
    sources: list[str]


@tool
async def search(words: str) -> list[str]:
    """Search the library."""
    return [text for title, text in LIBRARY.items() if title in words.lower()]


async def offline(request: ModelRequest) -> Any:
    """What a model would say, so that the example needs no key."""
    told = request.messages[-1].tool_results
    if "Look up" in (request.instructions or ""):
        return told[0].content[0] if told else ToolCall(name="search", args={"words": request.prompt})
    if not told:  # three calls in one turn: three sub-agents at once
        return [
            ToolCall(name="librarian", args={"prompt": f"What is known of {title}?"}) for title in LIBRARY
        ]
    return {
        "answer": "Not well: water boils too cold there.",
        "sources": [result.content for result in told],
    }


MODEL = os.environ.get("RESEARCH_MODEL") or offline

librarian = Agent(
    "librarian", model=MODEL, instructions="Look up one thing. Answer in one sentence.", tools=[search]
)
researcher = Agent(
    "researcher",
    model=MODEL,
    instructions="Ask the librarian for all that you need at once, then write a report.",
    tools=[librarian.as_tool("Looks up one thing.")],
    output=Report,
)

app = App("research")
app.add(researcher)  # and with it the librarian


async def main() -> None:
    async with app.running():
        run = await app.start(researcher, "Can one make good tea on Mount Everest?", idempotency_key="tea")
        report = await run.result(timeout=300)
        print(report.answer)
        for source in report.sources:
            print("-", source)
        usage = await app.usage(run=run.id)
        print(f"{usage.calls} model calls")


if __name__ == "__main__":
    asyncio.run(main())
