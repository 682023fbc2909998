"""`agentflow send`, `start` and `signal`: what starts runs, and what wakes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentflow.cli.approvals import user_name
from agentflow.cli.exits import ExitCode, Stop, run_async, usage
from agentflow.cli.options import AppRef, AsJson, Data

if TYPE_CHECKING:
    from agentflow.app import App
    from agentflow.functions import FunctionRef
    from agentflow.handles import RunHandle


def send(
    event: Annotated[str, typer.Argument(metavar="EVENT", help="The event's name, as shop/order.paid.")],
    data: Data = None,
    app: AppRef = None,
    id: Annotated[
        str | None,
        typer.Option("--id", help="Sent again with the same id, it starts nothing.", show_default=False),
    ] = None,
    ts: Annotated[
        str | None,
        typer.Option("--ts", help="When it happens: an ISO time; later means later.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send an event, and say which runs it starts."""
    from agentflow.cli.data import read_data
    from agentflow.cli.opened import opened
    from agentflow.cli.output import show_json

    payload = read_data(data)
    if payload is not None and not isinstance(payload, dict):
        usage(f"--data of an event has to be a JSON object, not {type(payload).__name__}")
    message: dict[str, Any] = {"name": event, "data": payload or {}}
    if id is not None:
        message["id"] = id
    if ts is not None:
        message["ts"] = _instant(ts)

    async def work() -> None:
        async with opened(app) as found:
            sent = await found.client.send(message, by=user_name())
        if as_json:
            show_json({"event_ids": sent.event_ids, "run_ids": sent.run_ids})
            return
        for event_id in sent.event_ids:
            print(f"event {event_id}")
        for run_id in sent.run_ids:
            print(f"run {run_id}")

    run_async(work())


def signal(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name that a run waits for.")],
    data: Data = None,
    app: AppRef = None,
    buffer: Annotated[
        str | None,
        typer.Option(
            "--buffer", help="Where nobody waits yet: keep it this long, as 1h.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Wake the one run that waits for this name. Exits 4 when nobody does."""
    from agentflow.cli.data import read_data
    from agentflow.cli.opened import opened
    from agentflow.cli.output import show_json
    from agentflow.errors import NoWaiter

    payload = read_data(data)

    async def work() -> None:
        try:
            async with opened(app) as found:
                run_id = await found.signal(name, payload, buffer=buffer)
        except NoWaiter as error:
            raise Stop(
                f"nobody waits for signal {name!r}; to keep it for a wait that comes later, give --buffer 1h",
                ExitCode.NOT_FOUND,
            ) from error
        if as_json:
            show_json({"run_id": run_id})
        else:
            print(f"kept for {buffer}" if run_id is None else f"run {run_id}")

    run_async(work())


def start(
    function: Annotated[
        str, typer.Argument(metavar="FUNCTION", help="A function's id; agents are agents/NAME.")
    ],
    data: Data = None,
    app: AppRef = None,
    wait: Annotated[
        str | None, typer.Option("--wait", help="Wait this long for the result, as 60s.", show_default=False)
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show what the run does, until it ends.")] = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key", help="The same key within 24 h gives the same run.", show_default=False
        ),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="May be repeated.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a run; a worker carries it out. With `--wait` its output comes on stdout."""
    from agentflow.cli.data import read_data, read_seconds
    from agentflow.cli.opened import opened
    from agentflow.errors import InvalidInput

    payload = read_data(data)
    seconds = read_seconds(wait, option="--wait")

    async def work() -> None:
        async with opened(app) as found:
            target = await _target(found, function)
            try:
                handle = await found.start(
                    target, payload, idempotency_key=idempotency_key, tags=tag or (), by=user_name()
                )
            except InvalidInput as error:
                if data is not None:
                    raise
                raise InvalidInput(f"{error}. No data was given: give --data JSON") from error
            await _follow(
                found, handle, seconds=seconds, waits=wait is not None, stream=stream, as_json=as_json
            )

    run_async(work())


async def _target(app: App, function: str) -> str | FunctionRef:
    """The function of this app; without an app, of the one app in the database that has it."""
    from agentflow.cli.opened import ANYBODY
    from agentflow.functions import FunctionRef

    if app.id != ANYBODY:
        return function
    owners = sorted({info.app for info in await app.client.list_functions() if info.id == function})
    if not owners:
        raise Stop(f"no app in this database has a function {function!r}", ExitCode.NOT_FOUND)
    if len(owners) > 1:
        usage(f"several apps have a function {function!r} ({', '.join(owners)}): name one with -a module:app")
    return FunctionRef(function, owners[0])


async def _follow(
    app: App, handle: RunHandle[Any], *, seconds: float | None, waits: bool, stream: bool, as_json: bool
) -> None:
    import asyncio

    from agentflow.cli.output import say

    try:
        await _wait(app, handle, seconds=seconds, waits=waits, stream=stream, as_json=as_json)
    except asyncio.CancelledError:  # Ctrl-C
        say(f"agentflow: run {handle.id} goes on; agentflow runs watch {handle.id}")
        raise


async def _wait(
    app: App, handle: RunHandle[Any], *, seconds: float | None, waits: bool, stream: bool, as_json: bool
) -> None:
    from agentflow.cli.output import is_terminal, show_json
    from agentflow.cli.watching import watch_run

    if stream:
        await watch_run(app, handle.id, seconds=seconds, as_json=as_json)
        if not as_json:
            print(_shown((await app.runs.get(handle.id)).output))
        return
    if not waits:
        show_json(await app.runs.get(handle.id)) if as_json else print(handle.id)
        return
    if is_terminal() and not as_json:
        print(f"run {handle.id}")
    try:
        await handle.result(timeout=seconds)
    except TimeoutError as error:
        raise Stop(
            f"run {handle.id} had not ended after {seconds:g} s and goes on; agentflow runs watch {handle.id}",
            ExitCode.TIMED_OUT,
        ) from error
    run = await app.runs.get(handle.id)
    show_json(run) if as_json else print(_shown(run.output))


def _shown(output: Any) -> str:
    from agentflow.cli.output import one_line

    return output if isinstance(output, str) else one_line(output)


def _instant(text: str) -> Any:
    from datetime import datetime

    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        usage(f"--ts {text!r} is no ISO time: {error}")
