"""What binds an entry of the audit log to the one before it."""

from __future__ import annotations

import hashlib

from agentflow.codec import canonical_json
from agentflow.store.stored_types import AuditEntry

FIRST_LINK = ""
"""What the first entry is bound to."""


def link_of(before: str, entry: AuditEntry) -> str:
    """The hash of an entry and of the one before it."""
    told = canonical_json(list(entry._replace(chain=before)))
    return hashlib.sha256(told.encode()).hexdigest()
