"""What went wrong is shown with the user's own lines, and what comes next."""

from __future__ import annotations

import re
import sys
import traceback

import pytest

from agentflow.cli.troubles import is_ours, users_frames
from agentflow.durations import parse_duration
from tests.cli.conftest import Project


def test_a_failed_run_shows_the_users_frames_and_none_of_agentflows(project: Project) -> None:
    run_id = project.start("breaks", "{}")
    shown = project.run("runs", "show", run_id).stdout.splitlines()
    error = shown.index("error\tValueError: it broke")
    assert shown[error + 1] == "  Traceback (most recent call last):"
    [frame] = [line for line in shown if line.startswith("    File ")]
    assert frame.endswith("in breaks")
    assert str(project.folder) in frame
    assert '      raise ValueError("it broke")' in shown
    assert "  ValueError: it broke" in shown


def test_a_step_that_waits_for_its_retry_shows_the_last_error_and_when_it_is_due(project: Project) -> None:
    run_id = project.start("stumbles", "{}")
    shown = project.run("runs", "show", run_id).stdout
    assert "waits for\tretry look\n" in shown
    due = next(line for line in shown.splitlines() if line.startswith("next attempt\tat "))
    assert re.search(r", in (1 h 00 m|59 m \d\d s)$", due)
    assert "step look failed in attempt 1: KeyError: 'nowhere'\n  the next attempt is due at " in shown
    assert "in <lambda>" in shown


def test_a_step_whose_error_the_function_caught_is_told_too(project: Project) -> None:
    run_id = project.start("catches", "{}")
    shown = project.run("runs", "show", run_id).stdout
    assert "status\tcompleted\n" in shown
    assert "\nstep look failed: KeyError: 'nowhere'\n" in shown


@pytest.mark.parametrize(
    ("file", "ours"),
    [
        (sys.modules["agentflow.step"].__file__, True),
        ("/srv/venv/lib/python3.12/site-packages/agentflow/engine/bodies.py", True),
        ("/usr/lib/python3.11/concurrent/futures/thread.py", True),
        ("/srv/venv/lib/python3.12/site-packages/agentflow_openai/provider.py", False),
        ("/srv/agentflow/app.py", False),
    ],
)
def test_frames_of_another_machine_are_told_apart_too(file: str, ours: bool) -> None:
    assert is_ours(file) is ours


def test_a_traceback_of_agentflow_alone_is_shown_whole() -> None:
    try:
        parse_duration("soon")
    except Exception as error:
        text = "".join(traceback.format_exception(error)[-3:])
    assert users_frames(text)[-1] == text.rstrip().splitlines()[-1]
    only_ours = text.replace(__file__, sys.modules["agentflow.step"].__file__ or "")
    assert users_frames(only_ours) == only_ours.rstrip().splitlines()


def test_both_tracebacks_of_a_chain_are_shown() -> None:
    try:
        try:
            parse_duration("soon")
        except Exception as error:
            raise LookupError("not soon") from error
    except LookupError as error:
        text = "".join(traceback.format_exception(error))
    shown = users_frames(text)
    assert len([line for line in shown if line.startswith('  File "')]) == 2
    assert "The above exception was the direct cause of the following exception:" in shown
