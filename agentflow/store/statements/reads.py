"""What is read of one run: by those who follow it, who ask all the time, and by pages."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, Table, and_, func, or_, select, true

from agentflow.keys import CANCELLED
from agentflow.store.statements.core import attempt, chunk, function, run, run_io, step, wait
from agentflow.store.statements.statement import Flavour, Statement, big, small, text
from agentflow.store.stored_types import CANCEL_KIND, Status

STEP_COLUMNS = tuple(step)
CHUNK_COLUMNS = tuple(chunk)
WAIT_COLUMNS = (wait.run_id, wait.key, wait.kind, wait.name, wait.since, wait.deadline)
PAYLOADS = (run_io.input, run_io.output, run_io.error)


def runs() -> Select[Any]:
    """Runs as a page shows them, without their payloads."""
    table: Table = run.id.table
    its_function = and_(function.app == run.app, function.id == run.function)
    return (
        select(
            run.id,
            run.app,
            run.function,
            run.status,
            run.reason,
            run.parent_id,
            run.root_id,
            run.rerun_of,
            run.created_at,
            run.started_at,
            run.ended_at,
            run_io.tags,
            function.paused_at,
        )
        .select_from(table)
        .join(run_io.run_id.table, run_io.run_id == run.id)
        .outerjoin(function.id.table, its_function)
    )


def open_attempts(which: ColumnElement[bool]) -> Select[Any]:
    """The last failed attempt of each step that has no outcome yet, and of the code between steps while it is to be
    tried again; of runs that have not ended."""
    last = (
        select(attempt.run_id, attempt.key, func.max(attempt.n).label("n"))
        .where(which)
        .group_by(attempt.run_id, attempt.key)
        .subquery()
    )
    has_outcome = (
        select(step.key)
        .where(step.run_id == attempt.run_id, step.key == attempt.key)
        .correlate(attempt.n.table)
        .exists()
    )
    # The failures of the code stay when it has got further: then the run waits for something that is due later.
    is_over = and_(
        attempt.key.startswith("@"),
        or_(run.status == int(Status.RUNNING), run.ready_at > attempt.next_at),
    )
    return (
        select(*attempt)
        .join(last, and_(last.c.run_id == attempt.run_id, last.c.key == attempt.key, last.c.n == attempt.n))
        .join(run.id.table, run.id == attempt.run_id)
        .where(~has_outcome, ~is_over, run.status < int(Status.COMPLETED), ~attempt.key.startswith(CANCELLED))
        .order_by(attempt.run_id, attempt.key)
    )


def _items(of: tuple[Any, ...], run_id: Any, seq: Any) -> Select[Any]:
    return (
        select(*of)
        .where(run_id == text("run"), seq > big("after"), seq <= big("upto"))
        .order_by(seq)
        .limit(small("most"))
    )


READ_STATUS = Statement(lambda _: select(run.status).where(run.id == text("run")))
LIST_STATUS = Statement(lambda d: select(run.id, run.status).where(d.among(run.id, "runs")))
READ_RUN = Statement(lambda _: runs().where(run.id == text("run")))
READ_WHOLE_RUN = Statement(lambda _: runs().add_columns(*PAYLOADS).where(run.id == text("run")))
LIST_WAITS = Statement(
    lambda _: (
        select(*WAIT_COLUMNS)
        .where(wait.run_id == text("run"), wait.kind != CANCEL_KIND)
        .order_by(wait.since, wait.key)
    )
)
LIST_OPEN_ATTEMPTS = Statement(lambda _: open_attempts(attempt.run_id == text("run")))
LIST_STEPS = Statement(lambda _: _items(STEP_COLUMNS, step.run_id, step.seq))
LIST_CHUNKS = Statement(lambda _: _items(CHUNK_COLUMNS, chunk.run_id, chunk.seq))


def _follow(_: Flavour) -> Select[Any]:
    # A subquery with a limit of its own: else PostgreSQL sorts all that is after the number to give the first of it.
    new = (
        select(*CHUNK_COLUMNS)
        .where(chunk.run_id == text("run"), chunk.seq > big("after"))
        .order_by(chunk.seq)
        .limit(small("most"))
        .subquery()
    )

    def of(run_id: Any, value: Any) -> Any:
        return select(value).where(run_id == text("run")).scalar_subquery()

    return (
        select(
            *new.c,
            of(chunk.run_id, func.max(chunk.seq)),
            of(step.run_id, func.max(step.seq)),
            run.status,
            # Between two looks a run may have been something else, and be again what it was.
            run.epoch,
            run.ready_at,
            *(of(wait.run_id, it) for it in (func.count(), func.max(wait.since))),
            # One wait may take another's place at the same instant.
            *(of(wait.run_id, it) for it in (func.min(wait.key), func.max(wait.key))),
            *(of(attempt.run_id, it) for it in (func.count(), func.max(attempt.next_at))),
        )
        .select_from(run.id.table.outerjoin(new, true()))
        .where(run.id == text("run"))
        .order_by(new.c.seq)
    )


FOLLOW = Statement(_follow)
"""The chunks after a number, at least one row; each with how far chunks and steps go in all, and with what changes with
all else that is told of a run."""
