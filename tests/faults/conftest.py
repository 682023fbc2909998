"""These tests begin with tables: see tests/migrated.py."""

from tests.migrated import migrated_database, migrated_file, postgres_url, sqlite_url

__all__ = ["migrated_database", "migrated_file", "postgres_url", "sqlite_url"]
