"""`agentflow dev`: worker and API on this machine, started again when a file changes."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentflow.cli.exits import Stop, usage
from agentflow.cli.options import AppArgument, AppRef

if TYPE_CHECKING:
    from uvicorn import Config

APP_VARIABLE = "AGENTFLOW_DEV_APP"
"""Tells the process that serves, which uvicorn starts anew after each change, which app it is."""
STREAM_GRACE_SECONDS = 5
"""A browser that follows a run never hangs up by itself, and the server must not wait for it."""
NOT_SOURCES = ("node_modules", "site-packages", "__pycache__", "venv")


def dev(
    module: AppArgument = None,
    app: AppRef = None,
    host: Annotated[
        str, typer.Option("--host", help="A loopback address: this server asks for no key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="0 takes a free one.")] = 8000,
    reload: Annotated[
        bool, typer.Option("--reload/--no-reload", help="Start again when a .py file changes.")
    ] = True,
) -> None:
    """Worker and API on 127.0.0.1, started again when a file changes; /docs there shows the routes."""
    if not is_loopback(host):
        usage(
            f"--host {host} would let everybody on the network start runs and decide approvals: `agentflow dev` asks "
            "for no key. Use --host 127.0.0.1; to serve others, put app.router(auth=...) into an application of yours"
        )
    from agentflow.cli.find_app import find_app, find_ref
    from agentflow.cli.logs import log_to_stderr
    from agentflow.cli.output import say

    found = find_app(module or app)  # what is wrong with it is better said once, here
    listener = bind(host, port)
    os.environ[APP_VARIABLE] = find_ref(module or app) or ""
    log_to_stderr()
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listener.getsockname()[1]}"
    say(
        f"agentflow: app {found.id!r}, worker and API (Ctrl-C ends it)\n"
        f"    {url}/docs       every route, to try it out\n"
        f"    {url}/functions  the API has no prefix here: /functions, /runs, /events, /approvals ..."
    )
    serve(listener, reload=reload)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A socket bound there; a port that is taken is said in a sentence."""
    address = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        # Only listening tells: with SO_REUSEADDR a bind beside a listening server succeeds on some systems.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise Stop(
            f"port {port} on {host} cannot be used: {error.strerror}. Take another one with --port"
        ) from error
    listener.set_inheritable(True)
    return listener


def serve(listener: socket.socket, *, reload: bool) -> None:
    """Serve until SIGINT or SIGTERM; the worker drains with the server."""
    import uvicorn

    config = uvicorn.Config(
        "agentflow.cli.dev:create",
        factory=True,
        reload=reload,
        log_level="info",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=STREAM_GRACE_SECONDS,
    )
    server = uvicorn.Server(config)
    if reload:
        _reloader(config, server, listener).run()
    else:
        server.run(sockets=[listener])


def create() -> Any:
    """The ASGI application: what uvicorn calls in the process that serves."""
    from agentflow.cli.find_app import find_app
    from agentflow.cli.logs import log_to_stderr
    from agentflow.http.standalone import standalone

    log_to_stderr()
    found = find_app(os.environ.get(APP_VARIABLE) or None)
    return standalone(found.router(), title=found.id)


def _reloader(config: Config, server: Any, listener: socket.socket) -> Any:
    from uvicorn.supervisors.statreload import StatReload

    class SourceReload(StatReload):
        """Looks at the project's own files: a virtual environment holds ten thousand others."""

        def iter_py_files(self) -> Iterator[Path]:
            for root in self.config.reload_dirs:
                for folder, folders, files in os.walk(root):
                    folders[:] = [
                        name for name in folders if not name.startswith(".") and name not in NOT_SOURCES
                    ]
                    yield from (Path(folder, name) for name in files if name.endswith(".py"))

    return SourceReload(config, target=server.run, sockets=[listener])
