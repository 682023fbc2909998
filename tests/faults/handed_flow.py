"""Runs that are in the middle of something when their worker ends: `python -m tests.faults.handed_flow URL LOG`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from agentflow import Agent, App, ModelRequest, Settings
from agentflow.context import Context
from agentflow.models.replies import Reply
from agentflow.step import Step
from tests.crash.flow import write_line
from tests.crash.processes import lines
from tests.faults.killed_flow import facts_of, work_until_killed

MODEL_SECONDS = 4.0


async def reply(request: ModelRequest) -> Reply:
    """A model that takes its time; who is asked, and who gets to answer, is written down."""
    log = os.environ["AGENTFLOW_TEST_MODEL_LOG"]
    write_line(log, f"asked {os.getpid()}")
    await asyncio.sleep(MODEL_SECONDS)
    write_line(log, f"answered {os.getpid()}")
    return "done"


def make_app(database_url: str, log: str, *, settings: Settings | None = None) -> App:
    app = App("handed", database_url=database_url, settings=settings)

    async def take(seconds: float) -> int:
        write_line(facts_of(log), f"began {os.getpid()}")
        await asyncio.sleep(seconds)
        return os.getpid()

    @app.function
    async def body(ctx: Context[float], step: Step) -> int:
        """One body, that takes so many seconds; gives the process that did it."""
        return await step.run("take", take, ctx.data)

    @app.function
    async def outlasting(ctx: Context[None], step: Step) -> int:
        """One body, that takes an hour the first time; gives the process that did it."""
        return await step.run("take", outlast)

    async def outlast() -> int:
        is_first = not any(line.startswith("began") for line in lines(Path(facts_of(log))))
        return await take(3600.0 if is_first else 0.0)

    @app.function
    async def between(ctx: Context[float], step: Step) -> int:
        """Between two steps its own code takes so long that the run stays in memory; no body runs."""
        await step.run("before", take, 0)
        write_line(facts_of(log), f"between {ctx.run_id} {os.getpid()}")
        await asyncio.sleep(ctx.data)
        return await step.run("after", take, 0)

    @app.function
    async def listening(ctx: Context[float], step: Step) -> str:
        """Waits for a signal beside code that is no step: in memory, without a body."""
        waiting = asyncio.create_task(step.wait_for_signal("wait", signal=ctx.run_id, timeout="1h"))
        write_line(facts_of(log), f"between {ctx.run_id} {os.getpid()}")
        await asyncio.sleep(ctx.data)
        return "heard" if await waiting else "nothing"

    app.add(Agent("slow", model="scripted:tests.faults.handed_flow:reply"))
    return app


async def main(database_url: str, log: str, **settings: str) -> None:
    os.environ["AGENTFLOW_TEST_MODEL_LOG"] = facts_of(log)
    app = make_app(database_url, log, settings=Settings.model_validate(settings))
    await work_until_killed(app, log)


if __name__ == "__main__":
    database_url, log, *rest = sys.argv[1:]
    asyncio.run(main(database_url, log, **dict(word.split("=", 1) for word in rest)))
