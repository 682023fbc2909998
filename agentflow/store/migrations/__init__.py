"""The tables' versions: alembic scripts inside the package, and which of them a database has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agentflow.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Connection

VERSION_TABLE = "agentflow_version"
REVISIONS = ("0001",)
"""All that this agentflow knows, oldest first. Kept here so that an up-to-date database opens without alembic."""


def is_current(revision: str | None, database: str) -> bool:
    """Whether a database at this revision needs nothing; one from a newer agentflow is refused."""
    if revision is not None and revision not in REVISIONS:
        raise ConfigurationError(
            f"the tables in {database} are of revision {revision!r}, which this agentflow does not know: they were "
            "made by a newer one; upgrade agentflow here, or use another database"
        )
    return revision == REVISIONS[-1]


def needs_upgrade(revision: str | None, database: str) -> ConfigurationError:
    """What to tell somebody who opens a database with missing or older tables."""
    what = (
        "has no agentflow tables"
        if revision is None
        else f"has agentflow tables of the older revision {revision}"
    )
    return ConfigurationError(
        f"{database} {what}: run `agentflow db upgrade` (or `await app.migrate()`) first"
    )


def upgrade(connection: Connection) -> None:
    """Bring the tables to the newest revision, within the connection's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
