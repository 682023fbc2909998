"""The operations: what is asked of the writer, each a value.

Those that carry a `RunKey` are fenced: they take effect only while that worker holds its lease and the run's epoch is
the one given; otherwise the answer is `Fenced` and nothing was written. Every operation is idempotent: by (run, key,
epoch), or by an id that the caller made.
"""

from __future__ import annotations

from typing import NamedTuple

from agentflow.approvals import DecisionInput
from agentflow.store.claim_types import FunctionInfo
from agentflow.store.stored_types import (
    Admission,
    Chunk,
    Json,
    Micros,
    ModelCall,
    NewApproval,
    NewEvent,
    NewRun,
    NewSchedule,
    Reservation,
    RunKey,
    Status,
    StoredAttempt,
    StoredStep,
    StoredWait,
)


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


class BeginCode(NamedTuple):
    """Note that the code of a run that has crashed is about to be called: if its process dies now, that counts."""

    run: RunKey


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
    | BeginCode
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
