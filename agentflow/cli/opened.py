"""An opened App for one command: the user's, or none but the database that the environment names."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agentflow.cli.exits import ExitCode, Stop
from agentflow.cli.find_app import HOW_TO_NAME_ONE, find_ref, load_app

if TYPE_CHECKING:
    from agentflow.app import App
    from agentflow.settings import Settings
    from agentflow.store.protocol import Store

ANYBODY = "agentflow-cli"
"""The App of a command that knows only a database: it has no functions, and looks at the runs of all apps."""
DEMO_DATABASE = Path(".agentflow/demo.db")


def choose_app(ref: str | None) -> App:
    """The App that is named or lies here; else one that has only a database: the environment's, or the demo's."""
    found = find_ref(ref)
    if found is not None:
        return load_app(found)
    from agentflow.app import App

    if os.environ.get("AGENTFLOW_DATABASE_URL"):
        return App(ANYBODY)
    if DEMO_DATABASE.is_file():
        return App(ANYBODY, database_url=f"sqlite:///{DEMO_DATABASE}")
    raise Stop(
        f"there is no app here: {HOW_TO_NAME_ONE}. Without one, AGENTFLOW_DATABASE_URL has to name the database",
        ExitCode.USAGE,
    )


@asynccontextmanager
async def opened(ref: str | None) -> AsyncIterator[App]:
    """Open the App for a command that looks or tells; closed at the end."""
    async with open_app(choose_app(ref)) as app:
        yield app


@asynccontextmanager
async def open_app(app: App) -> AsyncIterator[App]:
    """Open this App; a database that cannot be reached is said in a sentence."""
    with_database(app.settings.database_url)
    try:
        await app.open()
    except (OSError, TimeoutError) as error:
        raise unreachable(app.settings.database_url, error) from error
    except Exception as error:
        if is_of_a_driver(error):
            raise unreachable(app.settings.database_url, error) from error
        raise
    try:
        yield app
    finally:
        await app.close()


@asynccontextmanager
async def opened_store(settings: Settings) -> AsyncIterator[Store]:
    """Open the database alone, with tables that are there already."""
    from agentflow.store.opening import open_store

    with_database(settings.database_url)
    store = open_store(settings.database_url, settings=settings)
    try:
        await store.open(migrate=False)
        yield store
    except Exception as error:
        if isinstance(error, OSError | TimeoutError) or is_of_a_driver(error):
            raise unreachable(settings.database_url, error) from error
        raise
    finally:
        await store.close()


def with_database(url: str) -> None:
    """Refuse early a database whose driver is not installed."""
    if not url.startswith("sqlite"):
        import importlib.util

        if importlib.util.find_spec("asyncpg") is None:
            raise Stop("PostgreSQL needs the driver asyncpg: pip install 'agentflow-steps[postgres]'")


def unreachable(url: str, error: BaseException) -> Stop:
    """The database did not answer. Its URL is shown without the password."""
    told = str(error).strip().splitlines()
    return Stop(
        f"the database {shown_url(url)} cannot be opened: {told[0] if told else type(error).__name__}"
    )


def shown_url(url: str) -> str:
    """The URL with neither password nor query."""
    parts = urlsplit(url)
    if parts.scheme.startswith("sqlite"):
        return url
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    user = f"{parts.username}@" if parts.username else ""
    return f"{parts.scheme}://{user}{parts.hostname or ''}{port}{parts.path}"


def is_of_a_driver(error: BaseException) -> bool:
    """Whether a database driver raised it (their classes are known to the store alone)."""
    return type(error).__module__.partition(".")[0] in ("sqlite3", "asyncpg", "sqlalchemy", "aiosqlite")
