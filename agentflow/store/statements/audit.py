"""The statements of the audit log."""

from __future__ import annotations

from sqlalchemy import select

from agentflow.store.rows import AuditRow, table_of
from agentflow.store.statements.statement import Statement

_AUDIT = table_of(AuditRow)
audit = _AUDIT.c

READ_LAST = Statement(lambda _: select(audit.n, audit.chain).order_by(audit.n.desc()).limit(1))
INSERT_ENTRY = Statement(lambda d: d.insert(_AUDIT))
