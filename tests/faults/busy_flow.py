"""An app whose runs have nothing but steps: `python -m tests.faults.busy_flow URL LOG` is a worker process of it."""

from __future__ import annotations

import asyncio
import os
import sys

from agentflow.app import App
from agentflow.context import Context
from agentflow.settings import Settings
from agentflow.step import Step
from tests.crash.flow import write_line


def make_app(database_url: str) -> App:
    app = App("busy", database_url=database_url, settings=Settings(durability="process"))

    async def who() -> int:
        return os.getpid()

    @app.function
    async def busy(ctx: Context[int], step: Step) -> int:
        return len([await step.run("step", who) for _ in range(ctx.data)])

    return app


async def main(database_url: str, log: str) -> None:
    async with make_app(database_url).running(concurrency=50):
        write_line(log, f"started {os.getpid()}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
