"""The function of the tests that kill it around its batch, and `main`, which tests/forked.py runs in a process.

It takes the run with a key to its end, unless the point is passed: then the process kills itself there.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

# Imported before the fork: the SDKs take longer to import than a run takes.
import anthropic.resources.messages  # noqa: F401
import genai_prices  # noqa: F401
import openai.resources.chat
import openai.resources.files
import openai.resources.responses  # noqa: F401
from openai.resources.batches import AsyncBatches

from agentflow import App, Approve, Context, Function, ModelSettings, Settings, Step, following, recovering
from agentflow.following import Pace
from tests.agents.killed_flow import POINTS as POINTS_OF_A_CALL
from tests.agents.killed_flow import SHORT_GRACE, die_at

POINTS = (*POINTS_OF_A_CALL, "after the file is uploaded")
QUICK = Pace(50_000, 200_000)


def make_app(database_url: str, model: str) -> tuple[App, Function[Any, Any]]:
    app = App("killed", database_url=database_url, settings=Settings(lease_seconds=2))

    @app.function
    async def ask(ctx: Context[str], step: Step) -> str:
        settings = ModelSettings(latency="batch")
        return (await step.ai.infer("ask", model=model, messages=ctx.data, settings=settings)).text

    return app, ask


async def take_to_the_end(app: App, ask: Function[Any, Any], key: str) -> str:
    """Start the run, or find it; let a batch that is lost be made again."""
    async with app.running():
        run = await app.start(ask, "Hi", idempotency_key=key)
        result = asyncio.create_task(run.result(30))
        while not result.done():
            for request in (await app.approvals.list(status="pending", run=run.id)).data:
                await app.approvals.decide(request.id, Approve(), by="ana")
            await asyncio.sleep(0.02)
        return str(await result)


def hurry() -> None:
    """Look at batches as if a minute were a blink."""
    recovering.LOOKUP_GRACE = SHORT_GRACE
    following.LATER = recovering.LATER = QUICK


async def main(environment: str, url: str, model: str, key: str, point: str) -> None:
    os.environ.update(json.loads(environment))
    hurry()
    app, ask = make_app(url, model)
    if point == POINTS[-1]:
        AsyncBatches.create = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    elif point:
        die_at(point, 1)
    await take_to_the_end(app, ask, key)
