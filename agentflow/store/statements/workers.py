"""The statements of claims and of the care for workers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Integer,
    case,
    delete,
    exists,
    func,
    null,
    or_,
    select,
    update,
)
from sqlalchemy import literal_column as raw

from agentflow.store.rows import RunRow, WaitRow, WorkerRow, table_of
from agentflow.store.statements.core import (
    IS_QUEUED,
    IS_RUNNING,
    MODEL_CALL_COLUMNS,
    STEP_COLUMNS,
    WAIT_COLUMNS,
    attempt,
    chunk,
    function,
    model_call,
    run,
    run_io,
    step,
    wait,
    worker,
)
from agentflow.store.statements.ready import next_ready, ready
from agentflow.store.statements.statement import Bundle, Flavour, Statement, big, small, text
from agentflow.store.stored_types import CANCEL_KIND

_RUN, _WAIT = table_of(RunRow), table_of(WaitRow)
_OF_STEPS = wait.kind != raw(f"'{CANCEL_KIND}'")


def _claim(d: Flavour) -> Any:
    taken = select(ready(d).c.id)
    return (
        update(_RUN)
        .values(
            status=raw("1", Integer),
            owner=text("by"),
            epoch=run.epoch + 1,
            # A run that has gates to pass begins when it has passed them.
            started_at=case(
                (d.among(run.function, "gated"), run.started_at),
                else_=func.coalesce(run.started_at, big("now")),
            ),
            # Why it stood still is over; why it is to be cancelled is not.
            reason=case((run.cancel_at.is_not(None), run.reason)),
        )
        # On PostgreSQL an array, or a plan made for few runs would join these with all there are.
        .where(
            run.id == func.any(func.array(taken.scalar_subquery())) if d.is_postgres else run.id.in_(taken)
        )
        .returning(
            run.id,
            run.epoch,
            run.app,
            run.function,
            run.created_at,
            run.started_at,
            run.parent_id,
            run.parent_key,
            run.root_id,
            run.depth,
            run.mail,
            run.crash_count,
            run.cancel_at,
            run.reason,
            run.ready_at,
            run.gates,
            run.blocked_on,
            run.deadline,
        )
    )


CLAIM_RUNS = Statement(_claim)
RECLAIM_RUN = Statement(
    lambda _: (
        update(_RUN)
        .values(status=raw("1", Integer), owner=text("by"), epoch=run.epoch + 1, reason=null())
        .where(
            run.id == text("run"),
            run.epoch == big("at_epoch"),
            IS_QUEUED,
            run.ready_at <= big("now"),
            run.cancel_at.is_(None),
            run.crash_count == raw("0", Integer),
            run.blocked_on.is_(None),
            ~exists().where(
                function.app == run.app, function.id == run.function, function.paused_at.is_not(None)
            ),
        )
        .returning(run.epoch, run.mail)
    )
)
READ_INPUTS = Statement(
    lambda d: select(run_io.run_id, run_io.input, run_io.trigger, run_io.tags).where(
        d.among(run_io.run_id, "ids")
    )
)
TAKE_DUE_WAITS_OF = Statement(
    lambda d: (
        delete(_WAIT)
        .where(d.among(wait.run_id, "ids"), wait.deadline <= big("now"), _OF_STEPS)
        .returning(wait.run_id, *WAIT_COLUMNS)
    )
)
READ_WAITS_OF = Statement(
    lambda d: (
        select(wait.run_id, *WAIT_COLUMNS)
        .where(d.among(wait.run_id, "ids"), _OF_STEPS)
        .order_by(wait.run_id, wait.key)
    )
)
READ_STEPS_OF = Statement(lambda d: select(step.run_id, *STEP_COLUMNS).where(d.among(step.run_id, "ids")))
READ_ATTEMPTS_OF = Statement(
    lambda d: (
        select(attempt.run_id, attempt.key, attempt.n, attempt.error, attempt.next_at, attempt.started_at)
        .where(
            d.among(attempt.run_id, "ids"),
            ~exists().where(step.run_id == attempt.run_id, step.key == attempt.key),
        )
        .order_by(attempt.run_id, attempt.key, attempt.n)
    )
)
READ_OPEN_CALLS_OF = Statement(
    lambda d: (
        select(model_call.run_id, *MODEL_CALL_COLUMNS)
        .where(d.among(model_call.run_id, "ids"), model_call.ended_at.is_(None))
        .order_by(model_call.run_id, model_call.started_at, model_call.key, model_call.attempt)
    )
)
READ_LAST_CHUNKS_OF = Statement(
    lambda d: (
        select(chunk.run_id, func.max(chunk.seq)).where(d.among(chunk.run_id, "ids")).group_by(chunk.run_id)
    )
)
FEW_STEPS = 64
_READ_FEW_STEPS_OF = Statement(
    lambda d: (
        select(step.run_id, *STEP_COLUMNS)
        .where(d.among(step.run_id, "ids"))
        .limit(raw(str(FEW_STEPS + 1), Integer))
    )
)
READ_JOURNALS_OF = Bundle(
    READ_INPUTS, READ_WAITS_OF, READ_ATTEMPTS_OF, READ_OPEN_CALLS_OF, READ_LAST_CHUNKS_OF, _READ_FEW_STEPS_OF
)
"""All that a run needs to go on; the steps only if they are few: many are quicker read as rows."""
NEXT_READY = Statement(next_ready)
LIST_MAIL = Statement(
    lambda _: (
        select(run.id, run.mail, run.cancel_at)
        .where(
            run.owner == text("by"),
            run.status == raw("1", Integer),
            or_(run.mail > raw("0", Integer), run.cancel_at.is_not(None)),
        )
        .order_by(run.id)
    )
)
INSERT_WORKER = Statement(
    lambda d: d.insert(table_of(WorkerRow)).on_conflict_do_nothing().returning(worker.id)
)
READ_REGISTERED = Statement(
    lambda _: select(worker.epoch).where(
        worker.id == text("id"),
        worker.host == text("host"),
        worker.pid == big("pid"),
        worker.started_at == big("started_at"),
        worker.reaped_at.is_(None),
    )
)
READ_LEASES = Statement(
    lambda d: (
        select(worker.id, worker.epoch, worker.lease_until)
        .where(d.among(worker.id, "ids"), worker.reaped_at.is_(None))
        .order_by(worker.id)
        .with_for_update(read=True, key_share=True)
    )
)
RENEW_LEASE = Statement(
    lambda _: (
        update(table_of(WorkerRow))
        .values(lease_until=big("until"))
        .where(
            worker.id == text("worker"),
            worker.epoch == big("at_epoch"),
            worker.reaped_at.is_(None),
            worker.lease_until > big("instant"),
        )
        .returning(worker.id)
    )
)
READ_WORKERS = Statement(lambda _: select(worker.id, worker.lease_until).where(worker.reaped_at.is_(None)))
REAP_WORKER = Statement(
    lambda _: (
        update(table_of(WorkerRow))
        .values(epoch=worker.epoch + 1, reaped_at=big("now"))
        .where(worker.id == text("worker"), worker.reaped_at.is_(None))
    )
)
FIND_OWNERLESS = Statement(
    lambda _: (
        select(run.id, run.owner, run.epoch, run.crash_count, run.begun_epoch)
        .where(
            run.status == raw("1", Integer),
            ~exists().where(worker.id == run.owner, worker.reaped_at.is_(None)),
        )
        .order_by(run.id)
    )
)
FIND_OWNED = Statement(
    lambda _: (
        select(run.id, run.owner, run.epoch)
        .where(run.owner == text("by"), run.status == raw("1", Integer))
        .order_by(run.id)
    )
)
# The owner and epoch are compared again under the row's lock: meanwhile somebody else may have claimed the run.
TAKE_FROM_OWNER = Statement(
    lambda _: (
        update(_RUN)
        .values(
            status=raw("0", Integer),
            ready_at=big("now"),
            owner=null(),
            crash_count=run.crash_count + small("crashes"),
        )
        .where(
            run.id == text("run"),
            run.owner == text("by"),
            run.epoch == big("at_epoch"),
            IS_RUNNING,
        )
        .returning(run.id)
    )
)
FORGET_WORKERS = Statement(lambda _: delete(table_of(WorkerRow)).where(worker.reaped_at < big("before")))
