"""From a database URL to a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from agentflow.errors import ConfigurationError

if TYPE_CHECKING:
    from agentflow.settings import Settings
    from agentflow.store.protocol import Store

_HELP = "write sqlite:///relative.db, sqlite:////absolute.db or postgresql://user:password@host/database"


def open_store(database_url: str, *, settings: Settings) -> Store:
    """The store behind a URL, not connected yet. Raises `ConfigurationError`."""
    scheme = database_url.partition("://")[0]
    if scheme == "sqlite":
        from agentflow.store.sqlite.store import SqliteStore

        return SqliteStore(_sqlite_path(database_url), durability=settings.durability)
    if scheme in ("postgresql", "postgres"):
        try:
            from agentflow.store.postgres.store import PostgresStore
        except ModuleNotFoundError as missing:
            if missing.name != "asyncpg":
                raise
            raise ConfigurationError(
                "PostgreSQL needs the package asyncpg: install agentflow-steps with its extra, "
                "`pip install -e '.[postgres]'`"
            ) from missing
        return PostgresStore(database_url, durability=settings.durability)
    # The URL itself is not shown: it may hold a password.
    raise ConfigurationError(f"the database URL begins with {scheme[:20]!r}: {_HELP}")


def _sqlite_path(url: str) -> Path:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc or not path.startswith("/") or path in ("", "/"):
        raise ConfigurationError(f"{url!r} names no file: {_HELP}")
    if parts.query or ":memory:" in path:
        raise ConfigurationError(
            f"{url!r}: a run has to outlive its process, so the database is a plain file; {_HELP}"
        )
    return Path(path[1:])
