"""One sitting of the demo: begin or go on, show what happens, ask the person, tell how it ended."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agentflow.app import App
from agentflow.approvals import ApprovalRequest, ApprovalStatus, Approve, DecisionInput, Deny
from agentflow.cli.approvals import user_name
from agentflow.cli.demo.agent import load_agent
from agentflow.cli.demo.ending import tell_ending
from agentflow.cli.demo.files import DemoFiles, DemoState
from agentflow.cli.demo.person import Lines, NobodyThere, ask, question
from agentflow.cli.demo.telling import Teller
from agentflow.cli.exits import ExitCode, Stop
from agentflow.cli.ids import as_argument
from agentflow.cli.opened import open_app
from agentflow.cli.program import program
from agentflow.cli.progress import Progress, read_progress
from agentflow.errors import AlreadyDecided, NotFound, RunCancelled, RunFailed
from agentflow.handles import RunHandle
from agentflow.models.registry import resolve_model
from agentflow.runs import ErrorInfo, RunStatus, StepKind, StepStatus

LOOK_SECONDS = 0.15


async def show_demo(files: DemoFiles, *, auto: str) -> None:
    """Show the demo that is not over, or a new one, to its end. Raises what an end other than completed means."""
    agent = load_agent()
    resolve_model(agent.MODEL)  # a name that nobody knows is better said before a run is started
    state = files.begin()
    teller = Teller()
    async with open_app(agent.app):
        gc.enable()
        state, run = await _run_of(state, files, agent)
        teller.introduce(run.id, await read_progress(agent.app, run.id))
        async with _working(agent.app, run):
            progress = await _show(agent, run, teller, auto=auto)
    # Everything is closed before the end is told: who has seen the last line may start, or kill, what they like.
    generated = files.count_generations() - state.generations_before
    model_calls = generated if agent.MODEL.startswith("scripted:") else teller.count_calls(progress)
    tell_ending(progress, model_calls=model_calls, refunds=files.count_refunds() - state.refunds_before)
    files.end(state)
    ended = progress.run
    match ended.status:
        case RunStatus.COMPLETED:
            return
        case RunStatus.FAILED:
            raise RunFailed(ended.id, ended.error or ErrorInfo(name="Error", message="unknown"))
        case _:
            raise RunCancelled(ended.id, ended.reason)


@asynccontextmanager
async def _working(app: App, run: RunHandle[Any]) -> AsyncIterator[None]:
    """With a worker, unless there is nothing left to do but to tell the end."""
    if (await run.status()).is_final:
        yield
    else:
        async with app.running():
            yield


async def _run_of(state: DemoState, files: DemoFiles, agent: Any) -> tuple[DemoState, RunHandle[Any]]:
    """The demo's run; where somebody has removed the database, a new demo and its run."""
    app: App = agent.app
    if state.run_id is not None:
        run: RunHandle[Any] = app.runs.handle(state.run_id)
        try:
            await run.status()
        except NotFound:
            files.end(state)
            state = files.begin()
        else:
            return state, run
    run = await app.start(agent.support, agent.PROMPT, idempotency_key=state.key)
    return files.remember_run(state, run.id), run


async def _show(agent: Any, run: RunHandle[Any], teller: Teller, *, auto: str) -> Progress:
    """Tell each step as it begins and ends, and have the person decide, until the run is over."""
    lines = Lines()
    told: set[str] = set()
    while True:
        progress = await read_progress(agent.app, run.id)
        teller.tell(progress)
        if progress.run.status.is_final:
            return progress
        for request in await _pending(agent.app, progress):
            if request.id not in told:
                told.add(request.id)
                teller.say(*question(request))
                await _decide(agent, request, lines, teller, auto=auto)
        await asyncio.sleep(LOOK_SECONDS)


async def _pending(app: App, progress: Progress) -> list[ApprovalRequest]:
    """What waits for a person, in this run or in one below it."""
    asking = {
        line.run_id
        for line in progress.lines
        if line.kind is StepKind.APPROVAL and line.status is StepStatus.WAITING
    }
    found: list[ApprovalRequest] = []
    for run_id in sorted(asking):
        found.extend((await app.approvals.list(status="pending", run=run_id)).data)
    return found


async def _decide(agent: Any, request: ApprovalRequest, lines: Lines, teller: Teller, *, auto: str) -> None:
    app: App = agent.app
    match auto:
        case "approve":
            decision: DecisionInput | None = Approve()
        case "deny":
            decision = Deny()
        case _:
            decision = await _asked(agent, request, lines)
    if decision is not None:
        try:
            await app.approvals.decide(request.id, decision, by=user_name(), args_digest=request.args_digest)
        except AlreadyDecided:
            decision = None
    decided = await app.approvals.get(request.id)
    by = decided.decisions[-1].by if decided.decisions else "nobody"
    teller.say(f"! {decided.status} by {by}" + (" elsewhere" if decision is None else ""))


async def _asked(agent: Any, request: ApprovalRequest, lines: Lines) -> DecisionInput | None:
    """What the person here says; None when somebody has decided elsewhere meanwhile."""
    tool = next((tool for tool in agent.support.tools if tool.name == request.tool), None)

    def check(args: dict[str, Any]) -> str | None:
        try:
            tool.validate(args) if tool is not None else None
        except Exception as error:
            return str(error)
        return None

    asking = asyncio.create_task(ask(request, lines, check))
    try:
        while not asking.done():
            await asyncio.wait({asking}, timeout=0.25)
            if (
                not asking.done()
                and (await agent.app.approvals.get(request.id)).status != ApprovalStatus.PENDING
            ):
                print()
                return None
        return asking.result()
    except NobodyThere:
        print()
        id = as_argument(request.id)
        raise Stop(
            "nobody is here to decide, and the run waits. Decide with\n"
            f"    {program()} approvals approve {id}\n"
            f"    {program()} approvals deny {id}\n"
            "and start the demo again, or start it with --auto approve or --auto deny",
            ExitCode.TIMED_OUT,
        ) from None
    finally:
        asking.cancel()
