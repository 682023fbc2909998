"""A run that has crashed four times is executed alone: it waits for its neighbours, and nothing begins beside it."""

from __future__ import annotations

import asyncio

from agentflow import App, Context, Step
from agentflow.testing import harness
from tests.store.support import until


async def test_after_four_crashes_a_run_is_executed_alone_until_it_has_a_new_step(database_url: str) -> None:
    app = App("alone")
    entered: list[str] = []
    gates = {name: asyncio.Event() for name in ("suspect", "neighbour", "later", "end")}

    async def work(name: str) -> str:
        entered.append(name)
        await gates[name].wait()
        return name

    @app.function
    async def flow(ctx: Context[str], step: Step) -> str:
        done = await step.run("work", work, ctx.data)
        if done == "suspect":
            await step.run("end", work, "end")
        return done

    async with harness(app, database_url=database_url) as h:
        suspect = await h.start(flow, "suspect")
        for crashes in range(1, 5):
            await until(lambda crashes=crashes: entered.count("suspect") == crashes)
            await h.crash()
            if crashes < 4:
                await h.restart()
        neighbour = await h.start(flow, "neighbour")
        await h.restart()
        await until(lambda: "neighbour" in entered)
        later = await h.start(flow, "later")
        assert entered[4:] == ["neighbour"]
        gates["neighbour"].set()
        assert await neighbour.result(10) == "neighbour"
        await until(lambda: entered.count("suspect") == 5)
        assert entered[4:] == ["neighbour", "suspect"]
        gates["suspect"].set()
        await until(lambda: "later" in entered)
        for gate in gates.values():
            gate.set()
        assert await later.result(10) == "later"
        assert await suspect.result(10) == "suspect"
