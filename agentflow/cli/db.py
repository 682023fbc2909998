"""`agentflow db`: the tables' version. Needs nothing but the database's URL."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

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
    from agentflow.cli.opened import is_of_a_driver, shown_url, unreachable, with_database
    from agentflow.cli.output import show_json
    from agentflow.store.migrations import REVISIONS
    from agentflow.store.opening import open_store

    settings = _settings(app)
    url = settings.database_url

    async def work() -> None:
        with_database(url)
        store = open_store(url, settings=settings)
        try:
            await store.open(migrate=False)
        except Exception as error:
            if isinstance(error, OSError | TimeoutError) or is_of_a_driver(error):
                raise unreachable(url, error) from error
            raise
        finally:
            await store.close()
        if as_json:
            show_json({"database": shown_url(url), "revision": REVISIONS[-1], "is_current": True})
        else:
            print(f"{shown_url(url)} is at revision {REVISIONS[-1]}, the newest")

    run_async(work())


def _settings(ref: str | None) -> Settings:
    """The environment's word, which a deployment gives without the app's code; else the app's."""
    from agentflow.cli.find_app import find_ref, load_app
    from agentflow.settings import resolve

    if ref is None and os.environ.get("AGENTFLOW_DATABASE_URL"):
        return resolve()
    found = find_ref(ref)
    return resolve() if found is None else load_app(found).settings
