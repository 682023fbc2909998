"""What went wrong in a run: the error with the user's own frames, and the steps that failed or are tried again."""

from __future__ import annotations

import os
import re
from datetime import datetime

from agentflow.cli.output import as_text, console, duration, is_terminal, visible
from agentflow.runs import ErrorInfo, Run, StepKind, StepRecord, StepStatus, Waiting

_FRAME = re.compile(r'  File "(?P<file>.+)", line \d+')
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_NOT_THEIRS = re.compile(
    r"[/\\]site-packages[/\\]agentflow[/\\]|[/\\]concurrent[/\\]futures[/\\]|[/\\]asyncio[/\\]"
)


def error_in_words(error: ErrorInfo) -> str:
    """`KeyError: 'x' (in step look)`."""
    where = f" (in step {error.step_id})" if error.step_id else ""
    return f"{error.name}: {error.message}{where}"


def show_traceback(error: ErrorInfo | None) -> None:
    """The frames below the message, dimmed and indented."""
    if error is None or not error.traceback:
        return
    out = console() if is_terminal() else None
    for line in users_frames(error.traceback):
        text = f"  {visible(line)}"
        if out is None:
            print(text)
        else:
            out.print(text, style="dim", soft_wrap=True)


def users_frames(traceback: str) -> list[str]:
    """The lines of a traceback without agentflow's frames and those of its threads; all where nothing else is there."""
    lines = traceback.rstrip().splitlines()
    kept: list[str] = []
    has_frames = is_skipping = False
    for line in lines:
        if frame := _FRAME.match(line):
            is_skipping = is_ours(frame["file"])
            has_frames = has_frames or not is_skipping
        elif not line.startswith("    "):
            is_skipping = False
        if not is_skipping:
            kept.append(line)
    return kept if has_frames else lines


def is_ours(file: str) -> bool:
    """Whether the frame is agentflow's; the traceback may come from another machine."""
    return file.startswith(_OURS) or _NOT_THEIRS.search(file) is not None


def show_troubled_steps(run: Run, steps: list[StepRecord], now: datetime) -> None:
    """The errors of the steps that failed, but for the run's own, and of those that are tried again."""
    retries = {waiting.step_key: waiting for waiting in run.waiting if waiting.kind is StepKind.RETRY}
    for step in steps:
        if step.error is None or step.status is StepStatus.COMPLETED or _is_of(run, step):
            continue
        print()
        what = "failed" if step.status is StepStatus.FAILED else f"failed in attempt {step.attempts}"
        print(f"step {visible(step.key)} {what}: {visible(error_in_words(step.error))}")
        if step.key in retries:
            print(f"  the next attempt is due {due(retries[step.key], now)}")
        show_traceback(step.error)


def due(waiting: Waiting, now: datetime) -> str:
    """`at 12:00:07, in 3.81 s`."""
    if waiting.until is None:
        return "at once"
    left = (waiting.until - now).total_seconds()
    return f"at {as_text(waiting.until)}, " + (
        f"in {duration(left)}" if left > 0 else "as soon as a worker is free"
    )


def _is_of(run: Run, step: StepRecord) -> bool:
    """Whether the run failed with this step's error, which is shown already."""
    told, own = run.error, step.error
    return (
        told is not None and own is not None and told.step_id == step.id and told.traceback == own.traceback
    )
