"""The statements of schedules."""

from __future__ import annotations

from sqlalchemy import delete, func, select, update

from agentflow.store.rows import ScheduleRow, table_of
from agentflow.store.statements.statement import Statement, big, text

_SCHEDULE = table_of(ScheduleRow)
schedule = _SCHEDULE.c

FIND_SCHEDULES = Statement(
    lambda d: (
        select(schedule.id)
        .where(schedule.app == text("app"), d.among(schedule.function, "functions"))
        .order_by(schedule.id)
    )
)
FORGET_SCHEDULE = Statement(lambda _: delete(_SCHEDULE).where(schedule.id == text("schedule")))
INSERT_SCHEDULE = Statement(lambda d: d.insert(_SCHEDULE).on_conflict_do_nothing())
READ_SCHEDULES = Statement(
    lambda d: select(schedule.id, schedule.next_at).where(d.among(schedule.id, "ids")).order_by(schedule.id)
)
MOVE_SCHEDULE = Statement(
    lambda _: (
        update(_SCHEDULE)
        .values(next_at=big("following"), last_nominal=func.coalesce(big("nominal"), schedule.last_nominal))
        .where(schedule.id == text("schedule"), schedule.next_at == big("due"))
        .returning(schedule.id)
    )
)
