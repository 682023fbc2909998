"""A worker of an app with a budget: `python -m tests.crash.budgeted_flow URL LOG`."""

from __future__ import annotations

import asyncio
import os
import sys
from decimal import Decimal

from agentflow.app import App
from agentflow.context import Context
from agentflow.flow import Budget
from agentflow.models.clients import imported
from agentflow.models.response import ModelSettings, Usage
from agentflow.settings import Settings
from agentflow.step import Step
from tests.crash.flow import write_line

AT_ONCE = 3
"""Calls of one worker: so many are lost with it, each with what was reserved for it."""
BUDGET = Budget("everybody's", cost_usd="0.1")
USAGE = Usage(input_tokens=1_000, output_tokens=100)
COST = Decimal("0.0035")
"""Of an answer by gpt-4o with that usage."""


def make_app(database_url: str) -> App:
    app = App("budgeted", database_url=database_url, settings=Settings(lease_seconds=2), budgets=[BUDGET])

    @app.function(retries=2)
    async def ask(ctx: Context[str], step: Step) -> str:
        settings = ModelSettings(max_tokens=100)
        said = ctx.data + "x" * 1_000
        response = await step.ai.infer("ask", model="openai-chat:gpt-4o", messages=said, settings=settings)
        return response.text

    return app


async def main(url: str, log: str) -> None:
    app = make_app(url)
    # So that a call arrives when it begins: the first one of a process would wait a second for the SDK.
    await imported("openai", "openai.resources.chat.completions", "agentflow_openai")
    async with app.running(concurrency=AT_ONCE):
        write_line(log, f"started {os.getpid()}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
