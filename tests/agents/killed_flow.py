"""The agent of the tests that kill it: `python -m tests.agents.killed_flow URL LOG` takes its one run to the end."""

from __future__ import annotations

import asyncio
import os
import sys

from agentflow import Agent, App, ModelRequest, Settings, ToolContext, tool
from agentflow.models.replies import Reply
from tests.agents.support import call


def reply(request: ModelRequest) -> Reply:
    """What the model says, by the request alone: any process is told the same."""
    if len(request.messages) == 1:
        return [call("pay", order_id="1"), call("pay", order_id="2")]
    return "done"


def make_app(database_url: str, log: str) -> tuple[App, Agent[str]]:
    app = App("killed", database_url=database_url, settings=Settings(lease_seconds=2))

    @tool
    async def pay(order_id: str, ctx: ToolContext) -> str:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, f"{ctx.idempotency_key} {order_id}\n".encode())
        os.close(file)
        return f"paid {order_id}"

    agent = Agent("cashier", model="scripted:tests.agents.killed_flow:reply", tools=[pay])
    app.add(agent)
    return app, agent


async def main(database_url: str, log: str) -> None:
    app, agent = make_app(database_url, log)
    async with app.running():
        run = await app.start(agent, "Pay them.", idempotency_key="the one run")
        print(await run.result(30))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
