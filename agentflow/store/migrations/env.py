"""Runs the scripts on the connection that `agentflow.store.migrations.upgrade` gives."""

from __future__ import annotations

from alembic import context

from agentflow.store.migrations import VERSION_TABLE
from agentflow.store.rows import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
