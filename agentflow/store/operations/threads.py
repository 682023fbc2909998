"""Threads: one turn at a time, in the order in which they asked, and what each leaves behind.

The thread belongs to the first of its turns that has not ended, of a run that has not: no lock has to be given back by
a run that fails, is cancelled or removed. Whoever waits is woken by the end of a turn, and asks now and then besides.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from agentflow.keys import branch_of
from agentflow.store.hints import HintKind
from agentflow.store.operation_types import BeginTurn, EndTurn, ForgetThread, TurnEnd
from agentflow.store.operations.steps import store_step
from agentflow.store.outcome_types import Done, Exists, Fenced, Forgotten, ThreadTaken, TurnBegun
from agentflow.store.statements import threads as sql
from agentflow.store.statements.core import LOCK_NAME, READ_RUN, WAKE_RUN
from agentflow.store.stored_types import Micros, Status
from agentflow.store.transaction import RunState, Transaction, Work, fence

SHORTEST_WAIT, LONGEST_WAIT = 1_000_000, 30_000_000
"""Microseconds until who waits asks again unless it is woken: as long as it has waited."""


def lock_of_thread(app: str, thread: str) -> str:
    """The name under which a thread is held to the end of a transaction."""
    return f"thread:{app}/{thread}"


def begin_turn(tx: Transaction, op: BeginTurn) -> Work[TurnBegun | ThreadTaken | Fenced]:
    """Give the turn the thread, or its place behind others."""
    yield LOCK_NAME, {"name": lock_of_thread(op.app, op.thread)}
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return state
    thread = yield from _read(op.app, op.thread, op.now)
    n, asked_at = yield from _place(op, thread)
    for ahead in (yield from _open_turns(op.app, op.thread, op.now)):
        if ahead.n >= n:
            break
        is_deadlock = yield from _waits_for(ahead, op, state)
        pause = min(max(op.now - asked_at, SHORTEST_WAIT), LONGEST_WAIT)
        return ThreadTaken(op.now + pause, ahead.run_id, ahead.key, is_deadlock)
    where = {"app": op.app, "thread": op.thread, "first": thread.summary_upto}
    messages: list[Any] = yield sql.READ_MESSAGES, where
    said = tuple(row[0] for row in messages)
    return TurnBegun(thread.next_n, thread.summary_upto, thread.summary, said)


def end_turn(tx: Transaction, op: EndTurn) -> Work[Done | Exists | Fenced]:
    """Store the step, append the messages, and let the next one have the thread."""
    end, run_id, now = op.turn, op.run.run_id, op.step.ended_at
    yield LOCK_NAME, {"name": lock_of_thread(end.app, end.thread)}
    state = yield from fence(tx, op.run)
    if isinstance(state, Fenced):
        return state
    outcome = yield from store_step(run_id, op.step, state)
    if isinstance(outcome, Exists):
        return outcome
    if end.messages:
        yield from _append(end, run_id, now)
    yield sql.END_TURN, {"now": now, "run": run_id, "turn": end.key}
    waiting = yield from _open_turns(end.app, end.thread, now)
    if waiting:
        yield from _wake(tx, waiting[0].run_id, now)
    return outcome


def leave_turns(tx: Transaction, run_id: str, scopes: tuple[str, ...], now: Micros) -> Work[None]:
    """End the turns of branches that are withdrawn; they leave nothing behind. Who waits will find out by itself."""
    for (key,) in (yield sql.LIST_OWN_TURNS, {"run": run_id}):
        if key.startswith(scopes):
            yield sql.END_TURN, {"now": now, "run": run_id, "turn": key}


def forget_thread(tx: Transaction, op: ForgetThread) -> Work[Forgotten]:
    """Remove the thread and what was said on it."""
    yield LOCK_NAME, {"name": lock_of_thread(op.app, op.thread)}
    removed: list[Any] = yield sql.DELETE_MESSAGES, {"app": op.app, "thread": op.thread}
    known = yield sql.DELETE_THREAD, {"app": op.app, "id": op.thread}
    return Forgotten(len(removed) if known else None)


class _Thread(NamedTuple):
    next_n: int = 0
    next_turn: int = 0
    summary: str | None = None
    summary_upto: int = 0


class _OpenTurn(NamedTuple):
    n: int
    run_id: str
    key: str


def _read(app: str, thread: str, now: Micros) -> Work[_Thread]:
    new = {"app": app, "id": thread, "created_at": now, "updated_at": now}
    yield sql.INSERT_THREAD, {**new, **_Thread()._asdict()}
    [row] = yield sql.READ_THREAD, {"app": app, "id": thread}
    return _Thread(*row)


def _move(app: str, thread: str, to: _Thread, now: Micros) -> Work[None]:
    yield (
        sql.MOVE_THREAD,
        {
            "to_n": to.next_n,
            "to_turn": to.next_turn,
            "says": to.summary,
            "upto": to.summary_upto,
            "now": now,
            "of_app": app,
            "of_id": thread,
        },
    )


def _place(op: BeginTurn, thread: _Thread) -> Work[tuple[int, Micros]]:
    """The turn's number, and since when it has it."""
    rows = yield sql.READ_TURN, {"run": op.run.run_id, "key": op.key}
    if rows:
        n, asked_at, ended_at, *where = rows[0]
        if ended_at is None and where == [op.app, op.thread]:
            return n, asked_at
    yield from _keep_turn(op.app, op.thread, op.run.run_id, op.key, n=thread.next_turn, now=op.now)
    yield from _move(op.app, op.thread, thread._replace(next_turn=thread.next_turn + 1), op.now)
    return thread.next_turn, op.now


def _keep_turn(
    app: str, thread: str, run_id: str, key: str, *, n: int, now: Micros, ended_at: Micros | None = None
) -> Work[None]:
    made = {"run_id": run_id, "key": key, "scope": _scope_of(key), "app": app, "thread_id": thread, "n": n}
    yield sql.UPSERT_TURN, {**made, "asked_at": now, "ended_at": ended_at}


def _open_turns(app: str, thread: str, now: Micros) -> Work[list[_OpenTurn]]:
    """The turns that have not ended, the first of which has the thread; those of runs that have ended end here."""
    found: list[_OpenTurn] = []
    for n, run_id, key, status in (yield sql.LIST_OPEN_TURNS, {"app": app, "thread": thread}):
        if status is None or status >= Status.COMPLETED:
            yield sql.END_TURN, {"now": now, "run": run_id, "turn": key}
        else:
            found.append(_OpenTurn(n, run_id, key))
    return found


def _waits_for(ahead: _OpenTurn, op: BeginTurn, state: RunState) -> Work[bool]:
    """Whether the turn ahead cannot end before this one does: this one is a step of it, or of a run that it invoked."""
    run_id, key = op.run.run_id, op.key
    while True:
        if run_id == ahead.run_id and _is_inside(key, ahead.key):
            return True
        if state.parent_id is None or state.parent_key is None:
            return False
        run_id, key = state.parent_id, state.parent_key
        rows = yield READ_RUN, {"id": run_id}
        if not rows:
            return False
        state = RunState(*rows[0])


def _is_inside(key: str, turn: str) -> bool:
    """Whether it is the key of a step of that turn."""
    scope, path, own = _scope_of(turn), branch_of(turn), branch_of(key)
    if not key.startswith(scope) or key.rpartition("/")[0] + "/" == scope:
        return False  # another turn that is called alike, in a task beside it
    return not path or own == path or own.startswith(f"{path}.")


def _scope_of(turn: str) -> str:
    return turn.rpartition("/")[0] + "/"


def _append(end: TurnEnd, run_id: str, now: Micros) -> Work[None]:
    thread = yield from _read(end.app, end.thread, now)
    rows = yield sql.READ_TURN, {"run": run_id, "key": end.key}
    if rows and rows[0][2] is None:
        turn, to_turn = rows[0][0], thread.next_turn
    else:
        # A rerun goes on from a history that was copied: its turn has no place yet.
        turn, to_turn = thread.next_turn, thread.next_turn + 1
        yield from _keep_turn(end.app, end.thread, run_id, end.key, n=turn, now=now, ended_at=now)
    for n, (role, data) in enumerate(end.messages, thread.next_n):
        where = {"app": end.app, "thread_id": end.thread, "n": n, "turn": turn, "run_id": run_id}
        yield sql.INSERT_MESSAGE, {**where, "role": role, "data": data, "created_at": now}
    moved = thread._replace(next_n=thread.next_n + len(end.messages), next_turn=to_turn)
    # What was summarised is counted from what the turn began with: only where that is still so does the number hold.
    if end.summary is not None and end.expected_n == thread.next_n and end.summary_upto > thread.summary_upto:
        moved = moved._replace(summary=end.summary, summary_upto=end.summary_upto)
    yield from _move(end.app, end.thread, moved, now)


def _wake(tx: Transaction, run_id: str, now: Micros) -> Work[None]:
    woken: list[Any] = yield WAKE_RUN, {"now": now, "run": run_id}
    if woken:
        tx.tell(HintKind.MAIL if woken[0][0] == Status.RUNNING else HintKind.READY, run_id)
