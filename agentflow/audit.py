"""`app.audit`: who decided what, and whether anybody has changed what is written about it."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from agentflow.clock import to_datetime
from agentflow.runs import Page
from agentflow.store.audit_chain import FIRST_LINK, link_of
from agentflow.store.protocol import Store
from agentflow.store.stored_types import AuditEntry

PAGE = 100


class AuditRecord(BaseModel):
    """An entry: `who` did `what` to the `subject`, which was `before` and is `after`."""

    model_config = ConfigDict(frozen=True)

    n: int
    at: datetime
    who: str
    what: str
    subject: str
    digest: str | None
    before: str | None
    after: str | None


class Audit:
    """The audit log of the database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(
        self, *, subject: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[AuditRecord]:
        """Entries, the oldest first; with `subject` those about one approval."""
        page = await self._store.queries.list_audit(subject=subject, limit=limit, cursor=cursor)
        return Page(data=[_shown(entry) for entry in page.data], cursor=page.cursor, has_more=page.has_more)

    async def first_fault(self) -> int | None:
        """The number of the first entry that was changed, or before which one is missing; `None`: all is as written.

        Entries that were cut off at the end leave no trace in what is left.
        """
        link, expected, cursor = FIRST_LINK, 0, None
        while True:
            page = await self._store.queries.list_audit(limit=PAGE, cursor=cursor)
            for entry in page.data:
                if entry.n != expected or entry.chain != link_of(link, entry):
                    return entry.n
                link, expected = entry.chain, expected + 1
            if not page.has_more:
                return None
            cursor = page.cursor


def _shown(entry: AuditEntry) -> AuditRecord:
    shown = {name: value for name, value in entry._asdict().items() if name not in ("at", "chain")}
    return AuditRecord(at=to_datetime(entry.at), **shown)
