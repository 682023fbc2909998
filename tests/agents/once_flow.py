"""The agent of the tests that kill it around an effect that may happen once, and `main` for tests/forked.py."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentflow import Agent, AgentInput, App, Approve, ModelRequest, Respond, Settings, ToolCall, tool
from agentflow.store.operation_types import CommitStep, EndTurn, MarkEffect
from agentflow.testing import FunctionModel
from tests.agents.killed_flow import _wrap
from tests.crash.processes import lines

POINTS = (
    "before the mark is committed",
    "after the mark is committed",
    "before the effect",
    "after the effect",
    "before the result is committed",
    "after the result is committed",
    "before the turn is committed",
    "after the turn is committed",
)
IN_DOUBT = POINTS[1:5]
"""Between the mark and the result: nobody can know whether it has happened."""


def make_app(database_url: str, log: str, point: str = "") -> tuple[App, Agent[str]]:
    app = App("once", database_url=database_url, settings=Settings(lease_seconds=2))

    @tool(effect="once", name="pay")
    async def pay(amount: int) -> str:
        die_if(point == "before the effect")
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, f"paid {amount}\n".encode())
        os.close(file)
        die_if(point == "after the effect")
        return f"paid {amount}"

    async def answer(request: ModelRequest) -> Any:
        [last] = request.messages[-1:]
        return last.tool_results[0].text if last.role == "tool" else ToolCall(name="pay", args={"amount": 5})

    agent = Agent("clerk", model=FunctionModel(answer), tools=[pay])
    app.add(agent)
    return app, agent


def die_if(is_it: bool) -> None:
    if is_it:
        os.kill(os.getpid(), signal.SIGKILL)


async def take_to_the_end(
    app: App, agent: Agent[str], log: str, key: str
) -> tuple[str, list[str], list[str]]:
    """Start the run, or find it; look into the log where a person is asked. What it said, what was asked, and what is
    on its thread."""
    asked: list[str] = []
    async with app.running():
        run = await app.start(agent, AgentInput("Pay.", thread=key), idempotency_key=key)
        result = asyncio.create_task(run.result(30))
        while not result.done():
            for request in (await app.approvals.list(status="pending", run=run.id)).data:
                asked.append(request.title)
                has_paid = lines(Path(log)) == ["paid 5"]
                answer = Respond("paid 5, as the bank says") if has_paid else Approve()
                await app.approvals.decide(request.id, answer, by="ana", args_digest=request.args_digest)
            await asyncio.sleep(0.02)
        said = (await app.threads.messages(key)).data
        return await result, asked, [f"{each.message.role}: {each.message.text}" for each in said]


def die_at(point: str) -> None:
    def seen(operations: Sequence[Any], is_before: bool) -> None:
        when = "before" if is_before else "after"
        for operation in operations:
            is_mark = isinstance(operation, MarkEffect)
            is_result = isinstance(operation, CommitStep) and operation.step.name == "pay"
            die_if(is_mark and point == f"{when} the mark is committed")
            die_if(is_result and point == f"{when} the result is committed")
            die_if(isinstance(operation, EndTurn) and point == f"{when} the turn is committed")

    from agentflow.store.postgres.backend import PostgresBackend
    from agentflow.store.sqlite.backend import SqliteBackend

    for backend in (SqliteBackend, PostgresBackend):
        _wrap(backend, seen)


async def main(url: str, log: str, key: str, point: str) -> None:
    app, agent = make_app(url, log, point)
    die_at(point)
    await take_to_the_end(app, agent, log, key)
