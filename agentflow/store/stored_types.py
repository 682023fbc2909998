"""What a database holds, as plain values: steps, waits, calls of models, and what is new in it.

All times are int64 microseconds since the epoch in domain time (`agentflow.clock`); `NEVER` stands for no deadline.
Payloads are JSON text.
"""

from __future__ import annotations

import json
from enum import IntEnum
from typing import NamedTuple

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
