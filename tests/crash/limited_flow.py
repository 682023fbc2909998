"""A worker of an app with a model limit: `python -m tests.crash.limited_flow URL LOG`."""

from __future__ import annotations

import asyncio
import os
import sys

from agentflow.app import App
from agentflow.context import Context
from agentflow.flow import ModelRateLimit
from agentflow.models.clients import imported
from agentflow.settings import Settings
from agentflow.step import Step
from tests.crash.flow import write_line

LIMIT = ModelRateLimit("openai-chat", requests=20, period="4s")


def make_app(database_url: str) -> App:
    app = App("limited", database_url=database_url, settings=Settings(lease_seconds=2), model_limits=[LIMIT])

    @app.function(retries=2)
    async def ask(ctx: Context[str], step: Step) -> str:
        response = await step.ai.infer("ask", model="openai-chat:any", messages=ctx.data)
        return response.text

    return app


async def main(url: str, log: str) -> None:
    app = make_app(url)
    # So that a call arrives when it begins: the first one of a process would wait a second for the SDK.
    await imported("openai", "openai.resources.chat.completions", "agentflow_openai")
    async with app.running():
        write_line(log, f"started {os.getpid()}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
