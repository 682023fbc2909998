"""Exit codes, and which error means which; what a user did wrong is told in a sentence, never as a traceback."""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from enum import IntEnum
from typing import Any, NoReturn, TypeVar

import typer
from typer.core import TyperGroup

T = TypeVar("T")


class ExitCode(IntEnum):
    OK = 0
    ERROR = 1
    USAGE = 2
    RUN_FAILED = 3
    NOT_FOUND = 4
    DENIED = 5
    """Or cancelled."""
    TIMED_OUT = 6


class Stop(Exception):
    """Ends the command: `message` goes to stderr, `code` to the shell."""

    def __init__(self, message: str, code: ExitCode = ExitCode.ERROR) -> None:
        super().__init__(message)
        self.code = code


class ReportingGroup(TyperGroup):
    """Turns the errors of its commands into a sentence and an exit code. `agentflow`'s root is one."""

    def invoke(self, ctx: Any) -> Any:
        # Here, at import, would be too early: `--help` needs none of it.
        from agentflow.errors import AgentflowError

        try:
            return super().invoke(ctx)
        except Stop as stop:
            _end(str(stop), stop.code)
        except AgentflowError as error:
            _end(str(error) or type(error).__name__, code_of(error))


def code_of(error: Exception) -> ExitCode:
    """The exit code for one of agentflow's errors."""
    from agentflow import errors

    match error:
        case errors.RunFailed():
            return ExitCode.RUN_FAILED
        case errors.NotFound():
            return ExitCode.NOT_FOUND
        case errors.RunCancelled() | errors.RunSkipped() | errors.NotPermitted() | errors.ApprovalExpired():
            return ExitCode.DENIED
        case _:
            return ExitCode.ERROR


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Carry out a command's work in an event loop of its own."""
    import asyncio

    return asyncio.run(work)


def usage(message: str) -> NoReturn:
    """The command was called wrongly."""
    raise Stop(message, ExitCode.USAGE)


def _end(message: str, code: ExitCode) -> NoReturn:
    sys.stdout.flush()
    print(f"agentflow: {message}", file=sys.stderr, flush=True)
    raise typer.Exit(code)
