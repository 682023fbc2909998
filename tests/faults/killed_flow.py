"""What the killed and stopped workers of the fault tests work on: `python -m tests.faults.killed_flow URL LOG`.

A body gives a token that no other call of it would give, and says so in the log when it begins; the run's code says
which token it saw. So a result that has changed, a body done twice without need and a lost result all show.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agentflow import Agent, App, ModelRequest, Settings, ToolContext, tool
from agentflow.context import Context
from agentflow.errors import StepError
from agentflow.flow import Batch, Concurrency, RunFailure
from agentflow.info import step_info
from agentflow.models.replies import Reply
from agentflow.step import Step
from tests.agents.support import call
from tests.crash.flow import write_line

LEASE_SECONDS = 3.0
SLOWEST = float(os.environ.get("AGENTFLOW_TEST_SLOWEST_BODY", "0.3"))
KEYS = 5


class Plan(BaseModel):
    """Which run it is, of all that a test starts."""

    n: int


def reply(request: ModelRequest) -> Reply:
    """What the model says, by the request alone: any process is told the same."""
    if len(request.messages) == 1:
        return [call("look", n=1), call("look", n=2)]
    if len(request.messages) == 3:
        return call("pay", n=3)
    return "done"


def make_app(database_url: str, log: str, *, settings: Settings | None = None) -> App:
    app = App("killed", database_url=database_url, settings=settings or Settings(lease_seconds=LEASE_SECONDS))

    def say(*words: object) -> None:
        write_line(facts_of(log), " ".join(str(word) for word in (*words, os.getpid(), time.monotonic_ns())))

    def begin() -> str:
        info = step_info()
        token = secrets.token_hex(6)
        say("began", info.idempotency_key, info.attempt, token)
        return token

    def pause() -> float:
        return random.choice([0.005, 0.2, 1.0]) * random.random() * SLOWEST

    async def work() -> str:
        token = begin()
        await asyncio.sleep(pause())
        return token

    def work_in_a_thread() -> str:
        token = begin()
        time.sleep(pause())
        return token

    async def stumble() -> str:
        token = begin()
        await asyncio.sleep(pause())
        if step_info().attempt < 2:
            raise ConnectionError(f"not this time: {token}")
        return token

    async def break_down() -> str:
        raise ValueError(f"it broke: {begin()}")

    async def seen(ctx: Context[Any], step: Step, id: str, body: Callable[[], Any] = work) -> str:
        """Do a step, and say what came of it; `id` is the key too, where no branch says otherwise."""
        token = str(await step.run(id, body))
        say("saw", f"{ctx.run_id}:{id}", token)
        return token

    @app.function
    async def plain(ctx: Context[Plan], step: Step) -> list[str]:
        """Five steps, a sleep and a signal."""
        tokens = [await seen(ctx, step, "s0"), await seen(ctx, step, "s1")]
        await step.sleep("nap", 0.3 * random.random())
        tokens += [await seen(ctx, step, "s2", work_in_a_thread), await seen(ctx, step, "s3", stumble)]
        came = await step.wait_for_signal("wait", signal=f"go {ctx.data.n}", timeout="1h")
        assert came is not None
        assert came.data == ctx.data.n
        return [*tokens, await seen(ctx, step, "s4")]

    @app.function
    async def sender(ctx: Context[Plan], step: Step) -> str:
        """Sends the signal that a `plain` run waits for, or is about to wait for."""
        token = await seen(ctx, step, "before")
        await step.send_signal("send", f"go {ctx.data.n}", ctx.data.n, buffer="1h")
        return token

    @app.function
    async def branches(ctx: Context[Plan], step: Step) -> list[list[str]]:
        """Branches with the same ids, one of which sleeps, one stumbles, one has branches of its own."""

        async def branch(number: int) -> list[str]:
            if number == 1:
                await step.sleep("nap", 0.2)
            body = (work, stumble, work_in_a_thread)[number]
            tokens = [str(await step.run("one", body)), str(await step.run("two", work))]
            if number == 2:
                tokens += await asyncio.gather(*[step.run("inner", work) for _ in range(2)])
            say("saw", f"{ctx.run_id}:branch-{number}", "+".join(tokens))
            return tokens

        found = await asyncio.gather(*[branch(number) for number in range(3)])
        async with asyncio.TaskGroup() as group:
            more = [group.create_task(seen(ctx, step, f"group-{n}"), name=f"group-{n}") for n in range(2)]
        return [*found, [task.result() for task in more]]

    @app.function
    async def leaf(ctx: Context[Plan], step: Step) -> str:
        token = await seen(ctx, step, "s0")
        await step.sleep("nap", 0.1)
        return token

    @app.function(retries=0)
    async def broken(ctx: Context[Plan], step: Step) -> str:
        return await step.run("break", break_down, retry=1)

    @app.function
    async def middle(ctx: Context[Plan], step: Step) -> str:
        return str(await step.invoke("leaf", leaf, data=ctx.data))

    @app.function
    async def parent(ctx: Context[Plan], step: Step) -> list[str]:
        """Children side by side: one has a child of its own, one fails."""

        async def failing() -> str:
            try:
                await step.invoke("broken", broken, data=ctx.data)
            except StepError as error:
                return error.name
            return "it did not fail"

        first = await step.invoke("first", leaf, data=ctx.data)
        leaf_token, middle_token, name = await asyncio.gather(
            step.invoke("leaf", leaf, data=ctx.data),
            step.invoke("middle", middle, data=ctx.data),
            failing(),
        )
        await step.sleep("nap", 0.5)
        tokens = [str(first), str(leaf_token), str(middle_token), name, await seen(ctx, step, "last")]
        say("saw", f"{ctx.run_id}:children", "+".join(tokens[:4]))
        return tokens

    async def tell(ctx: Context[RunFailure], step: Step) -> str:
        assert ctx.data.error.name == "ValueError", ctx.data
        return await seen(ctx, step, "tell")

    @app.function(retries=1, on_failure=tell)
    async def failing(ctx: Context[Plan], step: Step) -> str:
        await seen(ctx, step, "before")
        return await step.run("break", break_down, retry=1)

    @app.function
    async def listener(ctx: Context[Plan], step: Step) -> list[str]:
        """Waits for an event, sends one that starts another run, and lets a wait and a body race."""
        token = await seen(ctx, step, "before")
        event = await step.wait_for_event(
            "wait", event="told", timeout="1h", if_=f"async.data.n == {ctx.data.n}"
        )
        assert event is not None
        ids = await step.send_event("send", {"name": "echo", "data": {"n": ctx.data.n}})
        say("saw", f"{ctx.run_id}:send", ids[0])

        async def quick(step: Step) -> str:
            return await step.run("quick", work)

        async def never(step: Step) -> str:
            await step.wait_for_signal("never", signal=f"never {ctx.run_id}", timeout="1h")
            return "never"

        name, value = await step.race("race", quick=quick, never=never)
        say("saw", f"{ctx.run_id}:race", f"{name}+{value}")
        return [token, ids[0], name, value]

    @app.function(on="echo")
    async def echo(ctx: Context[Plan], step: Step) -> int:
        await seen(ctx, step, "heard")
        return ctx.data.n

    @app.function
    async def keeper(ctx: Context[Plan], step: Step) -> list[str]:
        """Lives long after its child has ended."""
        token = await step.invoke("child", middle, data=ctx.data)
        say("saw", f"{ctx.run_id}:child", token)
        await step.wait_for_signal("wait", signal=f"go {ctx.data.n}", timeout="1h")
        return [str(token), await seen(ctx, step, "last")]

    @app.function(on="row", batch=Batch(10, "1s"))
    async def batched(ctx: Context[Any], step: Step) -> list[int]:
        await seen(ctx, step, "batch")
        return [event.data["n"] for event in ctx.events]

    @app.function(concurrency=Concurrency(1, key="data.key"))
    async def keyed(ctx: Context[dict[str, int]], step: Step) -> str:
        """One at a time of a key: says from when to when it was at work."""
        began = time.monotonic_ns()
        tokens = await seen(ctx, step, "one") + "+" + await seen(ctx, step, "two")
        say("held", ctx.data["key"], began)
        await step.sleep("nap", 0.1)
        return tokens

    @app.function
    async def on_time(ctx: Context[float], step: Step) -> None:
        """Says when it went to sleep and when it awoke; then the same of a signal that does not come."""
        say("asleep", ctx.run_id)
        await step.sleep("nap", ctx.data)
        say("awoke", ctx.run_id)
        assert await step.wait_for_signal("wait", signal=ctx.run_id, timeout=ctx.data) is None
        say("timed-out", ctx.run_id)

    @app.function
    async def long_body(ctx: Context[float], step: Step) -> str:
        async def work_long() -> str:
            token = begin()
            await asyncio.sleep(ctx.data)
            return token

        return await step.run("long", work_long)

    @tool
    async def look(n: int, ctx: ToolContext) -> str:
        token = secrets.token_hex(6)
        say("began", ctx.idempotency_key, 0, token)
        await asyncio.sleep(pause())
        return token

    @tool
    async def pay(n: int, ctx: ToolContext) -> str:
        token = secrets.token_hex(6)
        say("began", ctx.idempotency_key, 0, token)
        await asyncio.sleep(pause())
        return token

    app.add(Agent("clerk", model="scripted:tests.faults.killed_flow:reply", tools=[look, pay]))

    @app.function
    async def with_agent(ctx: Context[Plan], step: Step) -> list[str]:
        """An agent as a child; what it says is seen again."""
        answer = await step.invoke("clerk", "agents/clerk", data={"prompt": f"Pay {ctx.data.n}."})
        return [str(answer), await seen(ctx, step, "after")]

    return app


def facts_of(log: str | Path) -> str:
    """Where the bodies and the runs' code say what they did; the other log is who has started."""
    return f"{log}.facts"


def complaints_of(log: str | Path) -> str:
    """Where the workers' warnings go."""
    return f"{log}.complaints"


async def work_until_killed(app: App, log: str, *, concurrency: int | None = None) -> None:
    """Be a worker of that app; SIGTERM ends it in good order."""
    form = f"%(asctime)s {os.getpid()} %(levelname)s %(message)s"
    logging.basicConfig(filename=complaints_of(log), level=logging.WARNING, format=form)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with app.running(concurrency):
        write_line(log, f"started {os.getpid()}")
        await stop.wait()


async def main(database_url: str, log: str, concurrency: str = "100", **settings: str) -> None:
    """The rest of the arguments are settings, such as `lease_seconds=1`."""
    given = Settings.model_validate({"lease_seconds": LEASE_SECONDS} | settings)
    app = make_app(database_url, log, settings=given)
    await work_until_killed(app, log, concurrency=int(concurrency))


if __name__ == "__main__":
    database_url, log, *rest = sys.argv[1:]
    asyncio.run(main(database_url, log, **dict(word.split("=", 1) for word in rest)))
