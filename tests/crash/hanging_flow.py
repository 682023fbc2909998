"""An app whose step hangs the event loop: `python -m tests.crash.hanging_flow URL LOG` is a worker process of it.

The lease and the limit of a hang come from the environment, as a deployment would set them.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from agentflow.app import App
from agentflow.context import Context
from agentflow.step import Step
from tests.crash.flow import write_line
from tests.crash.processes import lines


def make_app(database_url: str, log: str) -> App:
    app = App("hang", database_url=database_url)

    async def hang(seconds: float) -> int:
        """What no async body should do. Called a second time, elsewhere, it does not hang."""
        begun = [line for line in lines(Path(log)) if line.startswith("hangs ")]
        write_line(log, f"hangs {os.getpid()} {time.monotonic()}")
        if not begun:
            time.sleep(seconds)  # noqa: ASYNC251 - this is the fault
        write_line(log, f"done {os.getpid()} {time.monotonic()}")
        return os.getpid()

    async def who() -> int:
        return os.getpid()

    @app.function
    async def hanging(ctx: Context[float], step: Step) -> list[int]:
        return [await step.run("hang", hang, ctx.data), await step.run("after", who)]

    @app.function
    async def quick(ctx: Context[None], step: Step) -> int:
        return await step.run("who", who)

    return app


async def main(database_url: str, log: str) -> None:
    async with make_app(database_url, log).running(concurrency=5):
        write_line(log, f"started {os.getpid()}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
