"""The statements that find and remove what is older than a database is meant to keep."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Integer, and_, delete, exists, or_, select
from sqlalchemy import literal_column as raw

from agentflow.store.rows import (
    ApprovalRow,
    BucketRow,
    BudgetRow,
    EffectMarkRow,
    EventRow,
    EventRunRow,
    HolderRow,
    IdempotencyRow,
    JoinedRow,
    ModelCallRow,
    ModelHoldRow,
    RateRow,
    RunIoRow,
    RunRow,
    SignalRow,
    StepAttemptRow,
    StepRow,
    StreamChunkRow,
    TurnRow,
    WaitRow,
    table_of,
)
from agentflow.store.statements.core import event, event_run, idempotency, run, signal
from agentflow.store.statements.flow import bucket, holder, rate
from agentflow.store.statements.statement import Statement, big, text

_PARENT = table_of(RunRow).alias("parent")
_LIVE_PARENT = exists().where(_PARENT.c.id == run.parent_id, _PARENT.c.status < raw("4", Integer))

# From one (created_at, id) to the next along their index; what has not ended is passed over.
FIND_OLD_RUNS = Statement(
    lambda _: (
        select(run.created_at, run.id, run.status, run.ended_at, _LIVE_PARENT)
        .where(
            run.created_at < big("before"),
            or_(
                run.created_at > big("after_time"),
                and_(run.created_at == big("after_time"), run.id > text("after_id")),
            ),
        )
        .order_by(run.created_at, run.id)
        .limit(big("most"))
    )
)


def _of_runs(row: Any) -> Statement:
    table = table_of(row)
    return Statement(lambda d: delete(table).where(d.among(table.c.run_id, "ids")))


DELETE_OF_RUNS = tuple(
    _of_runs(row)
    for row in (
        StepRow,
        StepAttemptRow,
        EffectMarkRow,
        WaitRow,
        ApprovalRow,
        ModelCallRow,
        StreamChunkRow,
        EventRunRow,
        JoinedRow,
        TurnRow,
        RunIoRow,
    )
)
"""What belongs to a run; the run's own row goes last."""
DELETE_RUNS = Statement(
    lambda d: (
        delete(table_of(RunRow))
        .where(d.among(run.id, "ids"), run.status >= raw("4", Integer))
        .returning(run.id)
    )
)
DELETE_EVENTS = Statement(
    lambda _: (
        delete(table_of(EventRow))
        .where(
            event.id.in_(
                select(event.id)
                .where(
                    event.received_at < big("before"),
                    # While a run is kept, the event that started it is.
                    ~exists().where(event_run.event_id == event.id),
                )
                .order_by(event.received_at, event.id)
                .limit(big("most"))
                .scalar_subquery()
            )
        )
        .returning(event.id)
    )
)
_HOLDS = exists().where(run.id == holder.run_id, run.status < raw("4", Integer))
DELETE_LOOSE = tuple(
    Statement(build)
    for build in (
        lambda _: delete(table_of(SignalRow)).where(
            signal.sent_at < big("before"),
            or_(signal.state != raw("0", Integer), signal.until < big("before")),
        ),
        lambda _: delete(table_of(IdempotencyRow)).where(idempotency.until < big("before")),
        lambda _: delete(table_of(RateRow)).where(rate.at < big("before")),
        lambda _: delete(table_of(HolderRow)).where(holder.since < big("before"), ~_HOLDS),
        lambda _: delete(table_of(BucketRow)).where(bucket.tat < big("before"), bucket.run_id.is_(None)),
        lambda _: delete(table_of(ModelHoldRow)).where(table_of(ModelHoldRow).c.asked_at < big("before")),
        # Not those of all times.
        lambda _: delete(table_of(BudgetRow)).where(table_of(BudgetRow).c.ends_at < big("before")),
    )
)
"""Keys, signals, limits and budgets' periods that nobody asks for any more."""
