"""A worker whose process dies in a body: `python -m tests.crash.poison_flow URL LOG`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from agentflow.app import App
from agentflow.context import Context
from agentflow.settings import Settings
from agentflow.step import Step
from tests.crash.flow import write_line
from tests.crash.processes import lines


def make_app(database_url: str, log: str) -> App:
    app = App("poison", database_url=database_url, settings=Settings(lease_seconds=1.0))

    async def note(name: str) -> None:
        write_line(log, f"{os.getpid()} {name}")

    async def die(name: str) -> None:
        await note(name)
        await asyncio.sleep(0.1)  # its neighbours have begun
        os.kill(os.getpid(), signal.SIGKILL)

    async def take_long(name: str) -> str:
        await note(name)
        await asyncio.sleep(0.3)
        await note(f"{name}-done")
        return name

    @app.function
    async def poison(ctx: Context[str], step: Step) -> None:
        await step.run("before", note, "before")
        await step.run("die", die, ctx.data)

    @app.function
    async def innocent(ctx: Context[str], step: Step) -> str:
        return await step.run("work", take_long, ctx.data)

    @app.function
    async def healed(ctx: Context[str], step: Step) -> int:
        """Each of its steps dies four times, and then does not."""
        for n in range(2):
            name = f"healed-{n}"
            died = sum(line.endswith(f" {name}") for line in lines(Path(log)))
            await step.run(f"step-{n}", note if died >= 4 else die, name)
        return 2

    return app


async def main(database_url: str, log: str) -> None:
    async with make_app(database_url, log).running():
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
