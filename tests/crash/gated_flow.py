"""The app of the flow control tests: `python -m tests.crash.gated_flow URL LOG` is a worker process of it.

Every body writes to the log what it is and when it was at work, by the clock that all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from agentflow.app import App
from agentflow.context import Context
from agentflow.flow import Batch, Concurrency, Singleton, Throttle
from agentflow.settings import Settings
from agentflow.step import Step
from tests.crash.flow import LEASE_SECONDS, write_line

RATE = 100


def make_app(database_url: str, log: str) -> App:
    app = App("gated", database_url=database_url, settings=Settings(lease_seconds=LEASE_SECONDS))

    @app.function(on="keyed", concurrency=Concurrency(1, key="data.key"))
    async def keyed(ctx: Context[dict[str, Any]], step: Step) -> None:
        began = time.monotonic_ns()
        await step.run("work", asyncio.sleep, ctx.data["seconds"], output=None)
        write_line(log, f"keyed {ctx.data['key']} {began} {time.monotonic_ns()}")

    @app.function(on="throttled", throttle=Throttle(limit=RATE, period="1s"))
    async def throttled(ctx: Context[dict[str, Any]], step: Step) -> None:
        write_line(log, f"throttled {ctx.data['n']} {time.monotonic_ns()}")

    @app.function(on="single", singleton=Singleton())
    async def single(ctx: Context[dict[str, Any]], step: Step) -> None:
        await step.run("note", write_line, log, f"single {ctx.data['n']}")
        await step.wait_for_signal("end", signal="end", timeout="1h")

    @app.function(on="row", batch=Batch(50, "4s", key="data.key"))
    async def batched(ctx: Context[dict[str, Any]], step: Step) -> int:
        write_line(log, f"batched {ctx.data['key']} {','.join(str(event.data['n']) for event in ctx.events)}")
        return len(ctx.events)

    return app


async def main(database_url: str, log: str) -> None:
    async with make_app(database_url, log).running(concurrency=100):
        write_line(log, f"started {os.getpid()}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
