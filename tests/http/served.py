"""The apps that the tests serve: functions that wait, fail, ask and take typed input."""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from agentflow import Agent, App, Approval, Context, ModelRequest, Step, ToolCall, tool
from agentflow.auth import ApiKey, ApiKeys

flow = App("served")


class Line(BaseModel):
    article: str
    parts: list[Line] = []


class Order(BaseModel):
    id: str
    amount: Decimal = Field(gt=0)
    lines: list[Line] = []


@flow.function
async def double(ctx: Context[int], step: Step) -> int:
    """Twice the number."""
    return await step.run("double", lambda: ctx.data * 2, output=int)


@flow.function(id="orders/ship", on="order.placed")
async def ship(ctx: Context[Order], step: Step) -> str:
    await step.run("pack", lambda: f"packed {ctx.data.id}", output=str)
    answer = await step.wait_for_signal("collected", signal=f"collected:{ctx.data.id}", timeout="1h")
    return "nobody came" if answer is None else f"collected by {answer.data}"


@flow.function(retries=0)
async def fails(ctx: Context[Any], step: Step) -> None:
    await step.run("break", _break)


def _break() -> None:
    raise ValueError("it broke")


@flow.function(on="bill.came")
async def pay(ctx: Context[dict[str, Any]], step: Step) -> dict[str, Any]:
    """Pays what a person approves of."""
    policy = Approval(
        approvers=tuple(ctx.data.get("approvers", ())),
        min_approvals=ctx.data.get("min_approvals", 1),
        timeout=ctx.data.get("timeout", "1h"),
        bar_starter=ctx.data.get("bar_starter", False),
    )
    decision = await step.approval("pay", title="Pay the bill", details=ctx.data, policy=policy)
    return decision.model_dump()


@flow.function
async def anything(ctx: Context[Any], step: Step) -> Any:
    return ctx.data


@flow.function
async def talks(ctx: Context[int], step: Step) -> int:
    """As many steps as asked for, then a signal."""
    for number in range(ctx.data):
        await step.run(f"say {number}", lambda: "word", output=str)
    await step.wait_for_signal("enough", signal=f"enough:{ctx.run_id}", timeout="1h")
    return ctx.data


@flow.function
async def writes(ctx: Context[str], step: Step) -> int:
    """Ten lines into a file, one a step."""
    for number in range(10):
        await step.run(f"line {number}", _write_line, ctx.data, number)
    return 10


def _write_line(path: str, number: int) -> None:
    with Path(path).open("a") as file:
        file.write(f"{number}\n")
    time.sleep(0.1)  # long enough to be killed in


@flow.function
async def slow(ctx: Context[Any], step: Step) -> str:
    await step.run("sleep", asyncio.sleep, 3600)
    return "awake"


@tool(approval=True)
async def refund(order_id: str, amount: Decimal) -> str:
    """Pay money back."""
    return f"paid {amount} for {order_id}"


async def clerk(request: ModelRequest) -> str | ToolCall:
    """A model that refunds whatever it is told of, then says how that went."""
    last = request.messages[-1]
    if last.tool_results:
        return f"It is settled: {last.tool_results[0].content}"
    return ToolCall(name="refund", args={"order_id": "A1", "amount": "12.50"})


flow.add(Agent("desk", model=clerk, tools=[refund]))


api = FastAPI()
api.include_router(flow.router(prefix="/agentflow"))


@api.get("/own/{item}")
async def own(item: int) -> int:
    """A route of the host."""
    return item


TOKENS = {
    "writer": "writer-token-0123456789",
    "reader": "reader-token-0123456789",
    "starter": "starter-token-012345678",
    "boss": "boss-token-0123456789ab",
    "clerk": "clerk-token-0123456789a",
    "root": "root-token-0123456789ab",
}
with_keys = FastAPI()
with_keys.include_router(
    flow.router(
        prefix="/agentflow",
        auth=ApiKeys(
            {
                "writer": ApiKey(TOKENS["writer"], scopes=["events:write", "signals:write"]),
                "reader": ApiKey(TOKENS["reader"], scopes=["runs:read"]),
                "starter": ApiKey(TOKENS["starter"], scopes=["runs:read", "runs:write"]),
                "boss": ApiKey(TOKENS["boss"], scopes=["runs:read", "approvals:decide"], roles=["manager"]),
                "clerk": ApiKey(TOKENS["clerk"], scopes=["runs:read", "approvals:decide"]),
                "root": ApiKey(TOKENS["root"], scopes=["admin"]),
            }
        ),
    )
)
