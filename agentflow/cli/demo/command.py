"""The command `agentflow demo`."""

from __future__ import annotations

import gc
import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from agentflow.cli.exits import Stop, run_async

INTERRUPTED = 130
"""What shells expect of a process that Ctrl-C has ended."""


class Auto(StrEnum):
    APPROVE = "approve"
    DENY = "deny"
    ASK = "ask"


def demo(
    auto: Annotated[
        Auto, typer.Option("--auto", help="Who decides about the refund: ask asks you.")
    ] = Auto.ASK,
    fast: Annotated[bool, typer.Option("--fast", help="Without the pauses that let one watch.")] = False,
) -> None:
    """An agent that stops for a person, offline and without a key. Kill it at any moment and start it again."""
    # A restart has to be on its way again at once, and imports make much that no collection would find: a tenth of it.
    gc.disable()
    from agentflow.cli.demo.files import DemoFiles

    files = DemoFiles.here()
    try:
        files.prepare()
    except OSError as error:
        raise Stop(
            f"the demo keeps everything in {files.folder}/, which cannot be written here: {error}"
        ) from error
    if fast:
        os.environ["AGENTFLOW_DEMO_PAUSE"] = "0.02"
    os.environ["AGENTFLOW_SCRIPTED_GENERATIONS"] = str(files.generations)

    from agentflow.cli.demo.session import show_demo

    try:
        run_async(show_demo(files, auto=auto.value))
    except KeyboardInterrupt:
        from agentflow.cli.output import say

        say("\nstopped; the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None
    # Nothing is open any more. Between the last line and the process's end is no moment that a kill could hit, to be
    # taken for a kill of the demo.
    sys.stdout.flush()
    os._exit(0)
