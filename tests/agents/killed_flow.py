"""The agent of the tests that kill it, and `main`, which tests/forked.py runs in a process of its own.

It takes the run with a key to its end, unless the point is passed in that turn: then the process kills itself there.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Sequence
from inspect import iscoroutinefunction
from typing import Any

# Imported before the fork: the SDKs take longer to import than a run takes.
import anthropic  # noqa: F401
import genai_prices  # noqa: F401
import openai
import openai.resources.chat
import openai.resources.responses  # noqa: F401

from agentflow import Agent, App, Approve, Deny, Settings, ToolContext, crashpoints, recovering, tool
from agentflow.models.ledger import Billing
from agentflow.store.operation_types import CommitStep, WriteModelCall
from agentflow.store.postgres.backend import PostgresBackend
from agentflow.store.sqlite.backend import SqliteBackend

POINTS = (
    "before it is committed that it is asked",
    "after it is committed that it is asked",
    "before the request leaves",
    "while the answer is made",
    "after the answer has come",
    "before the answer is committed",
    "after the answer is committed",
    "before the job's id is committed",
    "after the job's id is committed",
)
GENERATING = POINTS[3]
"""Here the test kills it, from outside."""


SHORT_GRACE = 1_500_000
"""Microseconds: half a minute for each kill is too long."""


def make_app(database_url: str, log: str, model: str, billing: Billing) -> tuple[App, Agent[str]]:
    app = App("killed", database_url=database_url, settings=Settings(lease_seconds=2))

    def note(ctx: ToolContext, what: str) -> str:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, f"{ctx.idempotency_key} {what}\n".encode())
        os.close(file)
        return what

    @tool
    async def look_up(order_id: str, ctx: ToolContext) -> str:
        return note(ctx, f"looked-up-{order_id}")

    @tool(approval=True)
    async def refund(order_id: str, ctx: ToolContext) -> str:
        return note(ctx, f"refunded-{order_id}")

    agent = Agent("clerk", model=model, billing=billing, tools=[look_up, refund])
    app.add(agent)
    return app, agent


async def take_to_the_end(app: App, agent: Agent[str], key: str) -> str:
    """Start the run, or find it; approve the refund of order 1 and no other, and that a lost call is made again."""
    async with app.running():
        run = await app.start(agent, "Refund them.", idempotency_key=key)
        result = asyncio.create_task(run.result(30))
        while not result.done():
            for request in (await app.approvals.list(status="pending", run=run.id)).data:
                is_wanted = request.args == {"order_id": "1"} or request.tool is None
                await app.approvals.decide(request.id, Approve() if is_wanted else Deny("no"), by="ana")
            await asyncio.sleep(0.02)
        return await result


def die_at(point: str, turn: int) -> None:
    """Be killed when this point is passed for that call of the model, the first being 1."""
    match POINTS.index(point):
        case 0:
            _watch_commits(_is_attempt, turn, is_before=True)
        case 1:
            _watch_commits(_is_attempt, turn, is_before=False)
        case 2:
            crashpoints.arm_from(f"before_request:{turn}")
        case 4:
            crashpoints.arm_from(f"after_request:{turn}")
        case 5:
            _watch_commits(_is_answer, turn, is_before=True)
        case 6:
            _watch_commits(_is_answer, turn, is_before=False)
        case 7:
            _watch_commits(_is_job, turn, is_before=True)
        case 8:
            _watch_commits(_is_job, turn, is_before=False)


def _is_attempt(operation: Any) -> bool:
    return isinstance(operation, WriteModelCall) and operation.call.state == "attempted"


def _is_job(operation: Any) -> bool:
    return isinstance(operation, WriteModelCall) and operation.call.state == "submitted"


def _is_answer(operation: Any) -> bool:
    return isinstance(operation, CommitStep) and operation.model_call is not None


def _watch_commits(is_it: Callable[[Any], bool], turn: int, *, is_before: bool) -> None:
    left = turn

    def passed(operations: Sequence[Any], *, now: bool) -> None:
        nonlocal left
        if now:
            left -= sum(map(is_it, operations))
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    for backend in (SqliteBackend, PostgresBackend):
        _wrap(backend, lambda operations, began: passed(operations, now=began == is_before))


def _wrap(backend: Any, seen: Callable[[Sequence[Any], bool], None]) -> None:
    """Have `seen` told of what is committed, before it is and after."""
    real = backend.commit

    def commit(self: Any, operations: Sequence[Any], **options: Any) -> Any:
        seen(operations, True)
        answer = real(self, operations, **options)
        seen(operations, False)
        return answer

    async def commit_later(self: Any, operations: Sequence[Any], **options: Any) -> Any:
        seen(operations, True)
        answer = await real(self, operations, **options)
        seen(operations, False)
        return answer

    backend.commit = commit_later if iscoroutinefunction(real) else commit


async def main(
    environment: str, url: str, log: str, model: str, billing: Billing, key: str, point: str, turn: str
) -> None:
    os.environ.update(json.loads(environment))
    recovering.LOOKUP_GRACE = SHORT_GRACE
    app, agent = make_app(url, log, model, billing)
    if point:
        die_at(point, int(turn))
    await take_to_the_end(app, agent, key)
