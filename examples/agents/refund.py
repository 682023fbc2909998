"""An agent that pays money back, and stops for a person before it does.

It looks the order up, asks a second agent about the policy (a run of its own), asks for the refund, waits until
somebody has decided, and answers with a `Resolution`. Kill it anywhere and start it again: it goes on where it was.

    agentflow demo                                      # shows this agent at work, step by step
    python examples/agents/refund.py                    # the same agent, with a worker in this process

Both work offline, without a key: `script` answers in the model's place. For a real model:

    AGENTFLOW_DEMO_MODEL=anthropic:claude-sonnet-4-5 python examples/agents/refund.py
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from decimal import Decimal
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from agentflow import Agent, App, Approve, Message, ModelRequest, ToolCall, ToolContext, tool

FOLDER = Path(".agentflow")
LEDGER = FOLDER / "refunds.jsonl"
PAUSE_SECONDS = float(os.environ.get("AGENTFLOW_DEMO_PAUSE", "0.3"))
"""How long each model and tool takes, so that one can watch, or kill the process in the middle."""

app = App("refunds", database_url=f"sqlite:///{FOLDER}/demo.db")

# --- the tools ----------------------------------------------------------------------------------------------------


class Order(BaseModel):
    id: str
    item: str
    paid: Decimal
    delivered_days_ago: int


class Receipt(BaseModel):
    """What the payment service answers, to the first request with a key and to every repeated one."""

    model_config = ConfigDict(extra="ignore")

    idempotency_key: str
    order_id: str
    amount: float


ORDERS = {
    "A-1001": Order(id="A-1001", item="espresso machine", paid=Decimal("189.00"), delivered_days_ago=9),
    "A-1002": Order(id="A-1002", item="desk lamp", paid=Decimal("39.90"), delivered_days_ago=71),
}


@tool
async def look_up_order(order_id: str, ctx: ToolContext) -> Order | str:
    """Find an order by its id."""
    ctx.logger.info("looking up order %s", order_id)
    await asyncio.sleep(PAUSE_SECONDS)
    return ORDERS.get(order_id) or f"There is no order {order_id}."


@tool(approval=True)  # nothing of it runs before a person has decided
async def refund(order_id: str, amount: Decimal, ctx: ToolContext) -> Receipt:
    """Pay money back to the customer.

    Args:
        order_id: The order it is for.
        amount: In euros.
    """
    ctx.logger.info("paying %s back for order %s", amount, order_id)
    await asyncio.sleep(PAUSE_SECONDS / 2)
    receipt = pay_back(ctx.idempotency_key, order_id=order_id, amount=amount)
    await asyncio.sleep(PAUSE_SECONDS / 2)  # a kill here: paid, but the step does not know it yet
    return receipt


def pay_back(idempotency_key: str, *, order_id: str, amount: Decimal) -> Receipt:
    """The payment service: a key that it has seen is answered with the first result, and nothing is paid again.

    This is what makes the refund happen once, however often the step is tried: a real service does the same with the
    key in its `Idempotency-Key` header.
    """
    LEDGER.parent.mkdir(parents=True, exist_ok=True)
    with open(LEDGER, "a+b") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)  # let go of when the file is closed, or the process killed
        ledger.seek(0)
        content = ledger.read()
        whole = content.rpartition(b"\n")[0]
        for line in whole.splitlines():
            receipt = Receipt.model_validate_json(line)
            if receipt.idempotency_key == idempotency_key:
                return receipt
        if content and not content.endswith(b"\n"):
            # The process that wrote it was killed in the middle: that refund was never made.
            ledger.truncate(len(whole) + 1 if whole else 0)
        receipt = Receipt(idempotency_key=idempotency_key, order_id=order_id, amount=float(amount))
        ledger.write(json.dumps(receipt.model_dump()).encode() + b"\n")
        ledger.flush()
        os.fsync(ledger.fileno())
        return receipt


# --- what a model would say ---------------------------------------------------------------------------------------

SUPPORT = (
    "Solve the customer's problem. Ask the policy agent before you refund, and refund only what it allows."
)
POLICY = "Answer from the refund policy: broken goods are paid back in full within 30 days of delivery."
PROMPT = "My espresso machine (order A-1001) arrived broken. I want my money back."


async def script(request: ModelRequest) -> object:
    """The replies of both agents, from the request alone: a process that starts anew is told the same."""
    await asyncio.sleep(PAUSE_SECONDS)
    if request.instructions == POLICY:
        return "Broken goods are refunded in full if they were delivered within the last 30 days. This order qualifies."
    answered = [call.name for message in request.messages for call in message.tool_calls]
    match answered:
        case []:
            return ToolCall(name="look_up_order", args={"order_id": "A-1001"})
        case ["look_up_order"]:
            return ToolCall(
                name="policy", args={"prompt": "An espresso machine broke 9 days after delivery. Refund it?"}
            )
        case ["look_up_order", "policy"]:
            return ToolCall(name="refund", args={"order_id": "A-1001", "amount": "189.00"})
        case _:
            return _closing_words(request.messages[-1])


def _closing_words(last: Message) -> Resolution:
    result = last.tool_results[-1]
    if result.is_error:
        return Resolution(
            reply="I am sorry: a colleague has declined the refund. We will write to you about a repair.",
            refunded=Decimal(0),
        )
    receipt = Receipt.model_validate_json(result.text)
    amount = Decimal(str(receipt.amount)).quantize(Decimal("0.01"))
    return Resolution(
        reply=f"I have paid {amount} euros back for order {receipt.order_id}. I am sorry that it arrived broken.",
        refunded=amount,
    )


# --- the agents ---------------------------------------------------------------------------------------------------


class Resolution(BaseModel):
    reply: str
    refunded: Decimal


MODEL = os.environ.get("AGENTFLOW_DEMO_MODEL") or f"scripted:{__name__}:script"

policy = Agent("policy", model=MODEL, instructions=POLICY)
support = Agent(
    "support",
    model=MODEL,
    instructions=SUPPORT,
    tools=[look_up_order, policy.as_tool("Ask about the refund policy."), refund],
    output=Resolution,
)
app.add(support)


async def main() -> None:
    """Start a run and approve its refund here, as `agentflow approvals approve` would from another terminal."""
    async with app.running():
        run = await app.start(support, PROMPT)
        async for item in run.stream():
            print(item.kind, item.step_key or "")
            for request in (await app.approvals.list(status="pending", run=run.id)).data:
                print(f"  a person decides about {request.tool} {request.args}")
                await app.approvals.decide(
                    request.id, Approve(), by="example", args_digest=request.args_digest
                )
        print((await run.result()).reply)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    asyncio.run(main())
