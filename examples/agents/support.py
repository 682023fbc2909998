"""An agent that solves a ticket, and pays money back only when a person has agreed: the README's example."""

import os
from decimal import Decimal

from pydantic import BaseModel

from agentflow import Agent, App, Context, Step, ToolContext, tool

app = App("support", database_url="sqlite:///support.db")


class Ticket(BaseModel):
    id: str
    text: str


@tool(approval=True)  # nothing of it runs before a person has decided
async def refund(order_id: str, amount: Decimal, ctx: ToolContext) -> str:
    """Pay money back to the customer."""
    return f"{amount} euros for order {order_id}, booked under {ctx.idempotency_key}"


agent = Agent(
    "support",
    model=os.environ.get("SUPPORT_MODEL", "scripted:examples/agents/support.json"),
    instructions="Solve the ticket. Refund only what the order allows.",
    tools=[refund],
)
app.add(agent)


@app.function(on="ticket.created", retries=4)
async def handle_ticket(ctx: Context[Ticket], step: Step) -> str:
    solved = await agent.run(step, ctx.data.text)  # each model call and each tool call is a step
    await step.sleep("let it settle", "10s")  # nothing of the run is in memory meanwhile
    return await step.run("tell the customer", str.format, "{}: {}", ctx.data.id, solved.output)
