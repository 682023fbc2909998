"""What is told of a run that goes on is one picture of it, in the order in which it happened."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agentflow import App, Context, ModelRequest, Step
from agentflow.cli import progress as progress_module
from agentflow.cli.demo.telling import Teller
from agentflow.cli.progress import Line, Progress, read_progress
from agentflow.cli.runs import all_steps
from agentflow.models.function import FunctionModel
from agentflow.runs import Run, RunStatus, StepKind, StepRecord, StepStatus

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


async def test_a_call_is_not_told_before_the_step_that_ended_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [asyncio.Event(), asyncio.Event()]
    answer = [asyncio.Event(), asyncio.Event()]

    async def reply(request: ModelRequest) -> str:
        number = int(request.prompt)
        asked[number].set()
        await answer[number].wait()
        return "yes"

    app = App("asking", database_url=f"sqlite:///{tmp_path}/asking.db")

    @app.function
    async def ask(ctx: Context[int], step: Step) -> None:
        for number in ("0", "1"):
            await step.ai.infer(f"turn{number}", model=FunctionModel(reply), messages=number)

    async def all_steps_and_then_the_run_goes_on(app: App, run_id: str) -> list[StepRecord]:
        steps = await all_steps(app, run_id)
        answer[0].set()
        await asked[1].wait()
        return steps

    async with app.running():
        run = await app.start(ask, 1)
        await asked[0].wait()
        monkeypatch.setattr(progress_module, "all_steps", all_steps_and_then_the_run_goes_on)
        told = [(line.key, line.status) for line in (await read_progress(app, run.id)).lines]
        later = [(line.key, line.status) for line in (await read_progress(app, run.id)).lines]
        answer[1].set()
        await run.result(timeout=20)
    assert told == [("turn0", StepStatus.RUNNING)]
    assert later == [("turn0", StepStatus.COMPLETED), ("turn1", StepStatus.RUNNING)]


def test_the_steps_of_a_run_are_told_by_their_seq_whatever_the_clock_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    refund = a_line("refund", StepKind.RUN, 1, 5, status=StepStatus.COMPLETED)
    turn = a_line("turn3", StepKind.INFER, 4, None, status=StepStatus.RUNNING)
    Teller().tell(Progress(a_run(), [refund, turn]))
    assert [told.split()[:2] for told in capsys.readouterr().out.splitlines()] == [
        ["✓", "refund"],
        ["▸", "turn3"],
    ]


def a_run() -> Run:
    return Run(id="run_1", app="a", function="f", root_id="run_1", created_at=BEGIN, status=RunStatus.RUNNING)


def a_line(key: str, kind: StepKind, begin: float, end: float | None, *, status: StepStatus) -> Line:
    return Line(
        run_id="run_1",
        key=key,
        depth=0,
        kind=kind,
        status=status,
        started_at=BEGIN + timedelta(seconds=begin),
        ended_at=None if end is None else BEGIN + timedelta(seconds=end),
    )
