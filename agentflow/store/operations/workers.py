"""Claims, and what becomes of the runs of a worker: operations that the store makes for itself."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from agentflow.store.claim_types import ClaimedRun, Plan
from agentflow.store.hints import HintKind
from agentflow.store.operations.admission import LAG
from agentflow.store.operations.delivery import number_unread, store_numbers, stored_wait, timed_out_step
from agentflow.store.operations.gates import Candidate, free_slots, let_laggards_through, pass_gates
from agentflow.store.poison import Owned, is_suspect, to_be_raised
from agentflow.store.protocol import NO_GATES
from agentflow.store.statements import core as sql
from agentflow.store.statements import flow as flow_sql
from agentflow.store.statements import workers as worker_sql
from agentflow.store.stored_types import (
    UNPLANNED,
    GateLimits,
    Gates,
    ModelCall,
    RunKey,
    StoredAttempt,
    StoredStep,
)
from agentflow.store.transaction import Transaction, Work, step_params, stored_step


class Claim(NamedTuple):
    """Take ready runs."""

    worker_id: str
    app: str
    functions: tuple[str, ...]
    limit: int
    now: int
    gates: Mapping[str, GateLimits] = NO_GATES


class NextReady(NamedTuple):
    """When the next run is due."""

    app: str
    functions: tuple[str, ...]


class ListMail(NamedTuple):
    """Which runs of a worker have mail or are to be cancelled."""

    worker_id: str


class RegisterWorker(NamedTuple):
    """Make a worker known."""

    worker_id: str
    lease_until: int
    host: str
    pid: int
    version: str
    now: int


class RetireWorker(NamedTuple):
    """A worker ends in good order."""

    worker_id: str
    now: int


class ListWorkers(NamedTuple):
    """Which workers there are."""


class Reap(NamedTuple):
    """Take the runs of these dead workers, of those whose lease was over at that instant, and of unknown ones."""

    dead: tuple[str, ...]
    instant: int
    now: int


class TakeOwnerless(NamedTuple):
    """Take the runs whose worker is reaped or unknown."""

    now: int


Suspects = frozenset[tuple[str, int]]
"""Runs, by id and epoch, that a worker owned but did not hold when it last said what it holds."""


class ReleaseOrphans(NamedTuple):
    """Ready what a worker owns but does not hold, and did not hold the last time either."""

    worker_id: str
    held: frozenset[str]
    suspects: Suspects
    now: int


KEEP_REAPED_MICROS = 3600 * 1_000_000
MOST_ROUNDS = 5
"""How often one claim looks again, when runs that it took found a gate closed."""


def claim(tx: Transaction, op: Claim) -> Work[list[ClaimedRun]]:
    """Take ready runs and read all they need to go on.

    The journals are read by statements of their own, after the claim's: inside it, their snapshot would be older than
    its locks, and a signal delivered between would be missed.
    """
    if op.worker_id not in tx.alive or op.limit < 1:
        return []
    rows: list[_Row] = []
    for _ in range(MOST_ROUNDS):
        picked, passed = yield from _pick(tx, op, op.limit - len(rows))
        rows += passed
        if len(rows) >= op.limit or (picked < op.limit and not (yield from _ask_laggards(tx, op, len(rows)))):
            break
    if not rows:
        return []
    journal = yield from _read_journals(sorted(row.id for row in rows), op.now)
    forgiven = {row.id for row in rows if row.crash_count > 0} & journal.got_further
    if forgiven:
        yield sql.RESET_CRASHES, [{"run": run_id} for run_id in sorted(forgiven)]
    batched = sorted(row.id for row in rows if row.function in op.gates and op.gates[row.function].is_batch)
    if batched:
        for run_id, event in (yield flow_sql.READ_BATCH_OF, {"ids": batched}):
            journal.batches[run_id].append(event)
    return [
        ClaimedRun(
            key=RunKey(row.id, op.worker_id, row.epoch),
            app=row.app,
            function=row.function,
            input=journal.inputs[row.id][0],
            trigger=journal.inputs[row.id][1],
            created_at=row.created_at,
            started_at=op.now if row.started_at is None else row.started_at,
            parent_id=row.parent_id,
            parent_key=row.parent_key,
            root_id=row.root_id,
            depth=row.depth,
            tags=tuple(json.loads(journal.inputs[row.id][2] or "[]")),
            mail=row.mail,
            crash_count=0 if row.id in forgiven else row.crash_count,
            cancel_at=row.cancel_at,
            reason=row.reason,
            next_seq=journal.next_seq[row.id],
            steps=tuple(journal.steps[row.id]),
            attempts=tuple(journal.attempts[row.id]),
            waits=tuple(journal.waits[row.id]),
            model_calls=tuple(journal.calls[row.id]),
            slots=_slots_of(row, op.gates),
            batch=tuple(journal.batches[row.id]),
            start_by=row.start_by,
            plan=_plan_of(row, op.gates),
        )
        for row in rows
    ]


class _Row(NamedTuple):
    """What the claim's statement gives of a run."""

    id: str
    epoch: int
    app: str
    function: str
    created_at: int
    started_at: int | None
    parent_id: str | None
    parent_key: str | None
    root_id: str
    depth: int
    mail: int
    crash_count: int
    cancel_at: int | None
    reason: str | None
    ready_at: int
    gates: str | None
    blocked_on: str | None
    start_by: int | None


def _pick(tx: Transaction, op: Claim, limit: int) -> Work[tuple[int, list[_Row]]]:
    """Take up to `limit` runs; how many were ready, and those that may execute."""
    found = yield (
        worker_sql.CLAIM_RUNS,
        {
            "by": op.worker_id,
            "app": op.app,
            "functions": op.functions,
            "gated": tuple(op.gates),
            "now": op.now,
            "limit": limit,
        },
    )
    picked = sorted((_Row(*row) for row in found), key=lambda row: (row.ready_at, row.id))
    rows = yield from _keep_one_suspect(tx, op, picked)
    gated = [row for row in rows if row.function in op.gates]
    if gated:
        candidates = [
            Candidate(row.id, row.function, Gates.from_json(row.gates), row.started_at is not None)
            for row in gated
            if row.gates not in (None, UNPLANNED) and not _is_too_late(row)
        ]
        passed = yield from pass_gates(tx, candidates, op.gates, worker_id=op.worker_id, now=op.now)
        stopped = {candidate.run_id for candidate in candidates} - passed
        rows = [row for row in rows if row.id not in stopped]
        begun = [row.id for row in gated if row.id not in stopped and _plan_of(row, op.gates) is None]
        if begun:
            yield flow_sql.BEGIN_RUNS, {"ids": sorted(begun), "now": op.now}
    return len(picked), rows


def _is_too_late(row: _Row) -> bool:
    """Whether it is claimed although it stands in a lane: because the time by which it was to begin is over."""
    return row.blocked_on is not None and not row.blocked_on.startswith(LAG)


def _ask_laggards(tx: Transaction, op: Claim, taken: int) -> Work[bool]:
    """There is room left: take what goes behind others."""
    if not op.gates:
        return False
    return bool((yield from let_laggards_through(tx, op.app, op.gates, op.limit - taken, op.now)))


def _plan_of(row: _Row, gates: Mapping[str, GateLimits]) -> Plan | None:
    if row.gates == UNPLANNED:
        return Plan.WHOLE
    return Plan.GATES if row.gates is None and row.function in gates else None


def _slots_of(row: _Row, gates: Mapping[str, GateLimits]) -> tuple[str, ...]:
    if row.function not in gates or row.gates in (None, UNPLANNED) or _is_too_late(row):
        return ()
    return Gates.from_json(row.gates).slots[: len(gates[row.function].slots)]


def _keep_one_suspect(tx: Transaction, op: Claim, rows: list[_Row]) -> Work[list[_Row]]:
    """Give all suspects back but the first one."""
    suspects = [row for row in rows if is_suspect(row.crash_count)]
    others = [(row.id, op.worker_id, row.epoch) for row in suspects[1:]]
    yield from _take_runs(tx, others, op.now)
    given_back = {run_id for run_id, _, _ in others}
    return [row for row in rows if row.id not in given_back]


class _Journals:
    """What was read for a batch of claimed runs, by run id."""

    def __init__(self) -> None:
        self.inputs: dict[str, tuple[str, str | None, str | None]] = {}
        self.steps: dict[str, list[StoredStep]] = defaultdict(list)
        self.attempts: dict[str, list[StoredAttempt]] = defaultdict(list)
        self.waits: dict[str, list[Any]] = defaultdict(list)
        self.calls: dict[str, list[ModelCall]] = defaultdict(list)
        self.batches: dict[str, list[str]] = defaultdict(list)
        self.next_seq: dict[str, int] = defaultdict(lambda: 1)
        self.got_further: frozenset[str] = frozenset()
        """Those with a step that this claim has made of a wait whose time was over."""


def _read_journals(ids: list[str], now: int) -> Work[_Journals]:
    journals = _Journals()
    of_ids = {"ids": ids}
    inputs, waits, attempts, calls, chunks, steps = yield worker_sql.READ_JOURNALS_OF, of_ids
    for run_id, text, trigger, tags in inputs:
        journals.inputs[run_id] = (text, trigger, tags)
    is_due = False
    for run_id, *row in waits:
        wait = stored_wait(row)
        if wait.deadline <= now:
            is_due = True
        else:
            journals.waits[run_id].append(wait)
    if is_due:
        journals.got_further = yield from _end_due_waits(ids, now)
    if is_due or len(steps) > worker_sql.FEW_STEPS:
        steps = yield worker_sql.READ_STEPS_OF, of_ids
    for run_id, *row in steps:
        journals.steps[run_id].append(stored_step(row))
    for run_id, *row in attempts:
        journals.attempts[run_id].append(StoredAttempt(*row))
    for run_id, *row in calls:
        journals.calls[run_id].append(ModelCall(*row))
    for run_id, last in chunks:
        journals.next_seq[run_id] = last + 1
    yield from store_numbers((run_id, step) for run_id in ids for step in _adopt(journals, run_id))
    return journals


def _end_due_waits(ids: list[str], now: int) -> Work[frozenset[str]]:
    """Make steps of the waits whose time is over; whose they are."""
    due = yield worker_sql.TAKE_DUE_WAITS_OF, {"ids": ids, "now": now}
    steps = []
    for run_id, *row in sorted(due, key=lambda row: (row[0], row[1])):
        step = yield from timed_out_step(stored_wait(row), now)
        steps.append(step_params(run_id, step))
    if steps:
        yield sql.INSERT_STEP, steps
    return frozenset(run_id for run_id, *_ in due)


def _adopt(journals: _Journals, run_id: str) -> tuple[StoredStep, ...]:
    """Put a run's steps in order; those without a number, delivered or timed out, get one, which is to be stored."""
    steps = journals.steps[run_id]
    numbered = sorted((step for step in steps if step.seq is not None), key=lambda step: step.seq or 0)
    next_seq = max(journals.next_seq[run_id], (numbered[-1].seq or 0) + 1 if numbered else 1)
    adopted = number_unread((step for step in steps if step.seq is None), next_seq)
    journals.steps[run_id] = [*numbered, *adopted]
    journals.next_seq[run_id] = next_seq + len(adopted)
    return adopted


def next_ready(tx: Transaction, op: NextReady) -> Work[int | None]:
    """The earliest `ready_at` of what can be claimed."""
    rows = yield worker_sql.NEXT_READY, {"app": op.app, "functions": op.functions}
    due: int | None = rows[0][0]
    return due


def list_mail(tx: Transaction, op: ListMail) -> Work[list[tuple[str, int, bool]]]:
    """(run id, mail, cancel) of the worker's runs."""
    rows = yield worker_sql.LIST_MAIL, {"by": op.worker_id}
    return [(run_id, mail, cancel_at is not None) for run_id, mail, cancel_at in rows]


def register_worker(tx: Transaction, op: RegisterWorker) -> Work[int]:
    """Make a worker known; its epoch, or 0 when the id is taken."""
    row = {
        "id": op.worker_id,
        "epoch": 1,
        "lease_until": op.lease_until,
        "host": op.host,
        "pid": op.pid,
        "version": op.version,
        "started_at": op.now,
        "reaped_at": None,
    }
    if (yield worker_sql.INSERT_WORKER, row):
        return 1
    # Played again: the row that is there is ours.
    rows = yield worker_sql.READ_REGISTERED, row
    return rows[0][0] if rows else 0


def retire_worker(tx: Transaction, op: RetireWorker) -> Work[list[str]]:
    """The worker's row is closed and what it still owns is ready at once."""
    yield worker_sql.REAP_WORKER, {"now": op.now, "worker": op.worker_id}
    owned = yield worker_sql.FIND_OWNED, {"by": op.worker_id}
    return (yield from _take_runs(tx, owned, op.now))


def list_workers(tx: Transaction, op: ListWorkers) -> Work[list[str]]:
    """The ids of the workers that were not reaped."""
    rows = yield worker_sql.READ_WORKERS, {}
    return [worker_id for worker_id, _ in rows]


def reap(tx: Transaction, op: Reap) -> Work[list[str]]:
    """Take the runs of dead and unknown workers from them."""
    workers = yield worker_sql.READ_WORKERS, {}
    for worker_id, lease_until in sorted(workers):
        if worker_id in op.dead or lease_until <= op.instant:
            yield worker_sql.REAP_WORKER, {"now": op.now, "worker": worker_id}
    return (yield from take_ownerless(tx, TakeOwnerless(op.now)))


def take_ownerless(tx: Transaction, op: TakeOwnerless) -> Work[list[str]]:
    """Ready the running runs whose worker is reaped or missing."""
    by_owner: dict[str, list[Any]] = defaultdict(list)
    for run_id, owner, epoch, crash_count, begun_epoch in (yield worker_sql.FIND_OWNERLESS, {}):
        owned = Owned(crash_count, has_begun=begun_epoch == epoch)
        by_owner[owner].append((run_id, owner, epoch, owned))
    taken: list[str] = []
    for rows in by_owner.values():
        raised = to_be_raised({run_id: owned for run_id, _, _, owned in rows})
        taken += yield from _take_runs(tx, [row[:3] for row in rows], op.now, crashed=raised)
    yield worker_sql.FORGET_WORKERS, {"before": op.now - KEEP_REAPED_MICROS}
    return taken


def release_orphans(tx: Transaction, op: ReleaseOrphans) -> Work[tuple[list[str], Suspects]]:
    """Ready what the worker owns but does not hold; also the suspects for the next time.

    Once is not enough: a claim may be committed whose answer is still on its way to the worker.
    """
    if op.worker_id not in tx.alive:
        return [], frozenset()
    owned = yield worker_sql.FIND_OWNED, {"by": op.worker_id}
    missing = [row for row in owned if row[0] not in op.held]
    orphans = [row for row in missing if (row[0], row[2]) in op.suspects]
    released = yield from _take_runs(tx, orphans, op.now)
    return released, frozenset((run_id, epoch) for run_id, _, epoch in missing)


def _take_runs(
    tx: Transaction, rows: list[Any], now: int, *, crashed: Collection[str] = ()
) -> Work[list[str]]:
    taken: list[str] = []
    for run_id, owner, epoch in rows:
        hit = yield (
            worker_sql.TAKE_FROM_OWNER,
            {"now": now, "crashes": int(run_id in crashed), "run": run_id, "by": owner, "at_epoch": epoch},
        )
        if hit:
            taken.append(run_id)
    if taken:
        yield from free_slots(tx, taken, now)
        tx.tell(HintKind.READY)
    return taken
