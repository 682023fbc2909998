"""The statements of races: what the branches of one have begun."""

from __future__ import annotations

from sqlalchemy import delete, exists, select

from agentflow.store.rows import StepAttemptRow, StepRow, WaitRow, table_of
from agentflow.store.statements.statement import Statement, text

_ATTEMPT = table_of(StepAttemptRow)
attempt = _ATTEMPT.c
step = table_of(StepRow).c
wait = table_of(WaitRow).c

LIST_WAITS = Statement(
    lambda _: select(wait.key, wait.kind, wait.topic).where(wait.run_id == text("run")).order_by(wait.key)
)
LIST_OPEN_ATTEMPTS = Statement(
    lambda _: (
        select(attempt.key)
        .distinct()
        .where(
            attempt.run_id == text("run"),
            ~exists().where(step.run_id == attempt.run_id, step.key == attempt.key),
        )
        .order_by(attempt.key)
    )
)
FORGET_ATTEMPTS = Statement(
    lambda _: delete(_ATTEMPT).where(attempt.run_id == text("run"), attempt.key == text("step"))
)
