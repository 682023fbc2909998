"""What the engine and the client ask of a database.

Writes are **operations**: values that `Store.submit` puts into the writer's queue. The writer commits many of them in
one transaction (group commit) and answers each with an **outcome**, another value. An operation that fails on its own
(a poison row) fails alone. After an ambiguous commit a batch is played again, so every operation is idempotent: by
(run, key, epoch), or by an id that the caller made.

All times are int64 microseconds since the epoch in domain time (`agentflow.clock`); `NEVER` stands for no deadline.
Payloads are JSON text. Operations that carry a `RunKey` are fenced: they take effect only while that worker holds its
lease and the run's epoch is the one given; otherwise the answer is `Fenced` and nothing was written.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from agentflow.approvals import ApprovalRequest, DecisionInput
from agentflow.events import EventRecord
from agentflow.runs import Page, Run, RunStatus, StepRecord, StreamItem

Micros = int
Json = str


class Status(IntEnum):
    """A run's status as the table keeps it."""

    QUEUED = 0
    RUNNING = 1
    SLEEPING = 2
    WAITING = 3
    COMPLETED = 4
    FAILED = 5
    CANCELLED = 6
    SKIPPED = 7


CANCEL_KIND = "cancel"
"""A wait that resolves no step: the event that it is for cancels the run."""


class RunKey(NamedTuple):
    """The right to write for a run: this worker owns it at this epoch."""

    run_id: str
    worker_id: str
    epoch: int


# ---------------------------------------------------------------------------------------------- stored things


class StoredStep(NamedTuple):
    """A step's outcome. `seq` is `None` until the run's owner has adopted what somebody else delivered."""

    key: str
    seq: int | None
    kind: str
    name: str | None
    ok: bool
    output: Json | None
    error: Json | None
    attempt: int
    """How many attempts were made, this one included."""
    started_at: Micros
    ended_at: Micros


class StoredAttempt(NamedTuple):
    """A failed attempt. `key` is a step key, or `@<seq>` for the code after that seq."""

    key: str
    n: int
    error: Json
    next_at: Micros
    started_at: Micros


class StoredWait(NamedTuple):
    """A registered wait: the right to resolve the step. On timeout the outcome is `timeout_*`, fixed here."""

    key: str
    kind: str
    name: str | None
    topic: str | None
    """What resolves it: the signal's name, the event's name, the approval's id, the child's run id."""
    correlation: str | None
    deadline: Micros
    since: Micros
    timeout_ok: bool
    timeout_output: Json | None
    timeout_error: Json | None
    condition: str | None = None
    """A CEL expression over `event`, what started the run, and `async`, the event that arrives: it has to be true."""


class Gates(NamedTuple):
    """What a run has to pass each time it is claimed: slots of these keys, and once, at its begin, a throttle."""

    slots: tuple[str, ...] = ()
    throttle: str | None = None

    def names(self) -> tuple[str, ...]:
        """The keys of all of them."""
        return self.slots if self.throttle is None else (*self.slots, self.throttle)

    def to_json(self) -> Json:
        return json.dumps(self, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: Json) -> Gates:
        slots, throttle = json.loads(text)
        return cls(tuple(slots), throttle)


class GateLimits(NamedTuple):
    """How wide a function's gates are now; the n-th limit is that of the n-th slot key."""

    slots: tuple[int, ...] = ()
    interval: Micros = 0
    """Between two begins under the throttle."""
    burst: int = 1
    slack: Micros = 0
    """How late a run may begin without moving the following ones."""
    is_batch: bool = False


class RateRule(NamedTuple):
    """At most `limit` runs in a `period`: one more is skipped."""

    key: str
    limit: int
    period: Micros


class CollectRule(NamedTuple):
    """Starts of one key become one run: with `most` a batch, else the last of them wins (debounce)."""

    key: str
    wait: Micros
    """How long after the first start (batch) or the last one (debounce) the run begins."""
    longest: Micros | None = None
    """The longest that a debounced run is put off."""
    most: int | None = None


class SingletonRule(NamedTuple):
    """One run at a time: a second one is skipped, or cancels the first."""

    key: str
    cancels: bool


class Admission(NamedTuple):
    """What flow control asks of one start, its keys evaluated."""

    gates: Gates = Gates()
    idempotency: str | None = None
    rate: RateRule | None = None
    collect: CollectRule | None = None
    singleton: SingletonRule | None = None
    lags: bool = False
    """Of negative priority: it goes behind others until `ready_at`, but begins at once where nobody else wants to."""

    def looks_at(self) -> list[str]:
        """The keys that are looked at when the run is stored."""
        rules = (self.rate, self.collect, self.singleton)
        once = () if self.idempotency is None else (f"once:{self.idempotency}",)
        return [*self.gates.names(), *once, *(rule.key for rule in rules if rule is not None)]


UNPLANNED = "?"
"""The gates of a run whose keys are Python functions that its sender did not have."""


class NewRun(NamedTuple):
    """A run to be stored."""

    id: str
    app: str
    function: str
    input: Json
    created_at: Micros
    ready_at: Micros
    root_id: str
    parent_id: str | None = None
    parent_key: str | None = None
    """The parent's step that waits for this run; `None` when detached."""
    depth: int = 0
    trigger: Json | None = None
    """The envelope of the event that started it: `{"id", "name", "ts"}`."""
    event_id: str | None = None
    rerun_of: str | None = None
    tags: tuple[str, ...] = ()
    version: str | None = None
    idempotency_key: str | None = None
    idempotency_digest: str | None = None
    idempotency_until: Micros | None = None
    cancel_on: tuple[StoredWait, ...] = ()
    """Which events cancel it: waits of `CANCEL_KIND`, which nobody sees, and which go with the run's end."""
    admission: Admission | None = None
    """What flow control asks of it; `None`: it begins as soon as a worker has room."""
    is_unplanned: bool = False
    """Its admission can only be known where its function is: the worker that claims it says."""
    start_by: Micros | None = None
    """When it has to have begun."""
    started_by: str | None = None
    """Who started it, where that is known."""


class NewEvent(NamedTuple):
    """An event with the runs it starts. `dedup_key` is what the user gave as id, else `None`."""

    id: str
    name: str
    data: Json
    ts: Micros
    received_at: Micros
    dedup_key: str | None = None
    starts: tuple[NewRun, ...] = ()
    correlations: tuple[str, ...] | None = ()
    """Every `agentflow.matching.correlation` the event has; `None`: too many, compare one by one."""
    source_run: str | None = None
    """The run that sends it, or that it starts: its own waits are not woken by the event that triggered it."""


class NewSchedule(NamedTuple):
    """A cron trigger of a function, with its first tick."""

    id: str
    app: str
    function: str
    expr: str
    tz: str | None
    next_at: Micros


class NewApproval(NamedTuple):
    """A question to a person, issued together with its wait."""

    id: str
    tool: str | None
    title: str
    details: Json | None
    args: Json | None
    args_digest: str
    approvers: tuple[str, ...]
    min_approvals: int
    editable: tuple[str, ...] | None
    policy: Json
    requested_at: Micros
    expires_at: Micros


class ModelCall(NamedTuple):
    """A row of the ledger: one request to a model provider, written before it leaves and updated with its end."""

    key: str
    attempt: int
    provider: str
    model: str
    state: str
    billed: str
    started_at: Micros
    digest: str
    agent: str | None = None
    provider_id: str | None = None
    ended_at: Micros | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost: str | None = None
    """A decimal number of US dollars; `None` when the model's price is not known."""
    price_version: str | None = None
    error: str | None = None
    """Why it failed or is in doubt; `None` also when its worker died."""
    charges: Json | None = None
    """What it counts for in which budgets (see `store.operations_budgets`); `None`: in none."""
    latency: str | None = None
    """The way by which it comes later and costs less (`"batch"`); `None`: at once, at the standard price."""


class Reservation(NamedTuple):
    """What a request may cost at most, set aside of a budget in one of its periods. Money is in billionths of a US
    dollar; a limit that is `None` is none."""

    key: str
    """The budget's name and the value of its key."""
    name: str
    value: str | None
    period_start: Micros
    ends_at: Micros | None
    cost: int
    tokens: int
    cost_limit: int | None
    token_limit: int | None


class BudgetState(NamedTuple):
    """How a budget stands in one of its periods; money in billionths of a US dollar."""

    name: str
    value: str | None
    period_start: Micros
    ends_at: Micros | None
    cost_limit: int | None
    token_limit: int | None
    spent_cost: int
    spent_tokens: int
    reserved_cost: int
    reserved_tokens: int


class AuditEntry(NamedTuple):
    """Who did what; `chain` is the hash of the entry and of the `chain` of the one before."""

    n: int
    at: Micros
    who: str
    what: str
    subject: str
    digest: str | None
    before: str | None
    after: str | None
    chain: str


class StoredMessage(NamedTuple):
    """A message of a thread, and which turn of which run it is of."""

    n: int
    turn: int
    run_id: str
    data: Json
    created_at: Micros


class Chunk(NamedTuple):
    """A piece of the run's live stream."""

    seq: int
    kind: str
    step_key: str | None
    attempt: int
    data: Json


class Plan(StrEnum):
    """What a claimed run's worker has to find out of its admission: all of it, or only the gates (it was stored before
    its function had any)."""

    WHOLE = "whole"
    GATES = "gates"


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run that now belongs to this worker, with all it needs to go on."""

    key: RunKey
    app: str
    function: str
    input: Json
    trigger: Json | None
    created_at: Micros
    started_at: Micros | None
    parent_id: str | None
    parent_key: str | None
    root_id: str
    depth: int
    tags: tuple[str, ...]
    mail: int
    crash_count: int
    cancel_at: Micros | None
    reason: str | None
    next_seq: int
    """One more than the highest seq of its steps and stream chunks."""
    steps: tuple[StoredStep, ...] = ()
    """All with a seq: what was delivered or had timed out is adopted by the claim, in order of `ended_at`."""
    attempts: tuple[StoredAttempt, ...] = ()
    waits: tuple[StoredWait, ...] = ()
    model_calls: tuple[ModelCall, ...] = ()
    """Only calls whose end is not known."""
    slots: tuple[str, ...] = ()
    """The concurrency keys under which it executes; whoever lets the run go gives them back."""
    batch: tuple[Json, ...] = ()
    """The events that joined it after the first one."""
    start_by: Micros | None = None
    """When it had to have begun."""
    plan: Plan | None = None
    """What its worker has to find out before it may begin."""


class Reclaimed(NamedTuple):
    """What is new of a run that was taken up again where it left memory."""

    epoch: int
    mail: int
    steps: tuple[StoredStep, ...]
    """What was delivered meanwhile, numbered."""


class Origin(NamedTuple):
    """What a run was started with: what a rerun needs of it, and what never changes."""

    run_id: str
    app: str
    function: str
    input: Json
    trigger: Json | None
    tags: tuple[str, ...]
    event_id: str | None
    """The stored event that started it."""
    parent_id: str | None = None


@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """A function as others see it who do not import it."""

    app: str
    id: str
    version: str
    triggers: Json
    config: Json
    schemas: Json
    """`{"input": JSON Schema, "output": JSON Schema, "agent": bool, "description": str}`"""
    paused_at: Micros | None = None
    rules: Any = None
    """The function's own `FlowControl`, with its keys as they are, where this process has the function."""


# ---------------------------------------------------------------------------------------------- operations


class PlanRun(NamedTuple):
    """Say what flow control asks of a run that was stored without, and give it back to be claimed."""

    run: RunKey
    admission: Admission
    ready_at: Micros
    now: Micros


class Prune(NamedTuple):
    """Remove runs that ended before an instant, with all that is theirs: of the next `most` by (created_at, id)."""

    before: Micros
    after: tuple[Micros, str] | None
    most: int


class PruneLoose(NamedTuple):
    """Remove up to `most` events that are as old and started no run that is left, and threads on which nothing was said
    since; with the last of them, old keys."""

    before: Micros
    now: Micros
    most: int


class StartRun(NamedTuple):
    """Store a run. With `owner` it is inserted already running and owned (epoch 1) unless that worker is fenced."""

    run: NewRun
    now: Micros
    owner: str | None = None


class Rerun(NamedTuple):
    """Store a run that does again what `run.rerun_of` did; with `from_step` what that one had done before the step is
    copied, but for approvals: those are asked for again."""

    run: NewRun
    now: Micros
    from_step: str | None = None


class CommitStep(NamedTuple):
    """Store a step's outcome; with `model_call` the ledger row in the same transaction."""

    run: RunKey
    step: StoredStep
    model_call: ModelCall | None = None
    mail: int = 0
    """The run's mail as its owner knows it: where it still is that, nothing is to be told."""


class CommitRace(NamedTuple):
    """Store the outcome of a race and withdraw what its branches have begun: their waits, the approvals and the runs
    these were for, and their outstanding retries."""

    run: RunKey
    step: StoredStep
    scopes: tuple[str, ...]
    """What the step keys of its branches begin with."""


class RegisterWait(NamedTuple):
    """Register a wait, with the child run or the approval it waits for. A second registration changes nothing.

    A signal wait first takes what is buffered under its name; with `lookback_from` an event wait first takes the
    earliest stored event received since then that matches.
    """

    run: RunKey
    wait: StoredWait
    seq: int
    """Given to the step if it resolves at once."""
    now: Micros
    child: NewRun | None = None
    approval: NewApproval | None = None
    replace: bool = False
    lookback_from: Micros | None = None


class ResolveWait(NamedTuple):
    """The owner ends a wait with an outcome of its own. If somebody delivered first, theirs stands."""

    run: RunKey
    step: StoredStep


class WithdrawWait(NamedTuple):
    """The await was cancelled: forget the wait; nothing is memoized. Its approval is cancelled, its child is not."""

    run: RunKey
    key: str
    now: Micros


class BeginTurn(NamedTuple):
    """Take a place on a thread for the turn with this key, and the thread itself when nobody is before it."""

    run: RunKey
    app: str
    thread: str
    key: str
    """Of the step that begins it; what stands before its last slash, the keys of the turn's other steps begin with."""
    now: Micros


class TurnEnd(NamedTuple):
    """What a turn leaves on its thread: all of its messages, or none where it failed."""

    app: str
    thread: str
    key: str
    messages: tuple[tuple[str, Json], ...] = ()
    """(role, the message)"""
    expected_n: int = 0
    """The number that the first of them has unless somebody else wrote meanwhile."""
    summary: str | None = None
    """Stands for every message below `summary_upto`, from now on."""
    summary_upto: int = 0


class EndTurn(NamedTuple):
    """Store a step's outcome and, in the same transaction, what its turn leaves on the thread; the next one may have
    it. A step that has its outcome already changes nothing."""

    run: RunKey
    step: StoredStep
    turn: TurnEnd


class ForgetThread(NamedTuple):
    """Remove a thread's messages, and the thread. Turns under way end on an empty one."""

    app: str
    thread: str


class MarkEffect(NamedTuple):
    """Note that a step's effect is about to happen. Played again by the same attempt it gives the same answer."""

    run: RunKey
    key: str
    attempt: int
    now: Micros


class UnmarkEffect(NamedTuple):
    """The effect has not happened: the step itself says so."""

    run: RunKey
    key: str


class RecordAttempt(NamedTuple):
    """Store a failed attempt and when the next one is due."""

    run: RunKey
    attempt: StoredAttempt
    model_call: ModelCall | None = None


class WriteModelCall(NamedTuple):
    """Insert or update a row of the ledger, by (run, key, attempt).

    A new row's reservations are made with it, all of them, or nothing is written and the answer is `OverBudget`. What a
    row that has charges becomes, its budgets are told in the same transaction, whichever operation writes it.
    """

    run: RunKey
    call: ModelCall
    reservations: tuple[Reservation, ...] = ()


class EndAbandonedCall(NamedTuple):
    """Enter the end of a job whose run has ended without it; a row that has an end already stands."""

    run_id: str
    call: ModelCall


class Adopt(NamedTuple):
    """Number what others delivered, and end the waits that are due. For a run that stays in memory."""

    run: RunKey
    next_seq: int
    now: Micros
    room: int = 0
    """How many numbers from `next_seq` on are kept for it. What has one of them was adopted by this operation the
    first time that it was played, and is given again."""


class Suspend(NamedTuple):
    """Let go of a run that only waits: status `sleeping` or `waiting`, to be claimed at `ready_at`.

    A compare-and-set on `mail`: a delivery that came since is never lost.
    """

    run: RunKey
    mail: int
    status: Status
    ready_at: Micros
    reason: str | None = None
    slots: tuple[str, ...] = ()
    now: Micros = 0


class Release(NamedTuple):
    """Give a run back unfinished, ready at once for any worker."""

    run: RunKey
    now: Micros
    slots: tuple[str, ...] = ()


class Finish(NamedTuple):
    """End a run; wake the parent that waits for it; forget its waits; cancel its pending approvals.

    `status` cancelled also cancels its children that are not detached.
    """

    run: RunKey
    status: Status
    output: Json | None
    error: Json | None
    reason: str | None
    now: Micros
    parent_error: Json | None = None
    """What the parent's step gets as error when the run did not complete."""
    follow_up: NewRun | None = None
    """A run that this end starts, in the same transaction."""
    slots: tuple[str, ...] = ()
    has_parent: bool = True
    """Whether somebody may wait for this end: it is told in the same transaction."""


class SendEvents(NamedTuple):
    """Store events, start their runs, wake the waits they match. With `run`, only if that is not fenced."""

    events: tuple[NewEvent, ...]
    now: Micros
    run: RunKey | None = None


class SendSignal(NamedTuple):
    """Resolve the one wait of that name. Idempotent by `id`: played again it gives the first answer."""

    id: str
    name: str
    data: Json
    now: Micros
    buffer_until: Micros | None = None
    run: RunKey | None = None


class Decide(NamedTuple):
    """Take a person's decision on an approval, once. Idempotent by `id`."""

    id: str
    approval_id: str
    decision: DecisionInput
    by: str
    roles: tuple[str, ...]
    args_digest: str | None
    comment: str | None
    now: Micros


class CancelRun(NamedTuple):
    """Cancel a run and its children that are not detached. One that runs is asked, the others end at once."""

    run_id: str
    reason: str | None
    now: Micros


class AppendStream(NamedTuple):
    """Append to a run's live stream. Never waits for the disk."""

    run: RunKey
    chunks: tuple[Chunk, ...]


class RegisterFunctions(NamedTuple):
    """Tell the database which functions an app has."""

    functions: tuple[FunctionInfo, ...]
    now: Micros


class PauseFunction(NamedTuple):
    """Let the runs of a function stay queued, or with `resume` be taken again. Twice is as once."""

    app: str
    function: str
    now: Micros
    resume: bool = False


class KeepSchedules(NamedTuple):
    """Keep these schedules; one that is there already keeps its `next_at`. Others of `functions` are forgotten."""

    app: str
    functions: tuple[str, ...]
    schedules: tuple[NewSchedule, ...]


class ListSchedules(NamedTuple):
    """When the schedules with these ids are due."""

    ids: tuple[str, ...]


class TickSchedule(NamedTuple):
    """Start the runs of a schedule that is due, and move it on: by compare-and-set on `due_at`, so only once."""

    id: str
    due_at: Micros
    next_at: Micros
    runs: tuple[NewRun, ...]
    last_nominal: Micros | None
    now: Micros


class BeginModelCall(NamedTuple):
    """Take a request and `needs` tokens of a provider's limits for the call with this id, or be told when to ask again.

    A limit that is `None` is none; `spread` (0 to 999) scatters those who are told the same.
    """

    id: str
    provider: str
    requests: int | None
    tokens: int | None
    period: Micros
    needs: int
    spread: int
    now: Micros


class SettleModelCall(NamedTuple):
    """The call is over and used so many tokens; `None`: what was taken for it."""

    id: str
    provider: str
    used: int | None
    now: Micros


class SlowModelCalls(NamedTuple):
    """Let no limited call of the provider begin before `until`: it has answered 429."""

    provider: str
    until: Micros


Operation = (
    StartRun
    | Rerun
    | CommitStep
    | CommitRace
    | RegisterWait
    | ResolveWait
    | WithdrawWait
    | RecordAttempt
    | WriteModelCall
    | EndAbandonedCall
    | Adopt
    | Suspend
    | Release
    | Finish
    | SendEvents
    | SendSignal
    | Decide
    | CancelRun
    | AppendStream
    | RegisterFunctions
    | PauseFunction
    | KeepSchedules
    | ListSchedules
    | TickSchedule
    | PlanRun
    | Prune
    | PruneLoose
    | BeginModelCall
    | SettleModelCall
    | SlowModelCalls
    | BeginTurn
    | EndTurn
    | ForgetThread
    | MarkEffect
    | UnmarkEffect
)

# ------------------------------------------------------------------------------------------------ outcomes


class Fenced(NamedTuple):
    """The worker or the run's epoch is not the current one, or the run has ended: nothing was written."""

    why: str


class Done(NamedTuple):
    """It is written. `mail` and `cancel` are the run's, for its owner to notice."""

    mail: int = 0
    cancel: bool = False


class Exists(NamedTuple):
    """The step has an outcome already; it stands, and has a seq."""

    step: StoredStep
    mail: int = 0
    cancel: bool = False


class Started(NamedTuple):
    """The run is stored. `created=False`: the idempotency key, or the run's id, was there before with the same data."""

    run_id: str
    created: bool
    epoch: int
    """1 when it was stored as running and owned, else 0."""


class KeyConflict(NamedTuple):
    """The idempotency key was used with other data, for this run."""

    run_id: str


class NoSuchStep(NamedTuple):
    """The run has no step of that key: nothing was written."""


class Waits(NamedTuple):
    """The wait is registered, with this deadline (of the first registration)."""

    deadline: Micros
    mail: int = 0
    cancel: bool = False


class SignalTaken(NamedTuple):
    """Another wait holds the signal's name."""

    run_id: str


class Adopted(NamedTuple):
    """What was delivered or has timed out, numbered; what is still waited for is not here."""

    steps: tuple[StoredStep, ...]
    mail: int
    cancel: bool


class MailChanged(NamedTuple):
    """Something was delivered meanwhile: not suspended."""

    mail: int
    cancel: bool


class Sent(NamedTuple):
    """Event ids, in order, and the runs that were started. A duplicate gives the first one's id and starts none."""

    event_ids: tuple[str, ...]
    run_ids: tuple[str, ...]


class Delivered(NamedTuple):
    """The signal went to this run; `None`: it is buffered."""

    run_id: str | None


class NobodyWaits(NamedTuple):
    """No live wait has that name."""


class AlreadyBuffered(NamedTuple):
    """One signal of that name is buffered already."""


class DecisionResult(StrEnum):
    TAKEN = "taken"
    NEEDS_MORE = "needs_more"
    ALREADY_DECIDED = "already_decided"
    EXPIRED = "expired"
    NOT_PERMITTED = "not_permitted"
    DIGEST_MISMATCH = "digest_mismatch"
    NOT_EDITABLE = "not_editable"
    NOT_FOUND = "not_found"


class Decided(NamedTuple):
    """How the decision went, with the request as it stands now. The same person twice changes nothing."""

    result: DecisionResult
    request: ApprovalRequest | None


class Cancelled(NamedTuple):
    """`status` is the run's before; `None`: no such run. `asked` are the running ones that were asked to stop."""

    status: RunStatus | None
    ended: tuple[str, ...]
    asked: tuple[str, ...]


class Schedules(NamedTuple):
    """(id, next_at) of those that are there."""

    due: tuple[tuple[str, Micros], ...]


class Pruned(NamedTuple):
    """How much was removed, and where to go on; `after=None`: nothing is left."""

    runs: int = 0
    events: int = 0
    after: tuple[Micros, str] | None = None


class Ticked(NamedTuple):
    """The runs that were started. `moved=False`: somebody else was first, or the schedule is gone; nothing was done."""

    run_ids: tuple[str, ...]
    moved: bool


class NotBefore(NamedTuple):
    """The call may not begin yet: ask again at this instant. Nothing was taken."""

    at: Micros
    because: str
    """`requests`, `tokens` or `paused`."""


class OverBudget(NamedTuple):
    """The request might pass a budget: nothing was written."""

    reservation: Reservation
    spent_cost: int
    spent_tokens: int
    reserved_cost: int
    reserved_tokens: int
    is_of_cost: bool
    """Whether it is the limit of money that it might pass; else that of tokens."""


class TurnBegun(NamedTuple):
    """The thread is this turn's: what was said on it, from `first_n` on; the next message will be `next_n`."""

    next_n: int
    first_n: int
    summary: str | None
    messages: tuple[Json, ...]


class ThreadTaken(NamedTuple):
    """Another turn has the thread, or came before: ask again at this instant, or when woken."""

    at: Micros
    run_id: str
    key: str
    is_deadlock: bool
    """Whether that turn waits for this one."""


class Forgotten(NamedTuple):
    """How many messages were removed; `None`: there is no such thread."""

    messages: int | None


class AlreadyMarked(NamedTuple):
    """An earlier attempt has begun the effect, and nobody knows how it ended."""

    at: Micros


Outcome = (
    Fenced
    | Done
    | Exists
    | Started
    | KeyConflict
    | NoSuchStep
    | Waits
    | SignalTaken
    | Adopted
    | MailChanged
    | Sent
    | Delivered
    | NobodyWaits
    | AlreadyBuffered
    | Decided
    | Cancelled
    | Schedules
    | Ticked
    | Pruned
    | NotBefore
    | OverBudget
    | TurnBegun
    | ThreadTaken
    | Forgotten
    | AlreadyMarked
)

# --------------------------------------------------------------------------------------------------- hints


class HintKind(StrEnum):
    """What may have happened. A hint may come late, twice, or not at all; polling makes everything correct."""

    READY = "ready"
    """Some run can be claimed."""
    MAIL = "mail"
    """Something was delivered to, or asked of, this run, which may be in memory."""
    ENDED = "ended"
    """This run has ended."""
    STREAM = "stream"
    """This run's stream has grown."""
    ANY = "any"
    """Another process wrote: look at everything."""


class Hint(NamedTuple):
    kind: HintKind
    run_id: str | None = None


HintListener = Callable[[Hint], None]

# --------------------------------------------------------------------------------------------------- store


class Heartbeat(Protocol):
    """A worker's own connection, used from its own thread."""

    def renew(self, worker_id: str, epoch: int, lease_seconds: float) -> bool:
        """Renew the lease; `False` when the worker was reaped or its lease is over: it must stop."""
        ...

    def close(self) -> None: ...


class Queries(Protocol):
    """Reads for people and pages; never on a step's way."""

    async def get_run(self, run_id: str) -> Run | None: ...

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
