"""Watching a run: a live waterfall on a terminal, a line for each step elsewhere, JSON lines with `--json`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from agentflow.cli.costs import cost_in_words
from agentflow.cli.exits import ExitCode, Stop
from agentflow.cli.output import STATUS_STYLES, as_text, console, duration, is_terminal, visible
from agentflow.cli.progress import CallsOfSteps, Line, Progress, line_of, read_progress
from agentflow.cli.troubles import due, error_in_words
from agentflow.runs import Run, RunStatus, StepKind, StepRecord, StepStatus, StreamItem, Waiting

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from agentflow.app import App

FRAME_SECONDS = 0.15
BAR_WIDTH = 32
WIDE = 100
LONGEST_CELL = 200
MARKS = {
    StepStatus.COMPLETED: "✓",
    StepStatus.FAILED: "✗",
    StepStatus.RUNNING: "▸",
    StepStatus.WAITING: "…",
}


async def watch_run(app: App, run_id: str, *, seconds: float | None, as_json: bool) -> None:
    """Show the run until it ends; raises what its end means for the exit code."""
    try:
        async with asyncio.timeout(seconds):
            if is_terminal() and not as_json:
                await _watch_live(app, run_id)
            else:
                await _watch_lines(app, run_id, as_json=as_json)
    except TimeoutError as error:
        raise Stop(
            f"run {run_id} had not ended after {seconds:g} s; it goes on", ExitCode.TIMED_OUT
        ) from error
    await app.runs.handle(run_id).result()


async def _watch_lines(app: App, run_id: str, *, as_json: bool) -> None:
    """A line for each step that ends, `id kind status took used`, and one in that form for the run whenever its
    status changes. With `json` everything, pieces of text and whole answers too."""
    calls = CallsOfSteps(app, run_id)
    async for item in app.runs.handle(run_id).stream():
        if as_json:
            print(item.model_dump_json(), flush=True)
        elif item.kind.startswith("step."):
            step = StepRecord.model_validate({**item.data, "run_id": run_id})
            line = line_of(step, calls=await calls.find(step))
            print(_cells(line.key, line.kind, line.status, _took(line), _used_or_why(line)), flush=True)
        elif item.kind.startswith("run.") or item.kind == "done":
            print(_run_line(_as_told(await app.runs.get(run_id), item), datetime.now(UTC)), flush=True)


def _as_told(run: Run, item: StreamItem) -> Run:
    """The run as the item tells it: it may be further on by now."""
    if item.kind == "done":
        return run
    waiting = [Waiting.model_validate(each) for each in item.data["waiting"]]
    status = RunStatus(item.kind.removeprefix("run."))
    return run.model_copy(update={"status": status, "waiting": waiting, "error": None, "ended_at": None})


def _run_line(run: Run, now: datetime) -> str:
    took = ((run.ended_at or now) - run.created_at).total_seconds()
    why = [error_in_words(run.error)] if run.error else [run.reason] if run.reason else waits(run, now)
    return _cells(run.id, run.function, run.status, duration(took), "; ".join(why))


def _used_or_why(line: Line) -> str:
    return ", ".join(text for text in (tokens_and_cost(line), line.error) if text)


def _took(line: Line) -> str:
    return duration(line.seconds(datetime.now(UTC))) if line.started_at else ""


def _cells(*cells: str) -> str:
    return "\t".join(visible(cell)[:LONGEST_CELL] for cell in cells).rstrip()


async def _watch_live(app: App, run_id: str) -> None:
    from rich.live import Live

    with Live(console=console(), auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            progress = await read_progress(app, run_id)
            is_over = progress.run.status.is_final
            room = None if is_over else live.console.height - 6
            drawn = waterfall(progress, datetime.now(UTC), room=room, width=live.console.width)
            live.update(drawn, refresh=True)
            if is_over:
                return
            await asyncio.sleep(FRAME_SECONDS)


def waterfall(
    progress: Progress, now: datetime, *, room: int | None = None, width: int = WIDE
) -> RenderableType:
    """The steps over time; with `room` only the last ones that fit. What models used is left out where it is narrow."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    run = progress.run
    begin, end = run.created_at, run.ended_at or now
    shown = progress.lines if room is None else progress.lines[-max(1, room) :]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    bar_width = min(BAR_WIDTH, width // 4)
    table.add_column(no_wrap=True, width=bar_width)
    table.add_column(no_wrap=True, width=11, justify="right")
    if width >= WIDE:
        table.add_column(no_wrap=True, width=30, justify="right")
    for line in shown:
        cells = [
            Text("  " * line.depth).append_text(mark(line)).append(f" {visible(line.key)}"),
            Text(bar(line, begin, end, now, width=bar_width), style=STATUS_STYLES.get(line.status, "")),
            Text(duration(line.seconds(now))),
            Text(tokens_and_cost(line), style="dim"),
        ]
        table.add_row(*cells[: len(table.columns)])
    hidden = len(progress.lines) - len(shown)
    parts: list[RenderableType] = [_head(run, now)]
    if hidden:
        parts.append(Text(f"  {hidden} earlier steps", style="dim"))
    parts.append(table)
    parts.extend(Text(text, style="magenta") for text in waits(run, now))
    return Group(*parts)


def bar(line: Line, begin: datetime, end: datetime, now: datetime, *, width: int = BAR_WIDTH) -> str:
    """Where in the run's time the step lay."""
    if line.started_at is None:
        return ""
    whole = max((end - begin).total_seconds(), 1e-6)
    first = max(0, min(int((line.started_at - begin).total_seconds() / whole * width), width - 1))
    length = max(1, round(line.seconds(now) / whole * width))
    return " " * first + "━" * min(length, width - first)


def mark(line: Line) -> Text:
    """How the step stands, in one character."""
    from rich.text import Text

    return Text(MARKS[line.status], style=STATUS_STYLES.get(line.status, ""))


def tokens_and_cost(line: Line) -> str:
    """`210 in, 31 out, $0.0004`, or nothing where no model was called."""
    if not line.calls:
        return ""
    given, made = line.tokens
    return f"{given} in, {made} out, {cost_in_words(line.calls)}"


def waits(run: Run, now: datetime) -> list[str]:
    """Everything the run waits for: what, since when, until when."""
    texts = []
    for item in run.waiting:
        if item.kind is StepKind.RETRY:
            of = "" if item.step_key.startswith("@") else f" of {visible(item.step_key)}"
            texts.append(f"waits for the next attempt{of}, due {due(item, now)}")
            continue
        name = f" {visible(item.name)}" if item.name else ""
        since = duration((now - item.since).total_seconds())
        until = f", until {as_text(item.until)}" if item.until else ""
        texts.append(f"waits for {item.kind}{name} ({visible(item.step_key)}) since {since}{until}")
    return texts


def _head(run: Run, now: datetime) -> Text:
    from rich.text import Text

    took: timedelta = (run.ended_at or now) - run.created_at
    head = Text(f"run {run.id} of {visible(run.function)} ")
    head.append(run.status, style=STATUS_STYLES.get(run.status, ""))
    return head.append(f" {duration(took.total_seconds())}")
