"""Every statement that an operation is made of.

Locks follow one order, so that two transactions seldom meet head-on: names (advisory), then run rows, then the rest.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Integer,
    Text,
    and_,
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
from sqlalchemy import text as raw_text

from agentflow.clock import NEVER
from agentflow.keys import CANCELLED
from agentflow.store.rows import (
    ApprovalRow,
    EventRow,
    EventRunRow,
    FunctionRow,
    IdempotencyRow,
    ModelCallRow,
    RunIoRow,
    RunRow,
    SignalRow,
    StepAttemptRow,
    StepRow,
    StreamChunkRow,
    WaitRow,
    WorkerRow,
    table_of,
)
from agentflow.store.statements.statement import Flavour, Statement, big, small, text
from agentflow.store.stored_types import CANCEL_KIND

run = table_of(RunRow).c
run_io = table_of(RunIoRow).c
step = table_of(StepRow).c
attempt = table_of(StepAttemptRow).c
wait = table_of(WaitRow).c
event = table_of(EventRow).c
event_run = table_of(EventRunRow).c
signal = table_of(SignalRow).c
approval = table_of(ApprovalRow).c
model_call = table_of(ModelCallRow).c
chunk = table_of(StreamChunkRow).c
worker = table_of(WorkerRow).c
function = table_of(FunctionRow).c
idempotency = table_of(IdempotencyRow).c

# Of a row that is found by its key. No index has it in these words: in a table that PostgreSQL still believes to be
# small, an index of all that runs, or of all that is pending, looks cheaper than the key, and would be read from end to
# end.
IS_QUEUED = run.status + raw("0", Integer) == raw("0", Integer)
IS_RUNNING = run.status + raw("0", Integer) == raw("1", Integer)
_IS_PENDING = approval.status + raw("''", Text) == raw("'pending'", Text)

_RUN, _RUN_IO, _STEP, _WAIT = (table_of(row) for row in (RunRow, RunIoRow, StepRow, WaitRow))

STEP_COLUMNS = (
    step.key,
    step.seq,
    step.kind,
    step.name,
    step.ok,
    step.output,
    step.error,
    step.attempt,
    step.started_at,
    step.ended_at,
)
WAIT_COLUMNS = (
    wait.key,
    wait.kind,
    wait.name,
    wait.topic,
    wait.correlation,
    wait.deadline,
    wait.since,
    wait.timeout_ok,
    wait.timeout_output,
    wait.timeout_error,
    wait.condition,
)
MODEL_CALL_COLUMNS = (
    model_call.key,
    model_call.attempt,
    model_call.provider,
    model_call.model,
    model_call.state,
    model_call.billed,
    model_call.started_at,
    model_call.digest,
    model_call.agent,
    model_call.provider_id,
    model_call.ended_at,
    model_call.input_tokens,
    model_call.cached_tokens,
    model_call.cache_write_tokens,
    model_call.output_tokens,
    model_call.reasoning_tokens,
    model_call.cost,
    model_call.price_version,
    model_call.error,
    model_call.charges,
    model_call.latency,
)
_RUN_STATE = (
    run.owner,
    run.epoch,
    run.status,
    run.mail,
    run.cancel_at,
    run.crash_count,
    run.parent_id,
    run.parent_key,
    run.gates.is_not(None),
)

# ------------------------------------------------------------------------------------------------ names and locks

LOCK_NAME = Statement(
    lambda _: select(func.pg_advisory_xact_lock(func.hashtextextended(text("name"), 0))), only_postgres=True
)
LOCK_NAMES = Statement(
    lambda _: raw_text(
        "SELECT pg_advisory_xact_lock(hashtextextended(name, 0)) "
        "FROM (SELECT unnest(CAST(:names AS text[])) AS name ORDER BY 1) AS ordered"
    ),
    only_postgres=True,
)
SHARE_NAME = Statement(
    lambda _: select(func.pg_advisory_xact_lock_shared(func.hashtextextended(text("name"), 0))),
    only_postgres=True,
)
LOCK_RUN = Statement(
    lambda _: select(run.id).where(run.id == text("id")).with_for_update(key_share=True), only_postgres=True
)
LOCK_RUNS = Statement(
    lambda d: (
        select(run.id)
        .where(or_(d.among(run.id, "ids"), run.id.in_(_parents_of(d, "ended"))))
        .order_by(run.id)
        .with_for_update(key_share=True)
    ),
    only_postgres=True,
)


def _parents_of(d: Flavour, name: str) -> Any:
    child = table_of(RunRow).alias("child")
    return select(child.c.parent_id).where(d.among(child.c.id, name))


# --------------------------------------------------------------------------------------------------------- runs

INSERT_RUN = Statement(
    lambda d: d.insert(_RUN).on_conflict_do_nothing(index_elements=[run.id]).returning(run.id)
)
INSERT_RUN_IO = Statement(lambda d: d.insert(_RUN_IO).on_conflict_do_nothing())
INSERT_EVENT_RUN = Statement(lambda d: d.insert(table_of(EventRunRow)).on_conflict_do_nothing())

READ_RUN = Statement(lambda _: select(*_RUN_STATE).where(run.id == text("id")))
READ_RUN_LOCKED = Statement(
    lambda _: select(*_RUN_STATE).where(run.id == text("id")).with_for_update(key_share=True)
)
READ_RESULT = Statement(
    lambda _: (
        select(run.status, run.function, run.reason, run_io.output, run_io.error, run_io.parent_error)
        .join_from(_RUN, _RUN_IO, run_io.run_id == run.id)
        .where(run.id == text("id"))
    )
)
SUSPEND_RUN = Statement(
    lambda _: (
        update(_RUN)
        .values(status=small("to"), ready_at=big("ready"), reason=text("why"), owner=null())
        .where(
            run.id == text("run"),
            run.epoch == big("at_epoch"),
            run.owner == text("by"),
            IS_RUNNING,
            run.mail == big("seen"),
            run.cancel_at.is_(None),
            ~exists().where(step.run_id == text("run"), step.seq.is_(None)),
        )
        .returning(run.mail)
    )
)
RELEASE_RUN = Statement(
    lambda _: (
        update(_RUN)
        .values(status=raw("0", Integer), ready_at=big("now"), owner=null())
        .where(
            run.id == text("run"),
            run.epoch == big("at_epoch"),
            run.owner == text("by"),
            IS_RUNNING,
        )
        .returning(run.id)
    )
)
END_RUN = Statement(
    lambda _: (
        update(_RUN)
        .values(
            status=small("to"),
            ready_at=NEVER,
            owner=null(),
            blocked_on=null(),
            # Who cancelled a running run has given the reason already.
            reason=case(
                (
                    and_(small("to") == raw("6", Integer), run.cancel_at.is_not(None)),
                    func.coalesce(text("why"), run.reason),
                ),
                else_=text("why"),
            ),
            ended_at=big("now"),
        )
        .where(run.id == text("run"), run.status < raw("4", Integer))
        .returning(run.id)
    )
)
SET_RESULT = Statement(
    lambda _: (
        update(_RUN_IO)
        .values(output=text("result"), error=text("failure"), parent_error=text("for_parent"))
        .where(run_io.run_id == text("run"))
    )
)
ASK_TO_CANCEL = Statement(
    lambda _: (
        update(_RUN)
        .values(
            cancel_at=func.coalesce(run.cancel_at, big("now")), reason=func.coalesce(text("why"), run.reason)
        )
        .where(run.id == text("run"))
    )
)


def _wake(**more: Any) -> Any:
    return (
        update(_RUN)
        .values(
            mail=run.mail + 1,
            status=case(
                (run.status.in_((raw("2", Integer), raw("3", Integer))), raw("0", Integer)), else_=run.status
            ),
            ready_at=case(
                (
                    and_(run.status.in_((raw("2", Integer), raw("3", Integer))), run.ready_at > big("now")),
                    big("now"),
                ),
                else_=run.ready_at,
            ),
            **more,
        )
        .where(run.id == text("run"), run.status < raw("4", Integer))
        .returning(run.status)
    )


WAKE_RUN = Statement(lambda _: _wake())
WAKE_RUN_WITH_STEP = Statement(lambda _: _wake(crash_count=raw("0", Integer)))
"""What was delivered is a new step of the run: its crashes lie behind it."""
READ_CHILDREN = Statement(
    lambda _: (
        select(run.id, run.status)
        .where(run.parent_id == text("id"), run.parent_key.is_not(None), run.status < raw("4", Integer))
        .order_by(run.id)
    )
)
RESET_CRASHES = Statement(
    lambda _: update(_RUN).values(crash_count=raw("0", Integer)).where(run.id == text("run"))
)
BEGIN_CODE = Statement(lambda _: update(_RUN).values(begun_epoch=big("number")).where(run.id == text("run")))

INSERT_KEY = Statement(
    lambda d: d.insert(table_of(IdempotencyRow)).on_conflict_do_nothing().returning(idempotency.key)
)
READ_KEY = Statement(
    lambda _: (
        select(idempotency.run_id, idempotency.digest, idempotency.until)
        .where(
            idempotency.app == text("app"),
            idempotency.function == text("function"),
            idempotency.key == text("key"),
        )
        .with_for_update()
    )
)
RENEW_KEY = Statement(
    lambda _: (
        update(table_of(IdempotencyRow))
        .values(run_id=text("new_run"), digest=text("new_digest"), until=big("new_until"))
        .where(
            idempotency.app == text("of_app"),
            idempotency.function == text("of_function"),
            idempotency.key == text("of_key"),
        )
    )
)

# -------------------------------------------------------------------------------------------------------- steps

INSERT_STEP = Statement(lambda d: d.insert(_STEP).on_conflict_do_nothing().returning(step.key))
READ_STEP = Statement(
    lambda _: select(*STEP_COLUMNS).where(step.run_id == text("run"), step.key == text("key"))
)
NUMBER_STEP = Statement(
    lambda _: (
        update(_STEP)
        .values(seq=big("number"))
        .where(step.run_id == text("run"), step.key == text("step"), step.seq.is_(None))
    )
)
READ_UNREAD = Statement(
    lambda _: (
        select(*STEP_COLUMNS)
        .where(
            step.run_id == text("run"),
            or_(step.seq.is_(None), and_(step.seq >= big("first"), step.seq < big("beyond"))),
        )
        .order_by(step.ended_at, step.key)
    )
)
READ_SEQ = Statement(
    lambda _: (
        # A step that waits, or is between two attempts, comes after all that have a seq.
        select(func.min(func.coalesce(step.seq, raw(str(NEVER), BigInteger))))
        .where(step.run_id == text("of_run"), step.key == text("of_key"))
        .union_all(
            select(raw(str(NEVER), BigInteger)).where(
                exists().where(wait.run_id == text("of_run"), wait.key == text("of_key"))
            ),
            select(raw(str(NEVER), BigInteger)).where(
                exists().where(attempt.run_id == text("of_run"), attempt.key == text("of_key"))
            ),
        )
    )
)
COPY_STEPS = Statement(
    lambda d: (
        d.insert(_STEP)
        .from_select(
            [column.key for column in step],
            select(text("to_run"), *(column for column in step if column.key != "run_id")).where(
                step.run_id == text("of_run"),
                step.seq < big("before"),
                step.kind != raw("'approval'"),
            ),
            include_defaults=False,
        )
        .on_conflict_do_nothing()
    )
)


def _copy_marks(d: Flavour) -> Any:
    of_before = step.run_id == text("of_run"), step.seq < big("before"), step.kind == raw("'approval'")
    asked_again = select(
        text("to_run"),
        raw(f"'{CANCELLED}'") + step.key,
        raw("1", Integer),
        raw("'{}'"),
        step.ended_at,
        step.started_at,
    ).where(*of_before)
    marked = select(
        text("to_run"), attempt.key, attempt.n, attempt.error, attempt.next_at, attempt.started_at
    ).where(attempt.run_id == text("of_run"), attempt.key.startswith(raw(f"'{CANCELLED}'")))
    columns = ["run_id", "key", "n", "error", "next_at", "started_at"]
    copied = d.insert(table_of(StepAttemptRow)).from_select(
        columns, asked_again.union_all(marked), include_defaults=False
    )
    return copied.on_conflict_do_nothing()


COPY_MARKS = Statement(_copy_marks)
"""Steps of which a copied history has no outcome, although it has those of later ones."""
INSERT_ATTEMPT = Statement(lambda d: d.insert(table_of(StepAttemptRow)).on_conflict_do_nothing())
INSERT_CHUNK = Statement(lambda d: d.insert(table_of(StreamChunkRow)).on_conflict_do_nothing())


def _upsert_model_call(d: Flavour) -> Any:
    made = d.insert(table_of(ModelCallRow))
    keys = ("run_id", "key", "attempt")
    return made.on_conflict_do_update(
        index_elements=keys, set_={c.key: c for c in made.excluded if c.key not in keys}
    )


UPSERT_MODEL_CALL = Statement(_upsert_model_call)
IS_SUBMITTED = model_call.state == raw("'submitted'", Text)
"""A literal: with a parameter SQLite would not use the partial index."""
END_ABANDONED_CALL = Statement(
    lambda _: (
        update(table_of(ModelCallRow))
        .values(state=text("becomes"), ended_at=big("now"), error=text("why"))
        .where(
            model_call.run_id == text("run"),
            model_call.key == text("step"),
            model_call.attempt == big("number"),
            IS_SUBMITTED,
        )
    )
)

# -------------------------------------------------------------------------------------------------------- waits

INSERT_WAIT = Statement(
    lambda d: (
        d.insert(_WAIT).on_conflict_do_nothing(index_elements=[wait.run_id, wait.key]).returning(wait.key)
    )
)
READ_WAIT = Statement(
    lambda _: select(*WAIT_COLUMNS).where(wait.run_id == text("run"), wait.key == text("key"))
)
TAKE_WAIT = Statement(
    lambda _: (
        delete(_WAIT).where(wait.run_id == text("run"), wait.key == text("step")).returning(*WAIT_COLUMNS)
    )
)
TAKE_DUE_WAITS = Statement(
    lambda _: (
        delete(_WAIT)
        .where(wait.run_id == text("run"), wait.deadline <= big("now"), wait.kind != raw(f"'{CANCEL_KIND}'"))
        .returning(*WAIT_COLUMNS)
    )
)
DELETE_WAITS = Statement(lambda _: delete(_WAIT).where(wait.run_id == text("run")).returning(wait.kind))
FIND_SIGNAL_WAIT = Statement(
    lambda _: select(wait.run_id, wait.key).where(wait.topic == text("name"), wait.kind == raw("'signal'"))
)
_EVENT_WAIT = (wait.run_id, wait.key, wait.kind, wait.correlation, wait.deadline, wait.condition)
_FOR_EVENTS = wait.kind.in_((raw("'event'"), raw(f"'{CANCEL_KIND}'")))
FIND_EVENT_WAITS = Statement(
    lambda d: (
        select(*_EVENT_WAIT)
        .where(
            wait.topic == text("name"),
            _FOR_EVENTS,
            or_(wait.correlation.is_(None), d.among(wait.correlation, "correlations")),
        )
        .order_by(wait.run_id, wait.key)
    )
)
FIND_ALL_EVENT_WAITS = Statement(
    lambda _: (
        select(*_EVENT_WAIT).where(wait.topic == text("name"), _FOR_EVENTS).order_by(wait.run_id, wait.key)
    )
)
READ_TRIGGER = Statement(lambda _: select(run_io.trigger, run_io.input).where(run_io.run_id == text("run")))

# ------------------------------------------------------------------------------------------- events and signals

RELEASE_DEDUP = Statement(
    lambda _: (
        update(table_of(EventRow))
        .values(dedup_key=null())
        .where(event.dedup_key == text("dedup"), event.received_at <= big("horizon"))
    )
)
INSERT_EVENT = Statement(lambda d: d.insert(table_of(EventRow)).on_conflict_do_nothing().returning(event.id))
FIND_DUPLICATE = Statement(lambda _: select(event.id).where(event.dedup_key == text("dedup")))
READ_EVENT_RUNS = Statement(
    lambda _: select(event_run.run_id).where(event_run.event_id == text("id")).order_by(event_run.run_id)
)
FIND_RECENT_EVENTS = Statement(
    lambda _: (
        select(event.id, event.name, event.data, event.ts, event.dedup_key)
        .where(
            event.name == text("name"),
            event.received_at >= big("since"),
            ~exists().where(event_run.event_id == event.id, event_run.run_id == text("run")),
        )
        .order_by(event.received_at, event.id)
    )
)
EXPIRE_BUFFERED = Statement(
    lambda _: (
        update(table_of(SignalRow))
        .values(state=raw("2", Integer))
        .where(signal.name == text("of_name"), signal.state == raw("0", Integer), signal.until <= big("now"))
    )
)
TAKE_BUFFERED = Statement(
    lambda _: (
        update(table_of(SignalRow))
        .values(state=raw("1", Integer), run_id=text("to_run"))
        .where(signal.name == text("of_name"), signal.state == raw("0", Integer))
        .returning(signal.data)
    )
)
READ_SIGNAL = Statement(
    lambda _: select(signal.state, signal.run_id, signal.until).where(signal.id == text("id"))
)
INSERT_SIGNAL = Statement(
    lambda d: d.insert(table_of(SignalRow)).on_conflict_do_nothing().returning(signal.id)
)

# ---------------------------------------------------------------------------------------------------- approvals

APPROVAL_COLUMNS = tuple(approval)
READ_STARTER = Statement(
    lambda _: (
        select(run_io.started_by)
        .join_from(_RUN, _RUN_IO, run_io.run_id == run.root_id)
        .where(run.id == text("id"))
    )
)
INSERT_APPROVAL = Statement(lambda d: d.insert(table_of(ApprovalRow)).on_conflict_do_nothing())
READ_APPROVAL_RUN = Statement(lambda _: select(approval.run_id).where(approval.id == text("id")))
READ_APPROVAL = Statement(
    lambda _: select(*APPROVAL_COLUMNS).where(approval.id == text("id")).with_for_update()
)
CLOSE_APPROVAL = Statement(
    lambda _: (
        update(table_of(ApprovalRow))
        .values(status=text("to"), decided_at=big("now"))
        .where(approval.id == text("approval"), _IS_PENDING)
    )
)
CLOSE_APPROVALS = Statement(
    lambda _: (
        update(table_of(ApprovalRow))
        .values(status=text("to"), decided_at=big("now"))
        .where(approval.run_id == text("run"), _IS_PENDING)
    )
)
SAVE_DECISION = Statement(
    lambda _: (
        update(table_of(ApprovalRow))
        .values(
            status=text("to"),
            decisions=text("all"),
            edited_args=text("edited"),
            args_digest=text("new_digest"),
            decided_at=big("at"),
        )
        .where(approval.id == text("approval"))
    )
)

# ---------------------------------------------------------------------------------------------------- functions


def _upsert_function(d: Flavour) -> Any:
    made = d.insert(table_of(FunctionRow))
    changed = ("version", "triggers", "config", "schemas", "registered_at")
    return made.on_conflict_do_update(
        index_elements=("app", "id"), set_={name: made.excluded[name] for name in changed}
    )


UPSERT_FUNCTION = Statement(_upsert_function)
READ_PAUSED = Statement(lambda _: select(function.app, function.id).where(function.paused_at.is_not(None)))
PAUSE_FUNCTION = Statement(
    lambda _: (
        update(table_of(FunctionRow))
        .values(paused_at=func.coalesce(function.paused_at, big("now")))
        .where(function.app == text("of_app"), function.id == text("of_id"))
    )
)
RESUME_FUNCTION = Statement(
    lambda _: (
        update(table_of(FunctionRow))
        .values(paused_at=null())
        .where(function.app == text("of_app"), function.id == text("of_id"))
    )
)
