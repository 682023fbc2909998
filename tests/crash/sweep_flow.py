"""The flow of the sweep: all that a run can do with the database, in one process that tests/forked.py forks.

`main` takes the run with a key to its end, or dies at the pass that it is told. Each body writes a line to the log.
"""

from __future__ import annotations

import asyncio
from typing import Any

from agentflow import App, Context, Settings, Step, crashpoints
from agentflow.errors import NoWaiter, StepError
from agentflow.flow import Concurrency, RunFailure
from agentflow.info import step_info
from agentflow.models.response import ModelRequest
from agentflow.testing import FunctionModel
from tests.crash.flow import write_line

LEASE_SECONDS = 1.0
RESULT = [1, [2, 3], "told", "heard", 7, "ValueError: no", "said", ["quick", 4], 5]
BODIES = 7
"""So many bodies a run has, with those of its children."""


def make_app(database_url: str, log: str) -> App:
    app = App("sweep", database_url=database_url, settings=Settings(lease_seconds=LEASE_SECONDS))

    async def work(value: int) -> int:
        note_body(log)
        return value

    async def fail() -> None:
        note_body(log)
        raise ValueError("no")

    async def branch(step: Step) -> int:
        return await step.run("branch", work, 4)

    async def never(step: Step) -> None:
        await step.sleep("long", "1d")

    @app.function(concurrency=Concurrency(1, key="data"))
    async def child(ctx: Context[int], step: Step) -> int:
        return await step.run("child", work, ctx.data)

    async def note(ctx: Context[RunFailure], step: Step) -> None:
        await step.run("note", work, 0)

    @app.function(retries=0, on_failure=note)
    async def breaks(ctx: Context[int], step: Step) -> None:
        raise ValueError("no")

    @app.function
    async def sweep(ctx: Context[str], step: Step) -> list[Any]:
        got: list[Any] = [await step.run("one", work, 1)]
        got.append(await asyncio.gather(*[step.run("both", work, n) for n in (2, 3)]))
        signal = await step.wait_for_signal("wait", signal=ctx.data, timeout="1h")
        got.append(signal and signal.data)
        event, _ = await asyncio.gather(
            step.wait_for_event("hear", event=f"event {ctx.data}", timeout="1h"),
            step.send_event("say", {"name": f"event {ctx.data}", "data": {"n": "heard"}}),
        )
        got.append(event and event.data["n"])
        got.append(await step.invoke("call", child, data=7))
        await step.sleep("nap", 0.02)
        try:
            await step.invoke("break", breaks, data=0)
        except StepError as error:
            got.append(f"{error.name}: {error.message}")
        response = await step.ai.infer("ask", model=FunctionModel(_say, name="echo"), messages="Say it.")
        got.append(response.text)
        got.append(list(await step.race("first", quick=branch, slow=never)))
        got.append(await step.run("last", work, 5))
        return got

    return app


def note_body(log: str) -> None:
    info = step_info()
    write_line(log, f"{info.run_id} {info.step_id}")


def _say(request: ModelRequest) -> str:
    return "said"


async def main(url: str, log: str, key: str, point: str) -> None:
    """Take the run to its end; `point` is `name:n`, or nothing."""
    if point:
        crashpoints.arm_from(point)
    app = make_app(url, log)
    async with app.running():
        run = await app.start("sweep", key, idempotency_key=key)
        result = asyncio.create_task(run.result(30))
        if point.startswith("before_heartbeat"):
            await asyncio.sleep(
                LEASE_SECONDS
            )  # it is passed by the clock: the run is to be there when it comes
        while not result.done():
            try:
                await app.signal(key, "told")
            except NoWaiter:
                await asyncio.sleep(0.005)
            else:
                break
        assert await result == RESULT, result.result()
        # The failure's follow-up is a run of its own.
        while (await app.runs.list(status=["queued", "running", "sleeping", "waiting"])).data:
            await asyncio.sleep(0.005)
