"""The app of the crash tests: `python -m tests.crash.flow URL LOG` is a worker process of it.

Every body writes a line to the log before it returns, so that the tests can count what was done.
"""

from __future__ import annotations

import asyncio
import os
import sys

from agentflow.app import App
from agentflow.context import Context
from agentflow.flow import RunFailure
from agentflow.info import step_info
from agentflow.settings import Settings
from agentflow.step import Step

LEASE_SECONDS = 1.0


def make_app(database_url: str, log: str) -> App:
    app = App("crash", database_url=database_url, settings=Settings(lease_seconds=LEASE_SECONDS))

    async def work(seconds: float) -> int:
        await asyncio.sleep(seconds)
        write_line(log, f"{step_info().idempotency_key} {os.getpid()}")
        return os.getpid()

    @app.function
    async def count(ctx: Context[dict[str, float]], step: Step) -> list[int]:
        """Steps in sequence, then some in parallel, then a nap."""
        done = [await step.run(f"step-{n}", work, ctx.data["seconds"]) for n in range(int(ctx.data["steps"]))]
        done += await asyncio.gather(
            *[step.run(f"parallel-{n}", work, ctx.data["seconds"]) for n in range(3)]
        )
        await step.sleep("nap", 0.05)
        done.append(await step.run("last", work, 0))
        return done

    @app.function
    async def wait(ctx: Context[str], step: Step) -> int:
        signal = await step.wait_for_signal("wait", signal=ctx.data, timeout="1h")
        return await step.run("after", work, 0) if signal else 0

    async def tell(ctx: Context[RunFailure], step: Step) -> None:
        await step.run("tell", work, 0)

    @app.function(retries=0, on_failure=tell)
    async def fail(ctx: Context[None], step: Step) -> None:
        raise ValueError("it broke")

    return app


def write_line(path: str, line: str) -> None:
    """Append a whole line, whoever else writes."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, f"{line}\n".encode())
    finally:
        os.close(handle)


async def main(database_url: str, log: str) -> None:
    app = make_app(database_url, log)
    async with app.running():
        write_line(log, f"started {os.getpid()}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
