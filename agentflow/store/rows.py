"""The tables, as SQLModel rows with a registry and MetaData of their own.

On SQLModel's shared registry a user's `class Event(SQLModel, table=True)` would clash with ours. Rows never leave
`agentflow.store`. Times are int64 microseconds, payloads are JSON text; the hot tables have no foreign keys.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

from sqlalchemy import BigInteger, Index, MetaData, SmallInteger, Table, Text, text
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

from agentflow.clock import NEVER
from agentflow.store.poison import POISONED, SUSPECT

CLAIMABLE = text("status IN (0, 2, 3)")
"""Queued, sleeping or waiting. Literal constants: with bind parameters SQLite would not use the partial index."""

SUSPECTED = text(f"(CASE WHEN crash_count >= {SUSPECT} AND crash_count < {POISONED} THEN 1 ELSE 0 END)")
"""1 for a run of which a worker executes one at a time, else 0."""

RUNNING = text("status = 1")
BUFFERED = text("state = 0")
OPEN_TURN = text("ended_at IS NULL")
SUBMITTED = text("state = 'submitted'")


class Base(SQLModel, registry=registry(metadata=MetaData())):
    """The root of our tables."""


def _key() -> Any:
    return Field(primary_key=True, sa_type=Text)


def _text(default: Any = ...) -> Any:
    return Field(default=default, sa_type=Text)


def _maybe_text() -> Any:
    return Field(default=None, sa_type=Text, nullable=True)


def _big(default: Any = ...) -> Any:
    return Field(default=default, sa_type=BigInteger)


def _maybe_big() -> Any:
    return Field(default=None, sa_type=BigInteger, nullable=True)


def _small(default: Any = ...) -> Any:
    return Field(default=default, sa_type=SmallInteger)


class FunctionRow(Base, table=True):
    """A function that some worker registered."""

    __tablename__ = "agentflow_function"

    app: str = _key()
    id: str = _key()
    version: str = _text()
    triggers: str = _text()
    config: str = _text()
    schemas: str = _text()
    paused_at: int | None = _maybe_big()
    registered_at: int = _big()


_CLUSTERED: dict[str, Any] = {"sqlite_with_rowid": False}
"""On SQLite the row lies in the primary key's tree: one page is written for it, not two."""


class RunRow(Base, table=True):
    """One run, narrow: payloads are in `RunIoRow`.

    A run that flow control holds back stands in the lane of its key (`blocked_on`), in the order of `order_at`.
    """

    __tablename__ = "agentflow_run"
    # Names a run's row changes often leave room on the page, so that an update stays on it (PostgreSQL HOT).
    __table_args__: ClassVar[Any] = (
        # Each function is a stream of its own, so that a claim passes over none that it may not take.
        Index(
            "agentflow_run_claim",
            "app",
            SUSPECTED,
            "function",
            "ready_at",
            "id",
            sqlite_where=CLAIMABLE,
            postgresql_where=CLAIMABLE,
        ),
        Index("agentflow_run_owner", "owner", sqlite_where=RUNNING, postgresql_where=RUNNING),
        Index("agentflow_run_created", "created_at", "id"),
        Index("agentflow_run_function", "function", "created_at", "id"),
        Index(
            "agentflow_run_parent",
            "parent_id",
            sqlite_where=text("parent_id IS NOT NULL"),
            postgresql_where=text("parent_id IS NOT NULL"),
        ),
        Index(
            "agentflow_run_blocked",
            "blocked_on",
            "order_at",
            "id",
            sqlite_where=text("blocked_on IS NOT NULL"),
            postgresql_where=text("blocked_on IS NOT NULL"),
        ),
        {"postgresql_with": {"fillfactor": 70}, **_CLUSTERED},
    )

    id: str = _key()
    app: str = _text()
    function: str = _text()
    status: int = _small()
    ready_at: int = _big()
    blocked_on: str | None = _maybe_text()
    order_at: int | None = _maybe_big()
    gates: str | None = _maybe_text()
    owner: str | None = _maybe_text()
    epoch: int = _big(0)
    mail: int = _big(0)
    crash_count: int = _small(0)
    begun_epoch: int | None = _maybe_big()
    depth: int = _small(0)
    version: str | None = _maybe_text()
    parent_id: str | None = _maybe_text()
    parent_key: str | None = _maybe_text()
    root_id: str = _text()
    rerun_of: str | None = _maybe_text()
    idempotency_key: str | None = _maybe_text()
    cancel_at: int | None = _maybe_big()
    deadline: int | None = _maybe_big()
    reason: str | None = _maybe_text()
    created_at: int = _big()
    started_at: int | None = _maybe_big()
    ended_at: int | None = _maybe_big()


class RunIoRow(Base, table=True):
    """What goes into a run and what comes out. `parent_error` is what the parent's step gets as its error."""

    __tablename__ = "agentflow_run_io"

    run_id: str = _key()
    input: str = _text()
    trigger: str | None = _maybe_text()
    tags: str | None = _maybe_text()
    started_by: str | None = _maybe_text()
    output: str | None = _maybe_text()
    error: str | None = _maybe_text()
    parent_error: str | None = _maybe_text()


class IdempotencyRow(Base, table=True):
    """A key under which a function was started."""

    __tablename__ = "agentflow_idempotency"
    __table_args__: ClassVar[Any] = _CLUSTERED

    app: str = _key()
    function: str = _key()
    key: str = _key()
    run_id: str = _text()
    digest: str = _text()
    until: int = _big()


class StepRow(Base, table=True):
    """A step's outcome: written once. `seq` is null until the run's owner has adopted a delivery."""

    __tablename__ = "agentflow_step"
    __table_args__: ClassVar[Any] = (
        Index(
            "agentflow_step_unread",
            "run_id",
            sqlite_where=text("seq IS NULL"),
            postgresql_where=text("seq IS NULL"),
        ),
        _CLUSTERED,
    )

    run_id: str = _key()
    key: str = _key()
    seq: int | None = _maybe_big()
    kind: str = _text()
    name: str | None = _maybe_text()
    ok: bool
    output: str | None = _maybe_text()
    error: str | None = _maybe_text()
    attempt: int = Field()
    started_at: int = _big()
    ended_at: int = _big()


class StepAttemptRow(Base, table=True):
    """A failed attempt of a step, or (key `@<seq>`) of the code after that seq."""

    __tablename__ = "agentflow_step_attempt"
    __table_args__: ClassVar[Any] = _CLUSTERED

    run_id: str = _key()
    key: str = _key()
    n: int = Field(primary_key=True)
    error: str = _text()
    next_at: int = _big()
    started_at: int = _big()


class EffectMarkRow(Base, table=True):
    """An effect that may happen once is about to happen, in that attempt of its step."""

    __tablename__ = "agentflow_effect_mark"
    __table_args__: ClassVar[Any] = _CLUSTERED

    run_id: str = _key()
    key: str = _key()
    epoch: int = _big()
    attempt: int = Field()
    marked_at: int = _big()


class WaitRow(Base, table=True):
    """The right to resolve a step: whoever deletes the row writes the outcome."""

    __tablename__ = "agentflow_wait"
    __table_args__: ClassVar[Any] = (
        Index("agentflow_wait_topic", "topic", "correlation"),
        Index(
            "agentflow_wait_signal",
            "topic",
            unique=True,
            sqlite_where=text("kind = 'signal'"),
            postgresql_where=text("kind = 'signal'"),
        ),
        _CLUSTERED,
    )

    run_id: str = _key()
    key: str = _key()
    kind: str = _text()
    name: str | None = _maybe_text()
    topic: str | None = _maybe_text()
    correlation: str | None = _maybe_text()
    deadline: int = _big(NEVER)
    since: int = _big()
    timeout_ok: bool
    timeout_output: str | None = _maybe_text()
    timeout_error: str | None = _maybe_text()
    condition: str | None = _maybe_text()


class EventRow(Base, table=True):
    """An event as it came. `dedup_key` is given up after 24 hours."""

    __tablename__ = "agentflow_event"
    __table_args__: ClassVar[Any] = (
        Index(
            "agentflow_event_dedup",
            "dedup_key",
            unique=True,
            sqlite_where=text("dedup_key IS NOT NULL"),
            postgresql_where=text("dedup_key IS NOT NULL"),
        ),
        Index("agentflow_event_received", "received_at", "id"),
        Index("agentflow_event_name", "name", "received_at", "id"),
    )

    id: str = _key()
    name: str = _text()
    data: str = _text()
    ts: int = _big()
    dedup_key: str | None = _maybe_text()
    source_run: str | None = _maybe_text()
    received_at: int = _big()


class EventRunRow(Base, table=True):
    """An event and a run that it started."""

    __tablename__ = "agentflow_event_run"
    __table_args__: ClassVar[Any] = (Index("agentflow_event_run_run", "run_id"), _CLUSTERED)

    event_id: str = _key()
    run_id: str = _key()


class SignalRow(Base, table=True):
    """A signal that was sent: 0 buffered, 1 delivered to `run_id`, 2 expired. `until` is null if never buffered."""

    __tablename__ = "agentflow_signal"
    __table_args__: ClassVar[Any] = (
        Index(
            "agentflow_signal_buffered", "name", unique=True, sqlite_where=BUFFERED, postgresql_where=BUFFERED
        ),
    )

    id: str = _key()
    name: str = _text()
    data: str = _text()
    state: int = _small()
    run_id: str | None = _maybe_text()
    until: int | None = _maybe_big()
    sent_at: int = _big()


class ApprovalRow(Base, table=True):
    """A question to a person. Several decisions are kept as JSON, in their order."""

    __tablename__ = "agentflow_approval"
    __table_args__: ClassVar[Any] = (
        Index("agentflow_approval_run", "run_id"),
        Index("agentflow_approval_status", "status", "requested_at", "id"),
    )

    id: str = _key()
    run_id: str = _text()
    step_key: str = _text()
    tool: str | None = _maybe_text()
    title: str = _text()
    details: str | None = _maybe_text()
    args: str | None = _maybe_text()
    args_digest: str = _text()
    edited_args: str | None = _maybe_text()
    status: str = _text()
    approvers: str = _text()
    min_approvals: int = Field()
    editable: str | None = _maybe_text()
    policy: str = _text()
    decisions: str = _text("[]")
    requested_at: int = _big()
    expires_at: int = _big()
    decided_at: int | None = _maybe_big()


class ModelCallRow(Base, table=True):
    """The ledger: one request to a model provider."""

    __tablename__ = "agentflow_model_call"
    __table_args__: ClassVar[Any] = (
        Index("agentflow_model_call_started", "started_at"),
        Index("agentflow_model_call_submitted", "run_id", sqlite_where=SUBMITTED, postgresql_where=SUBMITTED),
        _CLUSTERED,
    )

    run_id: str = _key()
    key: str = _key()
    attempt: int = Field(primary_key=True)
    provider: str = _text()
    model: str = _text()
    state: str = _text()
    billed: str = _text()
    started_at: int = _big()
    digest: str = _text()
    agent: str | None = _maybe_text()
    provider_id: str | None = _maybe_text()
    ended_at: int | None = _maybe_big()
    input_tokens: int | None = _maybe_big()
    cached_tokens: int | None = _maybe_big()
    cache_write_tokens: int | None = _maybe_big()
    output_tokens: int | None = _maybe_big()
    reasoning_tokens: int | None = _maybe_big()
    cost: str | None = _maybe_text()
    price_version: str | None = _maybe_text()
    error: str | None = _maybe_text()
    charges: str | None = _maybe_text()
    """What it counts for in which budgets, as JSON."""
    latency: str | None = _maybe_text()


class StreamChunkRow(Base, table=True):
    """A piece of a run's live stream."""

    __tablename__ = "agentflow_stream_chunk"
    __table_args__: ClassVar[Any] = _CLUSTERED

    run_id: str = _key()
    seq: int = Field(primary_key=True, sa_type=BigInteger)
    kind: str = _text()
    step_key: str | None = _maybe_text()
    attempt: int = Field()
    data: str = _text()


class WorkerRow(Base, table=True):
    """A worker and its lease: by the database's clock on PostgreSQL, by the monotonic clock on SQLite."""

    __tablename__ = "agentflow_worker"
    __table_args__: ClassVar[Any] = _CLUSTERED

    id: str = _key()
    epoch: int = _big()
    lease_until: int = _big()
    host: str = _text()
    pid: int = _big()
    version: str = _text()
    started_at: int = _big()
    reaped_at: int | None = _maybe_big()


class SlotRow(Base, table=True):
    """A run that executes under a concurrency key."""

    __tablename__ = "agentflow_slot"
    __table_args__: ClassVar[Any] = (Index("agentflow_slot_run", "run_id"), _CLUSTERED)

    key: str = _key()
    run_id: str = _key()


class BucketRow(Base, table=True):
    """A throttle's theoretical arrival time (GCRA), how far it is behind, and the last run that was given its time."""

    __tablename__ = "agentflow_bucket"

    key: str = _key()
    tat: int = _big()
    behind: int = _big(0)
    run_id: str | None = _maybe_text()


class RateRow(Base, table=True):
    """When the latest runs under a rate limit began: `[[time, runs], ...]`."""

    __tablename__ = "agentflow_rate"

    key: str = _key()
    log: str = _text()
    at: int = _big()


class HolderRow(Base, table=True):
    """The run that a key belongs to: it collects further starts (debounce, batch), or keeps others out (singleton)."""

    __tablename__ = "agentflow_holder"

    key: str = _key()
    run_id: str = _text()
    since: int = _big()
    size: int = Field()
    epoch: int = _big()


class JoinedRow(Base, table=True):
    """A start that made no run of its own, but joined one that was to begin already."""

    __tablename__ = "agentflow_joined"
    __table_args__: ClassVar[Any] = (Index("agentflow_joined_run", "run_id", "n"),)

    id: str = _key()
    run_id: str = _text()
    n: int = Field()
    event: str | None = _maybe_text()


class ModelLimitRow(Base, table=True):
    """What is used of a model provider's limits, and until when it asked everybody to wait."""

    __tablename__ = "agentflow_model_limit"

    provider: str = _key()
    requests_tat: int = _big()
    tokens_tat: int = _big()
    line_at: int = _big()
    paused_until: int = _big()


class ModelHoldRow(Base, table=True):
    """What a model call under way has taken of the limits, or when one that waits is to ask again."""

    __tablename__ = "agentflow_model_hold"
    __table_args__: ClassVar[Any] = (Index("agentflow_model_hold_asked", "provider", "asked_at"),)

    id: str = _key()
    provider: str = _text()
    tokens: int = _big()
    cost: int = _big()
    asked_at: int = _big()
    not_before: int | None = _maybe_big()
    """`None`: it has begun."""


class ScheduleRow(Base, table=True):
    """A cron trigger and its next tick."""

    __tablename__ = "agentflow_schedule"
    __table_args__: ClassVar[Any] = (Index("agentflow_schedule_next", "next_at"),)

    id: str = _key()
    app: str = _text()
    function: str = _text()
    expr: str = _text()
    tz: str | None = _maybe_text()
    next_at: int = _big()
    last_nominal: int | None = _maybe_big()


class BudgetRow(Base, table=True):
    """What is spent of a budget in one of its periods, and what is reserved by calls under way.

    Money is in billionths of a US dollar. The limits are those of the last call.
    """

    __tablename__ = "agentflow_budget"
    __table_args__: ClassVar[Any] = (Index("agentflow_budget_ends", "ends_at"),)

    key: str = _key()
    period_start: int = Field(primary_key=True, sa_type=BigInteger)
    ends_at: int | None = _maybe_big()
    """`None`: never."""
    name: str = _text()
    value: str | None = _maybe_text()
    """Of the budget's key."""
    cost_limit: int | None = _maybe_big()
    token_limit: int | None = _maybe_big()
    spent_cost: int = _big()
    spent_tokens: int = _big()
    reserved_cost: int = _big()
    reserved_tokens: int = _big()


class ThreadRow(Base, table=True):
    """A conversation that spans runs. `summary` stands for its messages below `summary_upto`."""

    __tablename__ = "agentflow_thread"

    app: str = _key()
    id: str = _key()
    next_n: int = _big(0)
    next_turn: int = _big(0)
    summary: str | None = _maybe_text()
    summary_upto: int = _big(0)
    created_at: int = _big()
    updated_at: int = _big()


class TurnRow(Base, table=True):
    """A turn on a thread: the one with the lowest `n` that has not ended, of a run that has not, has the thread.

    `key` is that of the step that began it; the keys of its other steps begin with `scope`.
    """

    __tablename__ = "agentflow_turn"
    __table_args__: ClassVar[Any] = (
        Index("agentflow_turn_thread", "app", "thread_id"),
        Index(
            "agentflow_turn_open", "app", "thread_id", "n", sqlite_where=OPEN_TURN, postgresql_where=OPEN_TURN
        ),
        _CLUSTERED,
    )

    run_id: str = _key()
    key: str = _key()
    scope: str = _text()
    app: str = _text()
    thread_id: str = _text()
    n: int = _big()
    asked_at: int = _big()
    ended_at: int | None = _maybe_big()


class MessageRow(Base, table=True):
    """A message of a thread."""

    __tablename__ = "agentflow_message"
    __table_args__: ClassVar[Any] = _CLUSTERED

    app: str = _key()
    thread_id: str = _key()
    n: int = Field(primary_key=True, sa_type=BigInteger)
    turn: int = _big()
    run_id: str = _text()
    role: str = _text()
    data: str = _text()
    created_at: int = _big()


class ApiKeyRow(Base, table=True):
    """A key to the HTTP API, stored hashed."""

    __tablename__ = "agentflow_api_key"
    __table_args__: ClassVar[Any] = (Index("agentflow_api_key_hash", "hash", unique=True),)

    id: str = _key()
    hash: str = _text()
    name: str = _text()
    scopes: str = _text()
    tenant: str | None = _maybe_text()
    created_at: int = _big()
    last_used_at: int | None = _maybe_big()
    revoked_at: int | None = _maybe_big()


class AuditRow(Base, table=True):
    """Who did what, append-only, chained by hash."""

    __tablename__ = "agentflow_audit"

    n: int = Field(primary_key=True, sa_type=BigInteger)
    at: int = _big()
    who: str = _text()
    what: str = _text()
    subject: str = _text()
    digest: str | None = _maybe_text()
    before: str | None = _maybe_text()
    after: str | None = _maybe_text()
    chain: str = _text()


def table_of(row: type[Base]) -> Table:
    """The table of a row class."""
    return cast(Table, row.__table__)  # type: ignore[attr-defined]
