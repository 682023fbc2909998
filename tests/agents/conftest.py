"""These tests begin with tables: see tests/migrated.py."""

from tests.migrated import postgres_url, sqlite_url

__all__ = ["postgres_url", "sqlite_url"]
