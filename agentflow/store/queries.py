"""Reads for people and pages, never on a step's way: of one run by the driver, all else by SQLAlchemy."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    exists,
    func,
    or_,
    select,
    tuple_,
)

from agentflow.approvals import ApprovalRequest
from agentflow.errors import InvalidInput
from agentflow.events import EventRecord
from agentflow.runs import Look, Page, Run, RunStatus, StepRecord, StreamItem
from agentflow.store import records
from agentflow.store.charges import OF_A_TURN
from agentflow.store.claim_types import FunctionInfo, Origin
from agentflow.store.reader import Reader, Rows
from agentflow.store.rows import RunRow, table_of
from agentflow.store.statements.audit import audit
from agentflow.store.statements.budgets import budget
from agentflow.store.statements.core import (
    IS_SUBMITTED,
    MODEL_CALL_COLUMNS,
    approval,
    attempt,
    event_run,
    function,
    model_call,
    run,
    run_io,
    step,
    wait,
)
from agentflow.store.statements.core import event as event_columns
from agentflow.store.statements.reads import (
    CHUNK_COLUMNS,
    FOLLOW,
    LIST_CHUNKS,
    LIST_OPEN_ATTEMPTS,
    LIST_STATUS,
    LIST_STEPS,
    LIST_WAITS,
    READ_RUN,
    READ_STATUS,
    READ_WHOLE_RUN,
    STEP_COLUMNS,
    WAIT_COLUMNS,
    open_attempts,
    runs,
)
from agentflow.store.statements.threads import message, turn
from agentflow.store.statements.threads import thread as thread_columns
from agentflow.store.stored_types import (
    CANCEL_KIND,
    AuditEntry,
    BudgetState,
    Micros,
    ModelCall,
    Status,
    StoredMessage,
)

_LARGEST_PAGE = 1000


class SqlQueries:
    """`Queries` for both databases."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._rows = reader.rows

    async def close(self) -> None:
        await self._reader.close()

    # ----------------------------------------------------------------------------------------------- runs

    async def get_run(self, run_id: str, *, payloads: bool = True) -> Run | None:
        found = await self._reader.found(READ_WHOLE_RUN if payloads else READ_RUN, run=run_id)
        if not found:
            return None
        waiting: records.WaitingByRun = {}
        if found[0]["status"] < Status.COMPLETED:
            waiting = records.waiting_by_run(
                await self._reader.found(LIST_WAITS, run=run_id),
                await self._reader.found(LIST_OPEN_ATTEMPTS, run=run_id),
            )
        return records.run_record(found[0], waiting, payloads=payloads)

    async def get_status(self, run_id: str) -> RunStatus | None:
        found = await self._reader.found(READ_STATUS, run=run_id)
        return RunStatus(Status(found[0]["status"]).name.lower()) if found else None

    async def get_origin(self, run_id: str) -> Origin | None:
        rows = await self._rows(
            select(
                run.app,
                run.function,
                run_io.input,
                run_io.trigger,
                run_io.tags,
                event_run.event_id,
                run.parent_id,
            )
            .join_from(run.id.table, run_io.run_id.table, run_io.run_id == run.id)
            .outerjoin(event_run.run_id.table, event_run.run_id == run.id)
            .where(run.id == run_id)
        )
        if not rows:
            return None
        found = dict(rows[0])
        return Origin(run_id, **found | {"tags": tuple(json.loads(found["tags"] or "[]"))})

    async def list_ended(self, run_ids: Collection[str]) -> list[str]:
        found = await self._reader.tuples(LIST_STATUS, runs=run_ids)
        live = {run_id for run_id, status in found if status < Status.COMPLETED}
        return [run_id for run_id in run_ids if run_id not in live]

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
        chosen = runs()
        if status is not None:
            chosen = chosen.where(run.status.in_([Status[RunStatus(name).name].value for name in status]))
        if app is not None:
            chosen = chosen.where(run.app == app)
        if function is not None:
            chosen = chosen.where(run.function == function)
        if parent is not None:
            chosen = chosen.where(run.parent_id == parent)
        if since is not None:
            chosen = chosen.where(run.created_at >= since)
        if q:
            chosen = chosen.where(run.id.startswith(q, autoescape=True))
        return await self._run_page(chosen, limit, cursor)

    async def list_event_runs(
        self, event_id: str, *, limit: int = 50, cursor: str | None = None
    ) -> Page[Run]:
        chosen = runs().join(event_run.run_id.table, event_run.run_id == run.id)
        return await self._run_page(chosen.where(event_run.event_id == event_id), limit, cursor)

    async def _run_page(self, chosen: Select[Any], limit: int, cursor: str | None) -> Page[Run]:
        rows, after = await self._page(chosen, (run.created_at, run.id), limit, cursor, newest_first=True)
        waiting = await self._waiting([row["id"] for row in rows])
        return _as_page([records.run_record(row, waiting, payloads=False) for row in rows], after)

    async def _waiting(self, run_ids: list[str]) -> records.WaitingByRun:
        """What runs wait for: their waits, and the retries that are due later."""
        if not run_ids:
            return {}
        waits = await self._rows(
            select(*WAIT_COLUMNS)
            .where(wait.run_id.in_(run_ids), wait.kind != CANCEL_KIND)
            .order_by(wait.run_id, wait.since, wait.key)
        )
        return records.waiting_by_run(waits, await self._rows(open_attempts(attempt.run_id.in_(run_ids))))

    # ---------------------------------------------------------------------------------------------- steps

    async def list_steps(
        self, run_id: str, *, limit: int = 100, cursor: str | None = None
    ) -> Page[StepRecord]:
        limit = _checked(limit)
        after = _decode_cursor("step", cursor)
        found: list[StepRecord] = []
        if after is None or after[0] >= 0:
            numbered = select(*STEP_COLUMNS).where(step.run_id == run_id, step.seq.is_not(None))
            if after is not None:
                numbered = numbered.where(tuple_(step.seq, step.key) > tuple_(*after))
            rows = await self._rows(numbered.order_by(step.seq, step.key).limit(limit + 1))
            found = [records.step_record(row) for row in rows]
        if len(found) <= limit:
            last = after[1] if after is not None and after[0] < 0 else None
            found.extend(await self._unnumbered_steps(run_id, after_key=last))
        shown = found[:limit]
        if len(found) == len(shown):
            return _as_page(await self._with_costs(run_id, shown), None)
        end = shown[-1]
        # -1 stands for "behind all that have a seq".
        return _as_page(
            await self._with_costs(run_id, shown),
            _encode_cursor("step", (-1 if end.seq is None else end.seq, end.key)),
        )

    async def get_step(self, run_id: str, key: str) -> StepRecord | None:
        rows = await self._rows(select(*STEP_COLUMNS).where(step.run_id == run_id, step.key == key))
        found = [records.step_record(row) for row in rows]
        if not found:
            found = [record for record in await self._unnumbered_steps(run_id) if record.key == key]
        return (await self._with_costs(run_id, found))[0] if found else None

    async def look(self, run_id: str, *, after: int = 0, most: int = 500) -> Look | None:
        rows = await self._reader.tuples(FOLLOW, run=run_id, after=after, most=_checked(most))
        if not rows:
            return None
        names = [column.key for column in CHUNK_COLUMNS]
        last_chunk, *standing = rows[0][len(names) :]
        last_step, status = standing[:2]
        return Look(
            last_seq=max(last_chunk or 0, last_step or 0),
            is_final=status >= Status.COMPLETED,
            standing=tuple(standing),
            chunks=[
                records.chunk_item(dict(zip(names, row, strict=False))) for row in rows if row[0] is not None
            ],
        )

    async def list_stream(self, run_id: str, *, after: int = 0, limit: int = 500) -> list[StreamItem]:
        limit = _checked(limit)
        # How far both tables go is asked in one statement: what is committed between the two that follow would else
        # show a later item of the one without an earlier item of the other, which nobody asks for again.
        look = await self.look(run_id, after=after, most=1)
        upto = 0 if look is None else look.last_seq
        if upto <= after:
            return []
        page = {"run": run_id, "after": after, "upto": upto, "most": limit}
        steps = await self._reader.found(LIST_STEPS, **page)
        chunks = await self._reader.found(LIST_CHUNKS, **page)
        items = [records.step_item(row) for row in steps] + [records.chunk_item(row) for row in chunks]
        return sorted(items, key=lambda item: item.seq)[:limit]

    async def _unnumbered_steps(self, run_id: str, *, after_key: str | None = None) -> list[StepRecord]:
        """Steps without a seq, by key: delivered but not adopted yet, waiting, or between two attempts."""
        delivered = await self._rows(select(*STEP_COLUMNS).where(step.run_id == run_id, step.seq.is_(None)))
        waits = await self._rows(select(*wait).where(wait.run_id == run_id, wait.kind != CANCEL_KIND))
        attempts = await self._rows(open_attempts(attempt.run_id == run_id))
        found = {record.key: record for record in map(records.attempted_step, attempts)}
        found |= {row["key"]: records.waiting_step(row) for row in waits}
        found |= {row["key"]: records.step_record(row) for row in delivered}
        keys = sorted(
            key for key in found if not key.startswith("@") and (after_key is None or key > after_key)
        )
        return [found[key] for key in keys]

    async def _with_costs(self, run_id: str, steps: list[StepRecord]) -> list[StepRecord]:
        if not steps:
            return steps
        rows = await self._rows(
            select(model_call.key, model_call.cost).where(
                model_call.run_id == run_id, model_call.key.in_([record.key for record in steps])
            )
        )
        costs = records.costs_by_key(rows)
        return [
            record.model_copy(update={"cost": costs[record.key]}) if record.key in costs else record
            for record in steps
        ]

    # ------------------------------------------------------------------------------ approvals and events

    async def list_approvals(
        self,
        *,
        now: Micros = 0,
        status: str | None = None,
        run: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[ApprovalRequest]:
        chosen = select(*approval)
        if status is not None:
            chosen = chosen.where(approval.status == status)
        if run is not None:
            chosen = chosen.where(approval.run_id == run)
        rows, after = await self._page(
            chosen, (approval.requested_at, approval.id), limit, cursor, newest_first=False
        )
        return _as_page([records.shown_approval(row, now) for row in rows], after)

    async def get_approval(self, approval_id: str, *, now: Micros = 0) -> ApprovalRequest | None:
        rows = await self._rows(select(*approval).where(approval.id == approval_id))
        return records.shown_approval(rows[0], now) if rows else None

    async def list_audit(
        self, *, subject: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[AuditEntry]:
        chosen = select(*audit)
        if subject is not None:
            chosen = chosen.where(audit.subject == subject)
        rows, after = await self._page(chosen, (audit.n, audit.chain), limit, cursor, newest_first=False)
        return _as_page([AuditEntry(**row) for row in rows], after)

    async def list_events(
        self, *, name: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[EventRecord]:
        chosen = select(*event_columns)
        if name is not None:
            chosen = chosen.where(event_columns.name == name)
        key = (event_columns.received_at, event_columns.id)
        rows, after = await self._page(chosen, key, limit, cursor, newest_first=True)
        return _as_page([records.event_record(row) for row in rows], after)

    async def get_event(self, event_id: str) -> EventRecord | None:
        rows = await self._rows(select(*event_columns).where(event_columns.id == event_id))
        return records.event_record(rows[0]) if rows else None

    # -------------------------------------------------------------------------------- functions and usage

    async def list_functions(self, *, app: str | None = None) -> list[FunctionInfo]:
        names = ("app", "id", "version", "triggers", "config", "schemas", "paused_at")
        chosen = select(*(function[name] for name in names)).order_by(function.app, function.id)
        if app is not None:
            chosen = chosen.where(function.app == app)
        return [FunctionInfo(**row) for row in await self._rows(chosen)]

    async def list_abandoned_calls(self, *, app: str, limit: int = 50) -> list[tuple[str, ModelCall]]:
        chosen = (
            select(model_call.run_id, *MODEL_CALL_COLUMNS)
            .join(table_of(RunRow), run.id == model_call.run_id)
            .where(IS_SUBMITTED, run.app == app, run.status >= Status.COMPLETED)
            .limit(limit)
        )
        return [
            (row["run_id"], ModelCall(**{column.key: row[column.key] for column in MODEL_CALL_COLUMNS}))
            for row in await self._rows(chosen)
        ]

    async def list_model_calls(
        self,
        *,
        run: str | None = None,
        tag: str | None = None,
        agent: str | None = None,
        since: Micros | None = None,
        thread: tuple[str, str] | None = None,
    ) -> list[tuple[str, ModelCall]]:
        chosen = select(model_call.run_id, *MODEL_CALL_COLUMNS)
        if run is not None:
            chosen = chosen.where(model_call.run_id.in_(_descendants(run)))
        if tag is not None:
            # JSON text of a list of texts: a tag stands in it between quotes, written as JSON writes it.
            written = json.dumps(tag, ensure_ascii=False)
            tagged = select(run_io.run_id).where(run_io.tags.contains(written, autoescape=True))
            chosen = chosen.where(model_call.run_id.in_(tagged))
        if agent is not None:
            chosen = chosen.where(model_call.agent == agent)
        if thread is not None:
            chosen = chosen.where(_in_turns_of(*thread))
        if since is not None:
            chosen = chosen.where(model_call.started_at >= since)
        ordered = chosen.order_by(
            model_call.started_at, model_call.run_id, model_call.key, model_call.attempt
        )
        return [
            (row["run_id"], ModelCall(**{column.key: row[column.key] for column in MODEL_CALL_COLUMNS}))
            for row in await self._rows(ordered)
        ]

    async def list_budgets(self, *, now: Micros, name: str | None = None) -> list[BudgetState]:
        chosen = (
            select(*(budget[field] for field in BudgetState._fields))
            .where(or_(budget.ends_at > now, budget.ends_at.is_(None)), budget.name != OF_A_TURN)
            .order_by(budget.key, budget.period_start)
        )
        if name is not None:
            chosen = chosen.where(budget.name == name)
        return [BudgetState(**row) for row in await self._rows(chosen)]

    async def list_messages(
        self, app: str, thread: str, *, limit: int = 100, cursor: str | None = None
    ) -> Page[StoredMessage] | None:
        known = await self._rows(
            select(thread_columns.id).where(thread_columns.app == app, thread_columns.id == thread)
        )
        if not known:
            return None
        shown = (message.n, message.turn, message.run_id, message.data, message.created_at)
        chosen = select(*shown).where(message.app == app, message.thread_id == thread)
        rows, after = await self._page(chosen, (message.n, message.run_id), limit, cursor, newest_first=False)
        return _as_page([StoredMessage(**row) for row in rows], after)

    # -------------------------------------------------------------------------------------------- reading

    async def _page(
        self,
        chosen: Select[Any],
        key: tuple[ColumnElement[Any], ColumnElement[Any]],
        limit: int,
        cursor: str | None,
        *,
        newest_first: bool,
    ) -> tuple[Rows, str | None]:
        """One page in the order of `key`, and the cursor for the next."""
        limit = _checked(limit)
        of: str = key[1].table.name
        after = _decode_cursor(of, cursor)
        if after is not None:
            here, there = tuple_(*key), tuple_(*after)
            chosen = chosen.where(here < there if newest_first else here > there)
        order = [column.desc() if newest_first else column.asc() for column in key]
        rows = await self._rows(chosen.order_by(*order).limit(limit + 1))
        if len(rows) <= limit:
            return rows, None
        last = rows[limit - 1]
        return rows[:limit], _encode_cursor(of, tuple(last[column.key or ""] for column in key))


def _descendants(run_id: str) -> Select[Any]:
    tree = select(run.id).where(run.id == run_id).cte("tree", recursive=True)
    child = run.id.table.alias("child")
    tree = tree.union_all(select(child.c.id).where(child.c.parent_id == tree.c.id))
    return select(tree.c.id)


def _in_turns_of(app: str, thread: str) -> ColumnElement[bool]:
    """Model calls of a thread's turns, and of the runs that these invoked."""
    of_thread = and_(turn.app == app, turn.thread_id == thread)
    own = exists().where(of_thread, turn.run_id == model_call.run_id, _is_within(model_call.key, turn.scope))
    invoked = (
        select(run.id)
        .join_from(run.id.table, turn.run_id.table, turn.run_id == run.parent_id)
        .where(of_thread, _is_within(run.parent_key, turn.scope))
        .cte("invoked", recursive=True)
    )
    child = run.id.table.alias("child")
    invoked = invoked.union_all(select(child.c.id).where(child.c.parent_id == invoked.c.id))
    return or_(own, model_call.run_id.in_(select(invoked.c.id)))


def _is_within(key: ColumnElement[Any], scope: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a step's key begins with a turn's."""
    return func.substr(key, 1, func.length(scope)) == scope


def _as_page(items: list[Any], cursor: str | None) -> Page[Any]:
    return Page(data=items, cursor=cursor, has_more=cursor is not None)


def _checked(limit: int) -> int:
    if not 1 <= limit <= _LARGEST_PAGE:
        raise InvalidInput(f"limit={limit}: a page has 1 to {_LARGEST_PAGE} items")
    return limit


def _encode_cursor(of: str, key: tuple[Any, ...]) -> str:
    """`key` is where a page of that kind ended: a number, and an id."""
    text = json.dumps((of, *key), separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode_cursor(of: str, cursor: str | None) -> tuple[int, str] | None:
    """The sort key a cursor stands for. Anything that a page of that kind could not have given is `InvalidInput`."""
    if cursor is None:
        return None
    refused = InvalidInput(f"the cursor {cursor[:80]!r} is not one that a page of this list gave")
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        kind, number, last = json.loads(
            base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)
        )
    except (ValueError, TypeError, RecursionError):
        raise refused from None
    if (kind, type(number), type(last)) != (of, int, str) or abs(number) >= 2**63 or "\0" in last:
        raise refused
    if _encode_cursor(of, (number, last)) != cursor:
        raise refused
    return number, last
