"""PostgreSQL: the writer's connection.

A batch of steps is one statement and one round trip, its fence included; so are one of starts and one of ends. Other
batches are a transaction that first takes its locks (the workers' rows, names, run rows, each in order) and then does
its work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from agentflow.crashpoints import point
from agentflow.store import operation_types as ops
from agentflow.store.batches import Fault
from agentflow.store.hints import Hint
from agentflow.store.operations.dispatch import apply, flow_keys_of, is_strict, workers_of
from agentflow.store.operations.runs import wake_parents
from agentflow.store.operations.threads import lock_of_thread
from agentflow.store.plan import Plan
from agentflow.store.postgres.connection import abandon, connect, is_conflict, is_outage
from agentflow.store.postgres.session import Session, end_session
from agentflow.store.postgres.vectors import (
    FENCE,
    Lease,
    commit_answer,
    commit_step,
    commit_steps,
    finish_run,
    finish_runs,
    send_signal,
    start_run,
    start_runs,
    write_asides,
    write_call,
)
from agentflow.store.statements import core as sql
from agentflow.store.statements.statement import Bundle, Params, Statement
from agentflow.store.transaction import Transaction, Work, lock_keys


class PostgresBackend:
    """The writer's connection."""

    def __init__(self, dsn: str, *, strict: bool, leases: dict[str, Lease]) -> None:
        self._dsn = dsn
        self._strict = strict
        self._leases = leases
        self._connection: asyncpg.Connection[Any]
        self._session: Session | None = None

    async def connect(self) -> None:
        connection = await connect(self._dsn, waits_for_disk=self._strict, plans_once=True)
        try:
            await end_session(connection, self._session)
            self._session = await Session.of(connection)
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection

    async def disconnect(self) -> None:
        self._connection.terminate()
        await asyncio.sleep(0)

    def diagnose(self, error: Exception) -> Fault:
        if is_conflict(error):
            return Fault.CONFLICT
        if is_outage(error) or self._connection.is_closed():
            return Fault.OUTAGE
        return Fault.POISON

    async def recover(self) -> None:
        """After an outage nothing is known of the connection: it is replaced, and what it did is found out by playing
        the batch again."""
        self._connection.terminate()
        await self.connect()

    async def commit(self, operations: Sequence[Any]) -> tuple[list[Any], list[Hint]]:
        point("before_commit")
        if self._connection.is_to_plan_again():
            await self._connection.execute("DISCARD PLANS")
        strict = any(is_strict(operation, by_default=self._strict) for operation in operations)
        plan = Plan.of(operations)
        hints: list[Hint] = []
        is_at_once = (
            plan.is_one_kind(operations) or _is_one_statement(operations) or _is_an_answer(operations)
        )
        if is_at_once and strict == self._strict:
            try:
                outcomes, hints = await self._commit_at_once(operations, plan)
            except BaseException as error:
                await abandon(self._connection, error)
                raise
            left = [index for index, outcome in enumerate(outcomes) if outcome is None]
            if left:
                # There already, or fenced: a transaction says which.
                rest = [operations[index] for index in left]
                told, more = await self._transact(rest, Plan(), strict=strict)
                hints += more
                for index, outcome in zip(left, told, strict=True):
                    outcomes[index] = outcome
        else:
            outcomes, hints = await self._transact(operations, plan, strict=strict)
        point("after_commit")
        return outcomes, hints

    async def _commit_at_once(self, operations: Sequence[Any], plan: Plan) -> tuple[list[Any], list[Hint]]:
        """One statement, one round trip."""
        tx = Transaction(frozenset())
        outcomes: list[Any] = [None] * len(operations)
        connection, leases, is_alone = self._connection, self._leases, len(operations) == 1
        match operations[0]:
            case _ if _is_an_answer(operations):
                done = await commit_answer(connection, tx, operations, leases)
                outcomes = [done] * len(operations)
            case ops.CommitStep() as step if is_alone:
                outcomes[0] = await commit_step(connection, step, leases)
            case ops.CommitStep():
                await commit_steps(connection, operations, plan.steps, leases, outcomes)
            case ops.StartRun() as start if is_alone:
                outcomes[0] = await start_run(connection, tx, start, leases)
            case ops.StartRun():
                await start_runs(connection, tx, operations, plan.starts, leases, outcomes)
            case ops.WriteModelCall() as call:
                outcomes[0] = await write_call(connection, call, leases)
            case ops.SendSignal() as signal:
                outcomes[0] = await send_signal(connection, tx, signal)
            case ops.Finish() as finish if is_alone:
                outcomes[0] = await finish_run(connection, tx, finish, leases)
            case ops.Finish():
                await finish_runs(connection, tx, operations, plan.finishes, leases, outcomes)
        return outcomes, tx.hints

    async def _transact(
        self, operations: Sequence[Any], plan: Plan, *, strict: bool
    ) -> tuple[list[Any], list[Hint]]:
        """Carry out the batch: what goes together by a statement each, the rest one by one."""
        connection = self._connection
        try:
            setting = "" if strict == self._strict else f"; SET LOCAL synchronous_commit = {_on(strict)}"
            await connection.execute(f"BEGIN{setting}")
            tx = Transaction(await alive(connection, workers_of(operations), self._leases))
            if len(operations) > 1 or isinstance(operations[0], ops.SendEvents | ops.TickSchedule):
                await drive(connection, _lock_in_order(tx, operations))
            outcomes: list[Any] = [None] * len(operations)
            if len(plan.starts) > 1:
                await start_runs(connection, tx, operations, plan.starts, self._leases, outcomes)
            if plan.asides:
                await write_asides(connection, tx, operations, plan.asides, self._leases, outcomes)
            if plan.steps:
                await commit_steps(connection, operations, plan.steps, self._leases, outcomes)
            if len(plan.finishes) > 1:
                parents = await finish_runs(connection, tx, operations, plan.finishes, self._leases, outcomes)
                await drive(connection, wake_parents(tx, parents))
            for index, operation in enumerate(operations):
                if outcomes[index] is None:
                    outcomes[index] = await drive(connection, apply(tx, operation))
            await connection.execute("COMMIT")
        except BaseException as error:
            await abandon(connection, error)
            raise
        return outcomes, tx.hints


def _is_one_statement(operations: Sequence[Any]) -> bool:
    """Whether it is one signal, and not from within a run; or one row of the ledger that no budget hears of."""
    if len(operations) != 1:
        return False
    [operation] = operations
    if isinstance(operation, ops.WriteModelCall):
        return not operation.reservations and operation.call.charges is None
    return isinstance(operation, ops.SendSignal) and operation.run is None


def _is_an_answer(operations: Sequence[Any]) -> bool:
    """Whether it is the answer of a model, after pieces of its run's stream; and no budget hears of it."""
    *told, last = operations
    if not isinstance(last, ops.CommitStep) or last.model_call is None or last.model_call.charges is not None:
        return False
    return all(isinstance(each, ops.AppendStream) and each.run == last.run for each in told)


def _on(value: bool) -> str:
    return "on" if value else "off"


async def alive(
    connection: asyncpg.Connection[Any], worker_ids: list[str], leases: dict[str, Lease]
) -> frozenset[str]:
    """Those of our workers whose lease holds; it cannot be taken from them before this transaction ends."""
    # Looked up once: another thread may take a lease from the dict meanwhile.
    held = {worker_id: lease.epoch for worker_id in worker_ids if (lease := leases.get(worker_id))}
    if not held:
        return frozenset()
    rows = await connection.fetch(FENCE, list(held), list(held.values()))
    return frozenset(row[0] for row in rows)


async def drive(connection: asyncpg.Connection[Any], work: Work[Any]) -> Any:
    """Carry out the statements of an operation one by one; gives its outcome."""
    try:
        statement, params = next(work)
        while True:
            statement, params = work.send(await answer(connection, statement, params))
    except StopIteration as stop:
        return stop.value


async def answer(
    connection: asyncpg.Connection[Any], statement: Statement | Bundle, params: Params | Sequence[Params]
) -> list[Any]:
    """What the work that asks for this statement is sent."""
    text, arguments = statement.postgres
    if not isinstance(params, Mapping):
        await connection.executemany(text, [arguments(each) for each in params])
        return []
    rows: list[Any] = await connection.fetch(text, *arguments(params))
    return Bundle.rows(rows[0]) if isinstance(statement, Bundle) else rows


def _lock_in_order(tx: Transaction, operations: Sequence[Any]) -> Work[None]:
    """Take the batch's locks in one order, so that two batches wait for each other instead of both being stuck."""
    names: dict[str, bool] = {}
    changed: set[str] = set()
    ended: set[str] = set()
    for operation in operations:
        if isinstance(operation, ops.SendEvents):
            for event in operation.events:
                names.setdefault(f"event:{event.name}", False)
        elif isinstance(operation, ops.SendSignal):
            names[f"signal:{operation.name}"] = True
        elif isinstance(operation, ops.RegisterWait):
            if operation.wait.kind == "signal":
                names[f"signal:{operation.wait.topic}"] = True
            elif operation.lookback_from is not None:
                names[f"event:{operation.wait.topic}"] = True
        elif isinstance(operation, ops.BeginModelCall | ops.SettleModelCall | ops.SlowModelCalls):
            names[f"model:{operation.provider}"] = True
        elif isinstance(operation, ops.BeginTurn | ops.ForgetThread):
            names[lock_of_thread(operation.app, operation.thread)] = True
        elif isinstance(operation, ops.EndTurn):
            names[lock_of_thread(operation.turn.app, operation.turn.thread)] = True
        elif isinstance(operation, ops.Suspend | ops.Release | ops.Adopt):
            changed.add(operation.run.run_id)
        elif isinstance(operation, ops.Finish):
            changed.add(operation.run.run_id)
            ended.add(operation.run.run_id)
        elif isinstance(operation, ops.CancelRun):
            changed.add(operation.run_id)
            ended.add(operation.run_id)
    yield from lock_keys(tx, (key for operation in operations for key in flow_keys_of(operation)))
    for name, alone in sorted(names.items()):
        yield sql.LOCK_NAME if alone else sql.SHARE_NAME, {"name": name}
    if changed:
        yield sql.LOCK_RUNS, {"ids": sorted(changed), "ended": sorted(ended)}
