"""What every operation's logic shares: the transaction it runs in, and the fence.

The logic is written once for both databases, sans-IO: a generator that yields a statement with its parameters and is
sent the rows. The SQLite and the PostgreSQL driver run the same generators.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from agentflow.store.hints import Hint, HintKind
from agentflow.store.outcome_types import Fenced
from agentflow.store.statements import core as sql
from agentflow.store.statements.statement import Bundle, Params, Statement
from agentflow.store.stored_types import RunKey, Status, StoredStep

T = TypeVar("T")

Rows = list[Any]
Work = Generator[tuple[Statement | Bundle, Params | Sequence[Params]], Rows, T]
"""What asks for one statement after the other and is sent its rows. With a list of parameters the statement is carried
out for each of them, and no rows come back: on PostgreSQL that is one round trip."""


class Transaction:
    """One transaction: which of our workers still hold their lease in it, and what to tell after it."""

    __slots__ = ("alive", "hints", "locked", "paused")

    def __init__(self, alive: frozenset[str]) -> None:
        self.alive = alive
        self.hints: list[Hint] = []
        self.locked: set[str] = set()
        """The names of flow control's keys that it holds alone."""
        self.paused: frozenset[tuple[str, str]] | None = None
        """The functions (app, id) that are paused, once somebody has read them."""

    def tell(self, kind: HintKind, run_id: str | None = None) -> None:
        self.hints.append(Hint(kind, run_id))


def lock_keys(tx: Transaction, keys: Iterable[str]) -> Work[None]:
    """Hold flow control's keys to the end of the transaction, taken in one order."""
    names = {*keys} - tx.locked
    if names:
        yield sql.LOCK_NAMES, {"names": sorted(f"flow:{name}" for name in names)}
        tx.locked |= names


class RunState(NamedTuple):
    """What the fence reads of a run."""

    owner: str | None
    epoch: int
    status: int
    mail: int
    cancel_at: int | None
    crash_count: int
    parent_id: str | None
    parent_key: str | None
    is_gated: bool

    @property
    def cancel(self) -> bool:
        return self.cancel_at is not None


def fence(tx: Transaction, key: RunKey) -> Work[RunState | Fenced]:
    """The run as its owner may write it. Its row needs no lock: the worker's is held, and nobody steals from it."""
    if key.worker_id not in tx.alive:
        return Fenced(f"the lease of worker {key.worker_id} is over")
    rows = yield sql.READ_RUN, {"id": key.run_id}
    if not rows:
        return Fenced(f"there is no run {key.run_id}")
    state = RunState(*rows[0])
    if state.owner == key.worker_id and state.epoch == key.epoch and state.status == Status.RUNNING:
        return state
    return Fenced(
        f"run {key.run_id} is {Status(state.status).name.lower()} at epoch {state.epoch}, owned by {state.owner}: "
        f"worker {key.worker_id} had it at epoch {key.epoch}"
    )


def stored_step(row: Any) -> StoredStep:
    """A step from a row of `STEP_COLUMNS`."""
    key, seq, kind, name, ok, *rest = row
    return StoredStep(key, seq, kind, name, bool(ok), *rest)


def step_params(run_id: str, step: StoredStep) -> Params:
    return {"run_id": run_id, **step._asdict()}
