"""`agentflow worker`: runs the functions of an app until it is told to stop, then drains."""

from __future__ import annotations

import gc
import os
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from agentflow.cli.exits import ExitCode, Stop, run_async
from agentflow.cli.options import AppArgument, AppRef

if TYPE_CHECKING:
    from agentflow.app import App


def worker(
    module: AppArgument = None,
    app: AppRef = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", "-c", min=1, help="Runs in memory at most.", show_default=False),
    ] = None,
) -> None:
    """Run the app's functions. SIGTERM or Ctrl-C drains: runs are handed over, bodies get their grace."""
    from agentflow.cli.find_app import find_app
    from agentflow.cli.logs import log_to_stderr
    from agentflow.cli.opened import open_app

    found = find_app(module or app)
    log_to_stderr()

    async def work() -> None:
        async with open_app(found):
            await _work(found, concurrency)

    run_async(work())


async def _work(app: App, concurrency: int | None) -> None:
    import asyncio

    from agentflow.cli.opened import shown_url
    from agentflow.cli.output import say

    functions = [info.id for info in await app.functions.list()]
    if not functions:
        raise Stop(f"app {app.id!r} has no functions: register them in the module that makes the app")
    asked = asyncio.Event()

    def stop() -> None:
        if asked.is_set():
            # As a kill does: locks and leases see to the rest.
            os._exit(ExitCode.ERROR)
        asked.set()
        say("agentflow: draining; the same signal once more ends it at once")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    worker = app.worker(concurrency)
    await worker.start()
    # What is in memory now stays: the collector need not look at all of it again and again while runs come and go.
    gc.collect()
    gc.freeze()
    say(
        f"agentflow: app {app.id!r} on {shown_url(app.settings.database_url)} works on {', '.join(functions)}"
    )
    await asked.wait()
    await worker.stop()
