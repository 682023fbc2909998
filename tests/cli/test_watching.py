"""The live waterfall, as a terminal shows it."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from agentflow.cli.progress import Line, Progress
from agentflow.cli.watching import BAR_WIDTH, bar, waits, waterfall
from agentflow.runs import Run, RunStatus, StepKind, StepStatus, Waiting
from tests.cli.conftest import Project

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def line(begin: float, end: float | None, **fields: Any) -> Line:
    given: dict[str, Any] = {
        "run_id": "run_1",
        "key": "step",
        "depth": 0,
        "kind": StepKind.RUN,
        "status": StepStatus.COMPLETED if end is not None else StepStatus.RUNNING,
        "started_at": after(begin),
        "ended_at": None if end is None else after(end),
    }
    return Line(**(given | fields))


def a_run(**fields: Any) -> Run:
    return Run(id="run_1", app="a", function="f", root_id="run_1", created_at=BEGIN, **fields)


@pytest.mark.parametrize(
    ("begin", "end", "first", "length"),
    [
        (0, 10, 0, BAR_WIDTH),
        (0, 5, 0, BAR_WIDTH // 2),
        (5, 10, BAR_WIDTH // 2, BAR_WIDTH // 2),
        (5, None, 16, 16),
    ],
)
def test_a_bar_lies_where_the_step_lay_in_the_runs_time(
    begin: float, end: float | None, first: int, length: int
) -> None:
    drawn = bar(line(begin, end), BEGIN, after(10), after(10))
    assert (len(drawn) - len(drawn.lstrip()), drawn.count("━")) == (first, length)


def test_a_bar_never_leaves_its_column() -> None:
    for begin, end in ((0, 0), (10, 10), (10, 12), (9.99, 10), (0, 100)):
        assert 1 <= len(bar(line(begin, end), BEGIN, after(10), after(10))) <= BAR_WIDTH


def test_what_is_waited_for_says_since_when_and_until_when() -> None:
    waiting = Waiting(
        step_key="ask", kind=StepKind.APPROVAL, name="refund", since=after(0), until=after(86_400)
    )
    [told] = waits(a_run(status=RunStatus.WAITING, waiting=[waiting]), after(65))
    assert told.startswith("waits for approval refund (ask) since 1 m 05 s, until ")


def test_of_a_long_run_the_last_steps_are_shown() -> None:
    progress = Progress(
        a_run(status=RunStatus.RUNNING),
        [line(number, number + 1, key=f"step{number}") for number in range(1000)],
    )
    screen = Console(width=100, file=io.StringIO())
    screen.print(waterfall(progress, after(1000), room=10))
    assert isinstance(screen.file, io.StringIO)
    shown = screen.file.getvalue()
    assert "990 earlier steps" in shown
    assert "step999" in shown
    assert len(shown.splitlines()) == 12


def test_a_terminal_shows_the_steps_as_bars(project: Project) -> None:
    run_id = project.start("double", "3")
    master, slave = pty.openpty()
    watching = subprocess.Popen(
        [sys.executable, "-m", "agentflow", "runs", "watch", run_id],
        stdout=slave,
        stderr=slave,
        env={
            **os.environ,
            "COLUMNS": "120",
            "TERM": "xterm",
            "PYTHONPATH": os.pathsep.join([str(project.folder), os.environ.get("PYTHONPATH", "")]),
        },
    )
    os.close(slave)
    shown = b""
    try:
        while block := os.read(master, 65536):
            shown += block
    except OSError:  # the other side is closed
        pass
    os.close(master)
    assert watching.wait() == 0, shown.decode()
    assert "✓" in shown.decode()
    assert "━" in shown.decode()
    assert f"run {run_id} of double" in shown.decode()
