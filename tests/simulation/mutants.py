"""Engines with one protection taken out. Each has to be caught, or the simulation does not see what it is for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

from sqlalchemy import literal_column as raw
from sqlalchemy import null, select, update

from agentflow.store import transaction
from agentflow.store.operation_types import Adopt, CommitStep
from agentflow.store.operations import dispatch as operations
from agentflow.store.operations import runs as operations_runs
from agentflow.store.operations.waits import adopt
from agentflow.store.operations.workers import Reap, ReleaseOrphans, reap
from agentflow.store.plan import Plan
from agentflow.store.rows import RunRow, table_of
from agentflow.store.statements import core as sql
from agentflow.store.statements import workers as worker_sql
from agentflow.store.statements.statement import Statement, big, small, text
from agentflow.store.transaction import Transaction, Work
from tests.simulation.altering import text_changed
from tests.simulation.world import Mutant, World

MUTANTS: dict[str, Mutant] = {}


def mutant(
    function: Callable[[World], Iterator[None]],
) -> Callable[[World], AbstractContextManager[None]]:
    made = contextmanager(function)
    MUTANTS[function.__name__.replace("_", " ")] = made
    return made


@mutant
def no_fence(world: World) -> Iterator[None]:
    """Whoever has ever owned a run may write for it."""

    def fence(tx: Any, key: Any) -> Any:
        rows = yield sql.READ_RUN, {"id": key.run_id}
        return RunState(*rows[0])  # type: ignore[name-defined]  # noqa: F821  (a name of the module it goes to)

    real = transaction.fence.__code__
    transaction.fence.__code__ = fence.__code__
    try:
        # What is carried out together has a fence of its own.
        with patch("agentflow.store.sqlite.backend.Plan.of", lambda operations: Plan()):
            yield
    finally:
        transaction.fence.__code__ = real


@mutant
def no_epoch_bump(world: World) -> Iterator[None]:
    """A claim leaves the epoch as it is."""
    bump = "epoch=(agentflow_run.epoch + ?)"
    with text_changed(worker_sql.CLAIM_RUNS, bump, bump.replace("?", "0 * ?")):
        yield


@mutant
def taken_up_whoever_had_it(world: World) -> Iterator[None]:
    """A run goes on from where it left memory, also if another worker has had it since."""
    with text_changed(worker_sql.RECLAIM_RUN, "agentflow_run.epoch = ?", "agentflow_run.epoch >= ?"):
        yield


@mutant
def no_mailbox_check(world: World) -> Iterator[None]:
    """A run is suspended although something was delivered since its owner looked."""
    run = table_of(RunRow)
    blind = Statement(
        lambda _: (
            update(run)
            .values(status=small("to"), ready_at=big("ready"), reason=text("why"), owner=null())
            .where(
                run.c.id == text("run"),
                run.c.epoch == big("at_epoch"),
                run.c.owner == text("by"),
                run.c.status == raw("1"),
            )
            .returning(run.c.mail)
        )
    )
    with patch.object(sql, "SUSPEND_RUN", blind):
        yield


@mutant
def reordered_commit(world: World) -> Iterator[None]:
    """What was submitted last is written first."""
    world.arrange = lambda batch: batch[::-1]
    yield


@mutant
def acknowledged_before_the_commit(world: World) -> Iterator[None]:
    """The answer is given, and the transaction ends a moment later, unless the process does."""

    def commit_later(commit: Any, operations: Any) -> Any:
        backend = commit.__self__
        process, connection = backend._process, backend._connection
        if not all(isinstance(operation, CommitStep) for operation in operations):
            return commit(operations)
        backend._connection = _Undoing(connection)
        try:
            answer = commit(operations)
        finally:
            backend._connection = connection

        def write() -> None:
            world.oracle.before_commit(operations)
            outcomes, _ = commit(operations)
            world.oracle.after_commit(process, operations, outcomes, has_changed=True)

        world.loop.call_later(0.01, write, context=process.context)
        return answer

    world.engine_commit = commit_later
    yield


@mutant
def reaper_takes_from_the_living(world: World) -> Iterator[None]:
    """A lease counts as over seconds before it is."""

    def hasty(tx: Transaction, op: Reap) -> Work[list[str]]:
        return (yield from reap(tx, op._replace(instant=op.instant + 2_500_000)))

    with patch.dict(operations._LOGIC, {Reap: hasty}):
        yield


@mutant
def orphans_are_never_released(world: World) -> Iterator[None]:
    """A claim whose answer was lost is nobody's business."""

    def released(tx: Transaction, op: ReleaseOrphans) -> Work[Any]:
        return [], frozenset()
        yield

    with patch.dict(operations._LOGIC, {ReleaseOrphans: released}):
        yield


@mutant
def slots_are_kept(world: World) -> Iterator[None]:
    """A run that ends or waits does not give its slot back."""

    def keep(tx: Transaction, run_ids: Any, slots: Any = None) -> Work[None]:
        return None
        yield

    with patch.object(operations_runs, "free_slots", keep):
        yield


@mutant
def signals_are_not_known_again(world: World) -> Iterator[None]:
    """Played again, a signal is a second signal."""
    nothing = Statement(
        lambda _: select(sql.signal.state, sql.signal.run_id, sql.signal.until).where(
            sql.signal.id == text("id"), raw("0") == raw("1")
        )
    )
    with patch.object(sql, "READ_SIGNAL", nothing):
        yield


@mutant
def an_adoption_is_forgotten(world: World) -> Iterator[None]:
    """Played again, it gives nothing of what it numbered the first time."""
    with patch.dict(operations._LOGIC, {Adopt: lambda tx, op: adopt(tx, op._replace(room=0))}):
        yield


@mutant
def a_registration_is_forgotten(world: World) -> Iterator[None]:
    """Played again, a worker's id is taken, by itself."""
    unknown = Statement(lambda _: select(sql.worker.epoch).where(raw("0") == raw("1")))
    with patch.object(worker_sql, "READ_REGISTERED", unknown):
        yield


class _Undoing:
    """A connection whose COMMIT takes everything back."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def execute(self, text: str, *args: Any) -> Any:
        return self._connection.execute("ROLLBACK" if text == "COMMIT" else text, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)
