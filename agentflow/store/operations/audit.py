"""The audit log: who decided what, append-only, each entry bound to the one before by a hash.

An entry is written by the transaction that does what it tells.
"""

from __future__ import annotations

from typing import Any

from agentflow.store.audit_chain import FIRST_LINK, link_of
from agentflow.store.statements import audit as sql
from agentflow.store.statements.core import LOCK_NAME
from agentflow.store.stored_types import AuditEntry, Micros
from agentflow.store.transaction import Work


def note(
    *,
    at: Micros,
    who: str,
    what: str,
    subject: str,
    digest: str | None = None,
    before: str | None = None,
    after: str | None = None,
) -> Work[None]:
    """Append an entry."""
    # Last of all locks: whoever writes an entry has what it is about already.
    yield LOCK_NAME, {"name": "audit"}
    last: list[Any] = yield sql.READ_LAST, {}
    n, link = (last[0][0] + 1, last[0][1]) if last else (0, FIRST_LINK)
    entry = AuditEntry(n, at, who, what, subject, digest, before, after, "")
    yield sql.INSERT_ENTRY, entry._replace(chain=link_of(link, entry))._asdict()
