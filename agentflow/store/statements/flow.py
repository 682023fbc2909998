"""The statements of flow control: what is admitted, what stands before a gate, and what is let through."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Integer, case, delete, exists, func, null, select, update
from sqlalchemy import literal_column as raw
from sqlalchemy import text as raw_text

from agentflow.clock import NEVER
from agentflow.store.rows import BucketRow, HolderRow, JoinedRow, RateRow, RunIoRow, RunRow, SlotRow, table_of
from agentflow.store.statements.core import IS_QUEUED, IS_RUNNING, function, run, run_io
from agentflow.store.statements.statement import Flavour, Statement, big, text

_RUN = table_of(RunRow)
_LANE = _RUN.alias("lane")
_COLLECTOR = _RUN.alias("collector")
slot = table_of(SlotRow).c
bucket = table_of(BucketRow).c
rate = table_of(RateRow).c
holder = table_of(HolderRow).c
joined = table_of(JoinedRow).c


# --------------------------------------------------------------------------------------------- when it is stored

READ_RATE = Statement(lambda _: select(rate.log).where(rate.key == text("key")))


def _upsert(d: Flavour, table: Any, *changed: str) -> Any:
    made = d.insert(table)
    return made.on_conflict_do_update(
        index_elements=["key"], set_={name: made.excluded[name] for name in changed}
    )


WRITE_RATE = Statement(lambda d: _upsert(d, table_of(RateRow), "log", "at"))
READ_HOLDER = Statement(
    lambda _: select(holder.run_id, holder.since, holder.size, holder.epoch).where(holder.key == text("key"))
)
WRITE_HOLDER = Statement(lambda d: _upsert(d, table_of(HolderRow), "run_id", "since", "size", "epoch"))
DROP_HOLDER = Statement(lambda _: delete(table_of(HolderRow)).where(holder.key == text("key")))
READ_JOINED = Statement(lambda _: select(joined.run_id).where(joined.id == text("id")))
INSERT_JOINED = Statement(lambda d: d.insert(table_of(JoinedRow)).on_conflict_do_nothing())


def _put_off(_: Flavour) -> Any:
    # A run that was claimed to begin collects no more, even if a gate sent it back; nor does one that is claimed now.
    collecting = (
        select(_COLLECTOR.c.id)
        .where(
            _COLLECTOR.c.id == text("run"),
            _COLLECTOR.c.status == raw("0", Integer),
            _COLLECTOR.c.epoch == big("at_epoch"),
        )
        .with_for_update(skip_locked=True, of=_COLLECTOR)
        .cte("collecting")
    )
    return (
        update(_RUN)
        .values(
            ready_at=big("ready"),
            deadline=big("start_by"),
            gates=func.coalesce(text("new_gates"), run.gates),
        )
        .where(run.id == collecting.c.id)
        .returning(run.id)
    )


PUT_OFF = Statement(_put_off)
REPLACE_INPUT = Statement(
    lambda _: (
        update(table_of(RunIoRow))
        .values(input=text("new_input"), trigger=text("new_trigger"), tags=text("new_tags"))
        .where(run_io.run_id == text("run"))
    )
)
READ_ORIGIN = Statement(
    lambda _: (
        select(run.app, run.function, run_io.input, run_io.trigger, run_io.tags, run.deadline)
        .join_from(_RUN, table_of(RunIoRow), run_io.run_id == run.id)
        .where(run.id == text("id"))
    )
)
PLAN_RUN = Statement(
    lambda _: (
        update(_RUN)
        .values(
            status=raw("0", Integer),
            owner=null(),
            gates=text("new_gates"),
            ready_at=big("ready_at"),
            blocked_on=text("blocked_on"),
            order_at=big("order_at"),
            reason=text("reason"),
            deadline=big("start_by"),
        )
        .where(run.id == text("run"))
    )
)
READ_BATCH_OF = Statement(
    lambda d: (
        select(joined.run_id, joined.event)
        .where(d.among(joined.run_id, "ids"), joined.event.is_not(None))
        .order_by(joined.run_id, joined.n)
    )
)
COPY_BATCH = Statement(
    lambda d: (
        d.insert(table_of(JoinedRow))
        .from_select(
            ["id", "run_id", "n", "event"],
            select(
                (text("to_run") + raw("'|'") + joined.id).label("id"), text("to_run"), joined.n, joined.event
            ).where(joined.run_id == text("of_run"), joined.event.is_not(None)),
            include_defaults=False,
        )
        .on_conflict_do_nothing()
    )
)

# ----------------------------------------------------------------------------------------------- when it is claimed

COUNT_SLOTS = Statement(
    lambda d: select(slot.key, func.count()).where(d.among(slot.key, "keys")).group_by(slot.key)
)
INSERT_SLOT = Statement(lambda d: d.insert(table_of(SlotRow)).on_conflict_do_nothing())
BEGIN_RUNS = Statement(
    lambda d: (
        update(_RUN)
        .values(started_at=func.coalesce(run.started_at, big("now")), blocked_on=null(), order_at=null())
        .where(d.among(run.id, "ids"))
    )
)
BLOCK_RUNS = Statement(
    lambda d: (
        update(_RUN)
        .values(
            status=raw("0", Integer),
            owner=null(),
            blocked_on=text("lane"),
            order_at=func.coalesce(run.order_at, run.ready_at),
            ready_at=func.coalesce(run.deadline, raw(str(NEVER), BigInteger)),
            reason=text("why"),
        )
        .where(d.among(run.id, "ids"), run.owner == text("by"), IS_RUNNING)
    )
)
READ_BUCKET = Statement(
    lambda _: select(bucket.tat, bucket.behind, bucket.run_id).where(bucket.key == text("key"))
)
WRITE_BUCKET = Statement(lambda d: _upsert(d, table_of(BucketRow), "tat", "behind", "run_id"))
IS_SCHEDULED = Statement(
    lambda _: select(run.id).where(
        run.id == text("id"), IS_QUEUED, run.blocked_on.is_(None), run.started_at.is_(None)
    )
)


def _heads(d: Flavour, *conditions: Any) -> Any:
    """The first runs of a lane that are not paused; one whose row somebody holds (to cancel it) is passed over."""
    is_paused = exists().where(
        function.app == _LANE.c.app, function.id == _LANE.c.function, function.paused_at.is_not(None)
    )
    return (
        select(_LANE.c.id)
        .where(_LANE.c.blocked_on == text("lane"), ~is_paused, *conditions)
        .order_by(_LANE.c.order_at, _LANE.c.id)
        .limit(big("most"))
        .with_for_update(skip_locked=True, of=_LANE)
    )


def _let_through(d: Flavour, *conditions: Any) -> Any:
    heads = _heads(d, *conditions).cte("heads")
    return (
        update(_RUN)
        .values(
            blocked_on=null(),
            reason=null(),
            # One that goes behind others has its place in the future; here it is the first.
            ready_at=case((run.order_at < big("now"), run.order_at), else_=big("now")),
        )
        .where(run.id == heads.c.id)
        .returning(run.id)
    )


def _let_laggards_through(d: Flavour) -> Any:
    heads = _heads(d).cte("heads")
    return (
        update(_RUN)
        .values(blocked_on=null(), reason=null(), ready_at=big("now"))
        .where(run.id == heads.c.id)
        .returning(run.id)
    )


LET_THROUGH = Statement(lambda d: _let_through(d))
LET_MINE_THROUGH = Statement(
    lambda d: _let_through(d, _LANE.c.app == text("app"), d.among(_LANE.c.function, "functions"))
)
LET_LAGGARDS_THROUGH = Statement(_let_laggards_through)
LANE_HEADS = Statement(_heads)
IS_LANE = Statement(lambda _: select(run.id).where(run.blocked_on == text("lane")).limit(raw("1", Integer)))
SCHEDULE_RUN = Statement(
    lambda _: (
        update(_RUN)
        .values(blocked_on=null(), ready_at=big("at"))
        .where(run.id == text("run"), run.blocked_on == text("lane"))
        .returning(run.id)
    )
)

# -------------------------------------------------------------------------------------------------- when it lets go

FREE_SLOTS = Statement(
    lambda d: delete(table_of(SlotRow)).where(d.among(slot.run_id, "ids")).returning(slot.key)
)
FREE_STALE_SLOTS = Statement(
    lambda _: (
        delete(table_of(SlotRow))
        .where(~exists().where(run.id == slot.run_id, IS_RUNNING))
        .returning(slot.key)
    )
)
READ_GATES = Statement(
    lambda _: select(run.gates, run.blocked_on, run.started_at).where(run.id == text("id"))
)
READ_HEAD = Statement(
    lambda d: (
        select(run.function, run.gates)
        .where(run.blocked_on == text("lane"), run.app == text("app"), d.among(run.function, "functions"))
        .order_by(run.order_at, run.id)
        .limit(raw("1", Integer))
    )
)
# One step of the index for each key, however many runs stand in its lane.
LIST_LANES = Statement(
    lambda _: raw_text("""
    WITH RECURSIVE lane(key) AS (
        SELECT (SELECT min(blocked_on) FROM agentflow_run WHERE blocked_on > CAST(:after AS text))
        UNION ALL
        SELECT (SELECT min(r.blocked_on) FROM agentflow_run r WHERE r.blocked_on > lane.key)
        FROM lane WHERE lane.key IS NOT NULL
    )
    SELECT key FROM lane WHERE key IS NOT NULL LIMIT 500
    """)
)
