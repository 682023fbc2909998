"""The statements of effects that may happen once."""

from __future__ import annotations

from sqlalchemy import delete, select

from agentflow.store.rows import EffectMarkRow, table_of
from agentflow.store.statements.statement import Statement, text

_MARK = table_of(EffectMarkRow)
mark = _MARK.c

INSERT_MARK = Statement(lambda d: d.insert(_MARK).on_conflict_do_nothing().returning(mark.key))
READ_MARK = Statement(
    lambda _: select(mark.epoch, mark.attempt, mark.marked_at).where(
        mark.run_id == text("run"), mark.key == text("key")
    )
)
DELETE_MARK = Statement(lambda _: delete(_MARK).where(mark.run_id == text("run"), mark.key == text("step")))
