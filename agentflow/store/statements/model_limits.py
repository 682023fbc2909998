"""The statements of what is used of the model providers' limits."""

from __future__ import annotations

from sqlalchemy import delete, select, update

from agentflow.store.rows import ModelHoldRow, ModelLimitRow, table_of
from agentflow.store.statements.statement import Statement, big, text

_LIMIT, _HOLD = table_of(ModelLimitRow), table_of(ModelHoldRow)
limit, hold = _LIMIT.c, _HOLD.c

INSERT_MODEL_LIMIT = Statement(lambda d: d.insert(_LIMIT).on_conflict_do_nothing())
READ_MODEL_LIMIT = Statement(
    lambda _: (
        select(limit.requests_tat, limit.tokens_tat, limit.line_at, limit.paused_until)
        .where(limit.provider == text("provider"))
        .with_for_update()
    )
)
MOVE_MODEL_LIMIT = Statement(
    lambda _: (
        update(_LIMIT)
        .values(
            requests_tat=big("requests"),
            tokens_tat=big("tokens"),
            line_at=big("line"),
            paused_until=big("paused"),
        )
        .where(limit.provider == text("of"))
    )
)
INSERT_HOLD = Statement(lambda d: d.insert(_HOLD).on_conflict_do_nothing())
READ_HOLD = Statement(lambda _: select(hold.not_before).where(hold.id == text("id")))
TAKE_HOLD = Statement(
    lambda _: delete(_HOLD).where(hold.id == text("hold")).returning(hold.tokens, hold.cost)
)
FORGET_HOLDS = Statement(
    lambda _: delete(_HOLD).where(hold.provider == text("of"), hold.asked_at <= big("horizon"))
)
