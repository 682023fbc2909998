"""`agentflow db`: the tables' version. Needs nothing but the database's URL."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from agentflow.cli.exits import run_async
from agentflow.cli.options import AppRef, AsJson

if TYPE_CHECKING:
    from agentflow.settings import Settings

commands = typer.Typer(no_args_is_help=True, help="The database's tables.")


@commands.command()
def upgrade(app: AppRef = None) -> None:
    """Make the tables, or bring them up to date. AGENTFLOW_DATABASE_URL is all it needs."""
    from agentflow.cli.opened import is_of_a_driver, shown_url, unreachable, with_database
    from agentflow.store.migrations import REVISIONS
    from agentflow.store.opening import open_store

    settings = _settings(app)
    url = settings.database_url

    async def work() -> None:
        with_database(url)
        store = open_store(url, settings=settings)
        try:
            await store.migrate()
        except Exception as error:
            if isinstance(error, OSError | TimeoutError) or is_of_a_driver(error):
                raise unreachable(url, error) from error
            raise
        finally:
            await store.close()
        print(f"{shown_url(url)} is at revision {REVISIONS[-1]}")

    run_async(work())


@commands.command()
def current(app: AppRef = None, as_json: AsJson = False) -> None:
    """Say whether the tables are those this agentflow needs; exits 1 when they are not."""
    from agentflow.cli.opened import opened_store, shown_url
    from agentflow.cli.output import show_json
    from agentflow.store.migrations import REVISIONS

    settings = _settings(app)
    url = settings.database_url

    async def work() -> None:
        async with opened_store(settings):
            pass
        if as_json:
            show_json({"database": shown_url(url), "revision": REVISIONS[-1], "is_current": True})
        else:
            print(f"{shown_url(url)} is at revision {REVISIONS[-1]}, the newest")

    run_async(work())


@commands.command()
def prune(
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="Such as 30d; else the settings' retention.", show_default=False
        ),
    ] = None,
    app: AppRef = None,
    as_json: AsJson = False,
) -> None:
    """Remove runs that ended longer ago than that, with their steps, and events as old."""
    from agentflow.cli.opened import opened_store
    from agentflow.cli.output import show_json
    from agentflow.durations import parse_duration, to_micros
    from agentflow.engine.retention import sweep
    from agentflow.errors import InvalidInput

    settings = _settings(app)
    try:
        keep = settings.retention if older_than is None else parse_duration(older_than)
    except InvalidInput as error:
        raise typer.BadParameter(str(error), param_hint="--older-than") from error
    if keep is None:
        raise typer.BadParameter("give a duration: the settings have no retention", param_hint="--older-than")

    async def work() -> None:
        async with opened_store(settings) as store:
            now = await store.database_now()
            swept = await sweep(store, before=now - to_micros(keep), now=now)
        if as_json:
            show_json(swept._asdict())
        else:
            print(f"removed {swept.runs} run(s) and {swept.events} event(s) that were older than {keep}")

    run_async(work())


def _settings(ref: str | None) -> Settings:
    """The environment's word, which a deployment gives without the app's code; else the app's."""
    from agentflow.cli.find_app import find_ref, load_app
    from agentflow.settings import resolve

    if ref is None and os.environ.get("AGENTFLOW_DATABASE_URL"):
        return resolve()
    found = find_ref(ref)
    return resolve() if found is None else load_app(found).settings
