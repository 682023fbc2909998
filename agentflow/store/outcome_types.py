"""The outcomes: what the writer answers to an operation, each a value."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from agentflow.approvals import ApprovalRequest
from agentflow.runs import RunStatus
from agentflow.store.stored_types import Json, Micros, Reservation, StoredStep


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
