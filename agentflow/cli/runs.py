"""`agentflow runs`: list, show, watch, cancel, rerun."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentflow.cli.approvals import user_name
from agentflow.cli.exits import ExitCode, Stop, run_async
from agentflow.cli.options import AppRef, AsJson, Cursor, Limit

if TYPE_CHECKING:
    from agentflow.runs import Run, StepRecord

commands = typer.Typer(no_args_is_help=True, help="Look at runs, cancel them, do them again.")

RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or a unique beginning of it.")]


@commands.command("list")
def list_runs(
    app: AppRef = None,
    status: Annotated[
        list[str] | None,
        typer.Option("--status", "-s", help="Only these; may be repeated.", show_default=False),
    ] = None,
    function: Annotated[
        str | None, typer.Option("--function", "-f", help="Only of this function.", show_default=False)
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="Only from then on: 7d, or an ISO date.", show_default=False)
    ] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
    as_json: AsJson = False,
) -> None:
    """Runs, the newest first."""
    from agentflow.cli.data import read_since
    from agentflow.cli.opened import ANYBODY, opened
    from agentflow.cli.output import say, shortened, show_json, show_table
    from agentflow.clock import from_datetime
    from agentflow.runs import RunStatus

    try:
        statuses = [RunStatus(name) for name in status] if status else None
    except ValueError as error:
        raise Stop(f"--status: {error}; a run is one of {', '.join(RunStatus)}", ExitCode.USAGE) from error
    begin = read_since(since)

    async def work() -> None:
        async with opened(app) as found:
            page = await found.client.store.queries.list_runs(
                status=statuses,
                app=None if found.id == ANYBODY else found.id,
                function=function,
                since=None if begin is None else from_datetime(begin),
                limit=limit,
                cursor=cursor,
            )
        if as_json:
            show_json(page)
            return
        show_table(
            ("id", "function", "status", "created", "took", "waits for"),
            [
                (id, run.function, run.status, run.created_at, _took(run), waits_for(run))
                for id, run in zip(shortened([run.id for run in page.data]), page.data, strict=True)
            ],
            empty="no runs",
        )
        if page.has_more:
            say(f"there are more: --cursor {page.cursor}")

    run_async(work())


@commands.command()
def show(run: RunId, app: AppRef = None, as_json: AsJson = False) -> None:
    """A run with its steps."""
    from agentflow.cli.ids import run_id_of
    from agentflow.cli.opened import opened
    from agentflow.cli.output import show_json

    async def work() -> None:
        async with opened(app) as found:
            record = await found.runs.get(await run_id_of(found, run))
            steps = await all_steps(found, record.id)
        if as_json:
            show_json({**record.model_dump(), "steps": steps})
        else:
            _show(record, steps)

    run_async(work())


@commands.command()
def watch(
    run: RunId,
    app: AppRef = None,
    timeout: Annotated[
        str | None,
        typer.Option("--timeout", help="Stop watching after this long, as 60s.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A run's live waterfall, until it ends. Exits 3 when it failed, 5 when it was cancelled."""
    from agentflow.cli.data import read_seconds
    from agentflow.cli.ids import run_id_of
    from agentflow.cli.opened import opened
    from agentflow.cli.watching import watch_run

    seconds = read_seconds(timeout, option="--timeout")

    async def work() -> None:
        async with opened(app) as found:
            await watch_run(found, await run_id_of(found, run), seconds=seconds, as_json=as_json)

    run_async(work())


@commands.command()
def cancel(
    run: RunId,
    app: AppRef = None,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why; kept with the run.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """End a run and its children. One that has ended is left as it is."""
    from agentflow.cli.ids import run_id_of
    from agentflow.cli.opened import opened
    from agentflow.cli.output import show_json

    async def work() -> None:
        async with opened(app) as found:
            record = await found.runs.cancel(await run_id_of(found, run), reason)
        if as_json:
            show_json(record)
        elif record.status == "cancelled":
            print(f"run {record.id} is cancelled")
        elif record.status.is_final:
            print(f"run {record.id} had ended before: {record.status}")
        else:
            print(f"run {record.id} is asked to stop at its next step")

    run_async(work())


@commands.command()
def rerun(
    run: RunId,
    app: AppRef = None,
    from_step: Annotated[
        str | None,
        typer.Option(
            "--from-step",
            help="The key of the first step that runs again; what ended before it is kept.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="Another input: JSON, @file, or - for stdin.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Do a run's work again, as a new run; prints its id. Approvals are asked for again."""
    from agentflow.cli.data import read_data
    from agentflow.cli.ids import run_id_of
    from agentflow.cli.opened import opened
    from agentflow.cli.output import show_json

    given = None if data is None else read_data(data)

    async def work() -> None:
        async with opened(app) as found:
            handle = await found.runs.rerun(await run_id_of(found, run), from_step, given, by=user_name())
            record = await found.runs.get(handle.id)
        if as_json:
            show_json(record)
        else:
            print(record.id)

    run_async(work())


async def all_steps(app: Any, run_id: str) -> list[StepRecord]:
    """Every step of the run."""
    steps: list[StepRecord] = []
    cursor: str | None = None
    while True:
        page = await app.runs.steps(run_id, cursor=cursor)
        steps.extend(page.data)
        cursor = page.cursor
        if not page.has_more or cursor is None:
            return steps


def waits_for(run: Run) -> str:
    """What the run waits for, the first of several."""
    if not run.waiting:
        return ""
    first, more = run.waiting[0], len(run.waiting) - 1
    # A key with an @ is the code's between two steps, which nobody has named.
    name = first.name or ("" if first.kind != "retry" or first.step_key.startswith("@") else first.step_key)
    return f"{first.kind} {name}".rstrip() + (f" and {more} more" if more else "")


def _took(run: Run) -> str:
    from agentflow.cli.output import duration

    if run.ended_at is None:
        return ""
    return duration((run.ended_at - run.created_at).total_seconds())


def _show(run: Run, steps: list[StepRecord]) -> None:
    from datetime import UTC, datetime

    from agentflow.cli.output import duration, money, show_fields, show_table
    from agentflow.cli.troubles import due, error_in_words, show_traceback, show_troubled_steps

    now = datetime.now(UTC)
    retry = next((waiting for waiting in run.waiting if waiting.kind == "retry"), None)
    show_fields(
        [
            ("id", run.id),
            ("function", run.function),
            ("app", run.app),
            ("status", run.status),
            ("reason", run.reason),
            ("tags", list(run.tags)),
            ("parent", run.parent_id),
            ("rerun of", run.rerun_of),
            ("created", run.created_at),
            ("ended", run.ended_at),
            ("input", None if run.input is None else run.input),
            ("output", run.output),
            ("waits for", waits_for(run)),
            ("next attempt", None if retry is None else due(retry, now)),
            ("error", None if run.error is None else error_in_words(run.error)),
        ]
    )
    show_traceback(run.error)
    print()
    show_table(
        ("step", "kind", "status", "attempts", "took", "cost"),
        [
            (
                step.key,
                step.kind,
                step.status,
                step.attempts,
                duration((step.ended_at - step.started_at).total_seconds())
                if step.ended_at and step.started_at
                else "",
                "" if step.cost is None else money(step.cost),
            )
            for step in steps
        ],
        empty="no steps yet" if run.ended_at is None else "no steps",
    )
    show_troubled_steps(run, steps, now)
