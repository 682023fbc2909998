"""What the engine and the client ask of a database.

Writes are **operations** (`operation_types`): values that `Store.submit` puts into the writer's queue. The writer
commits many of them in one transaction (group commit) and answers each with an **outcome** (`outcome_types`). An
operation that fails on its own (a poison row) fails alone. After an ambiguous commit a batch is played again, so every
operation is idempotent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from agentflow.approvals import ApprovalRequest
from agentflow.events import EventRecord
from agentflow.runs import Look, Page, Run, RunStatus, StepRecord, StreamItem
from agentflow.store.claim_types import ClaimedRun, FunctionInfo, Origin, Reclaimed
from agentflow.store.hints import HintListener
from agentflow.store.operation_types import Operation
from agentflow.store.stored_types import (
    AuditEntry,
    BudgetState,
    GateLimits,
    Micros,
    ModelCall,
    RunKey,
    StoredMessage,
)


class Heartbeat(Protocol):
    """A worker's own connection, used from its own thread."""

    def renew(self, worker_id: str, epoch: int, lease_seconds: float) -> bool:
        """Renew the lease; `False` when the worker was reaped or its lease is over: it must stop."""
        ...

    def close(self) -> None: ...


class Queries(Protocol):
    """Reads for people and pages; never on a step's way."""

    async def get_run(self, run_id: str, *, payloads: bool = True) -> Run | None: ...

    async def get_status(self, run_id: str) -> RunStatus | None: ...

    async def get_origin(self, run_id: str) -> Origin | None: ...

    async def list_ended(self, run_ids: Collection[str]) -> list[str]:
        """Those of the runs that have ended; of one that is not there any more this is so too."""
        ...

    async def list_runs(
        self,
        *,
        status: Collection[RunStatus] | None = None,
        app: str | None = None,
        function: str | None = None,
        parent: str | None = None,
        since: Micros | None = None,
        q: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Run]:
        """Newest first, without payloads. `q` is a prefix of the id. A bad cursor is `InvalidInput`."""
        ...

    async def list_steps(
        self, run_id: str, *, limit: int = 100, cursor: str | None = None
    ) -> Page[StepRecord]:
        """By seq; steps that wait come last, without one. `StepRecord.id` is the key's own id, unescaped."""
        ...

    async def get_step(self, run_id: str, key: str) -> StepRecord | None: ...

    async def look(self, run_id: str, *, after: int = 0, most: int = 500) -> Look | None:
        """One look at a run by somebody who follows it and has had what is there up to `after`."""
        ...

    async def list_stream(self, run_id: str, *, after: int = 0, limit: int = 500) -> list[StreamItem]:
        """Steps' outcomes (`step.completed`, `step.failed`) and stream chunks merged by seq, those over `after`."""
        ...

    async def list_approvals(
        self,
        *,
        now: Micros = 0,
        status: str | None = None,
        run: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[ApprovalRequest]:
        """Oldest first, each with those who may decide at `now`."""
        ...

    async def get_approval(self, approval_id: str, *, now: Micros = 0) -> ApprovalRequest | None: ...

    async def list_audit(
        self, *, subject: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[AuditEntry]:
        """Oldest first."""
        ...

    async def list_events(
        self, *, name: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[EventRecord]: ...

    async def get_event(self, event_id: str) -> EventRecord | None: ...

    async def list_event_runs(
        self, event_id: str, *, limit: int = 50, cursor: str | None = None
    ) -> Page[Run]: ...

    async def list_functions(self, *, app: str | None = None) -> list[FunctionInfo]: ...

    async def list_model_calls(
        self,
        *,
        run: str | None = None,
        tag: str | None = None,
        agent: str | None = None,
        since: Micros | None = None,
        thread: tuple[str, str] | None = None,
    ) -> list[tuple[str, ModelCall]]:
        """(run id, call) of the run and its descendants, or of the turns of a thread (app, id), oldest first."""
        ...

    async def list_budgets(self, *, now: Micros, name: str | None = None) -> list[BudgetState]:
        """Those of which something was used in their present period, by name."""
        ...

    async def list_messages(
        self, app: str, thread: str, *, limit: int = 100, cursor: str | None = None
    ) -> Page[StoredMessage] | None:
        """A thread's messages, the oldest first; `None`: there is no such thread."""
        ...

    async def list_abandoned_calls(self, *, app: str, limit: int = 50) -> list[tuple[str, ModelCall]]:
        """(run id, call) of the jobs at providers whose runs have ended without them."""
        ...


NO_GATES: Mapping[str, GateLimits] = MappingProxyType({})


class Store(Protocol):
    """A database, opened by one event loop."""

    queries: Queries

    async def open(self, *, migrate: bool | None = None) -> None:
        """Connect. `migrate=None`: automatically on SQLite; elsewhere a database whose tables are missing, older or
        newer is a `ConfigurationError` that names `agentflow db upgrade`."""
        ...

    async def close(self) -> None:
        """Commit what is queued, then disconnect."""
        ...

    async def migrate(self) -> None: ...

    async def database_now(self) -> Micros:
        """The database's clock (for SQLite the system's)."""
        ...

    def submit(self, operation: Operation) -> asyncio.Future[Any]:
        """Put an operation into the next batch. The future gives its outcome, or the error that it alone had."""
        ...

    def subscribe(self, listener: HintListener) -> Callable[[], None]:
        """Call `listener` in the loop with hints, own writes' included; returns how to unsubscribe."""
        ...

    async def register_worker(self, worker_id: str, *, lease_seconds: float, version: str) -> int:
        """Make the worker known and its lease begin; returns its epoch. On SQLite it takes the worker's file lock."""
        ...

    async def retire_worker(self, worker_id: str) -> None:
        """The worker ends in good order: what it still owns is released at once."""
        ...

    def disown_worker(self, worker_id: str) -> None:
        """Write nothing more for that worker from here, beginning at once; from any thread (for tests)."""
        ...

    async def abandon_worker(self, worker_id: str) -> None:
        """Let the worker look dead at once, with all it owns (for tests): on SQLite its file lock is dropped, as the
        end of its process does it; on PostgreSQL its lease is over, as time does it."""
        ...

    def heartbeat(self) -> Heartbeat:
        """A new connection for a worker's heartbeat thread."""
        ...

    async def reclaim(
        self, worker_id: str, *, epoch: int, last: RunKey, next_seq: int, now: Micros
    ) -> Reclaimed | None:
        """Take a ready run that nobody has had since it left memory under the key `last`, and number what was delivered
        to it from `next_seq` on. `None`, and nothing is changed: it is not so, or a claim has to look closely."""
        ...

    async def claim(
        self,
        worker_id: str,
        *,
        epoch: int,
        app: str,
        functions: Sequence[str],
        limit: int,
        now: Micros,
        gates: Mapping[str, GateLimits] = NO_GATES,
    ) -> list[ClaimedRun]:
        """Take up to `limit` ready runs of these functions, in order of (ready_at, id); one suspect at most, and none
        while the worker has one (see `store.poison`). Of functions in `gates` only those that pass them."""
        ...

    async def tend_lanes(
        self, *, app: str, functions: Sequence[str], now: Micros, gates: Mapping[str, GateLimits]
    ) -> int:
        """Let go on what stands before a gate that is open: how many. A freed slot does it by itself; this is for
        what falls between (a paused function, a limit that was raised)."""
        ...

    async def next_ready_at(self, *, app: str, functions: Sequence[str]) -> Micros | None:
        """When the next run of these functions is due; `None`: none is."""
        ...

    async def list_mail(self, worker_id: str) -> list[tuple[str, int, bool]]:
        """(run id, mail, cancel) of every run this worker owns that has mail or is to be cancelled."""
        ...

    async def reap(self, *, now: Micros) -> list[str]:
        """Take the runs of dead workers from them: ready at once. Returns their run ids.

        `crash_count` is bumped for those that may be to blame (see `store.poison`).
        """
        ...

    async def release_orphans(self, worker_id: str, held: Collection[str], *, now: Micros) -> list[str]:
        """Ready the runs this worker owns in the database but does not hold in memory."""
        ...
