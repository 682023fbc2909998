"""A whole agent for the test that kills it anywhere: tools of every kind, decisions of every kind, and a sub-agent.

`main`, which tests/forked.py runs in a process of its own, takes the run with a key to its end, or dies: at the n-th
pass of a point of the engine, or before or after the effect of a tool.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

# Imported before the fork: the SDKs take longer to import than a run takes.
import anthropic  # noqa: F401
import genai_prices  # noqa: F401
import openai
import openai.resources.chat
import openai.resources.responses  # noqa: F401

from agentflow import (
    Agent,
    App,
    Approve,
    Deny,
    Edit,
    ModelRequest,
    Respond,
    Settings,
    ToolContext,
    crashpoints,
    recovering,
    tool,
)
from agentflow.approvals import ApprovalRequest
from agentflow.models.ledger import Billing
from tests.agents.support import call
from tests.crash.processes import lines

LEASE_SECONDS = 1.0
SHORT_GRACE = 1_500_000
"""Microseconds: half a minute for each kill is too long."""

TOOLS = ("look", "charge", "refund-1", "refund-2", "wire", "release-1")
DONE = ("looked 1", "charged 5", "refunded 1 5", "refunded 2 1", "wired 7", "released 1")
"""What the tools do, each once; refund 2 as it was edited. Refund 3 and release 2 are denied."""
TOLD = ["looked 1", "charged 5", "refunded 1 5", "refunded 2 1", "not that one", "wired 7", "scouted"]
SCOUT_TOLD = ["released 1", "not that one"]
ANSWERS = 4
GATED = {
    ("refund", '{"amount":5,"order":1}'): "approved",
    ("refund", '{"amount":5,"order":2}'): "edited",
    ("refund", '{"amount":5,"order":3}'): "denied",
    ("wire", '{"amount":7}'): "approved",
    ("release", '{"order":1}'): "approved",
    ("release", '{"order":2}'): "denied",
}
"""What is asked, and what is said to it."""


def reply(request: ModelRequest, told: list[list[str]]) -> object:
    """What the model says; `told` takes in what it hears of its tools."""
    is_scout = any(tool.name == "release" for tool in request.tools)
    if len(request.messages) > 1:
        # Chat Completions has a message for each result.
        told.append([result.text for said in request.messages for result in said.tool_results])
        return "scouted" if is_scout else "done"
    if is_scout:
        return [call("release", order=1), call("release", order=2)]
    refunds = [call("refund", order=n, amount=5) for n in (1, 2, 3)]
    return [
        call("look", order=1),
        call("charge", amount=5),
        *refunds,
        call("wire", amount=7),
        call("scout", prompt="Go."),
    ]


def decision(request: ApprovalRequest, log: str) -> Approve | Edit | Deny | Respond:
    """What the person says. Where nobody knows whether a tool has run, the log of its effects does."""
    if request.tool is None:
        return Approve()  # a model call that may be lost: ask again
    if request.title.startswith("Nobody knows"):
        effect = {"charge": "charged 5", "wire": "wired 7"}[request.tool]
        has_run = any(line.endswith(effect) for line in lines(Path(log)))
        return Respond(effect) if has_run else Approve()
    said = GATED[request.tool, json.dumps(request.args, sort_keys=True, separators=(",", ":"))]
    if said == "edited":
        return Edit({"order": 2, "amount": 1})
    return Approve() if said == "approved" else Deny("not that one")


def make_app(
    database_url: str, log: str, model: str, billing: Billing, die: str = ""
) -> tuple[App, Agent[str]]:
    app = App("whole", database_url=database_url, settings=Settings(lease_seconds=LEASE_SECONDS))

    def act(ctx: ToolContext, name: str, what: str) -> str:
        _die_if(die == f"before {name}")
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, f"{ctx.idempotency_key} {what}\n".encode())
        os.close(file)
        _die_if(die == f"after {name}")
        return what

    @tool
    async def look(order: int, ctx: ToolContext) -> str:
        return act(ctx, "look", f"looked {order}")

    @tool(effect="once")
    async def charge(amount: int, ctx: ToolContext) -> str:
        return act(ctx, "charge", f"charged {amount}")

    @tool(approval=True)
    async def refund(order: int, amount: int, ctx: ToolContext) -> str:
        return act(ctx, f"refund-{order}", f"refunded {order} {amount}")

    @tool(approval=True, effect="once")
    async def wire(amount: int, ctx: ToolContext) -> str:
        return act(ctx, "wire", f"wired {amount}")

    @tool(approval=True)
    async def release(order: int, ctx: ToolContext) -> str:
        return act(ctx, f"release-{order}", f"released {order}")

    scout: Agent[str] = Agent("scout", model=model, billing=billing, tools=[release])
    agent = Agent(
        "clerk",
        model=model,
        billing=billing,
        tools=[look, charge, refund, wire, scout.as_tool("Scouts.")],
    )
    app.add(agent)
    return app, agent


async def take_to_the_end(app: App, agent: Agent[str], log: str, key: str) -> str:
    """Start the run, or find it, and decide what is asked."""
    async with app.running():
        run = await app.start(agent, "Do it all.", idempotency_key=key)
        result = asyncio.create_task(run.result(40))
        while not result.done():
            for request in (await app.approvals.list(status="pending")).data:
                await app.approvals.decide(
                    request.id, decision(request, log), by="ana", args_digest=request.args_digest
                )
            await asyncio.sleep(0.01)
        return await result


def _die_if(is_it: bool) -> None:
    if is_it:
        os.kill(os.getpid(), signal.SIGKILL)


async def main(
    environment: str, url: str, log: str, model: str, billing: Billing, key: str, point: str
) -> None:
    """`point`: `name:n` of the engine, `before` or `after` a tool, or nothing."""
    os.environ.update(json.loads(environment))
    recovering.LOOKUP_GRACE = SHORT_GRACE
    if ":" in point:
        crashpoints.arm_from(point)
    app, agent = make_app(url, log, model, billing, die=point)
    await take_to_the_end(app, agent, log, key)
