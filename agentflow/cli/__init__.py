"""The command line: `agentflow`. One file a command group; what a command needs it imports when it is called."""

from __future__ import annotations

import errno
import io
import os
import sys

import typer

from agentflow.cli import approvals, db, runs
from agentflow.cli.demo.command import demo
from agentflow.cli.dev import dev
from agentflow.cli.exits import ExitCode, ReportingGroup
from agentflow.cli.messages import send, signal, start
from agentflow.cli.usage import usage
from agentflow.cli.worker import worker

cli = typer.Typer(
    name="agentflow",
    cls=ReportingGroup,
    help="Agents and LLM pipelines on durable steps.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: the coloured one costs more than everything else at the start.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@cli.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Show agentflow's version, and end."),
) -> None:
    if version:
        from importlib.metadata import version as version_of

        print(version_of("agentflow-steps"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


cli.command()(demo)
cli.command()(dev)
cli.command()(worker)
cli.command()(send)
cli.command()(start)
cli.command()(signal)
cli.add_typer(runs.commands, name="runs")
cli.add_typer(approvals.commands, name="approvals")
cli.command()(usage)
cli.add_typer(db.commands, name="db")


def main() -> None:
    """The entry point of the script `agentflow`."""
    if sys.stdout is None:  # closed by who called
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lasts)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            cli()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.stdout = None  # else Python tries once more when it ends
        print(f"agentflow: what there is to tell cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(ExitCode.ERROR)
