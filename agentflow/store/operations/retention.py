"""Retention: runs that ended long ago are removed with all that is theirs, a few hundred in a transaction.

A run goes only when it has ended before the horizon and whoever invoked it has ended too. An event goes when it is as
old and no run that it started is left; never within the time in which its id still counts. A thread goes, as a whole,
when nothing was said on it since the horizon.
"""

from __future__ import annotations

from agentflow.store.operation_types import Prune, PruneLoose
from agentflow.store.operations.messages import DEDUP_MICROS
from agentflow.store.outcome_types import Pruned
from agentflow.store.statements import retention as sql
from agentflow.store.statements import threads
from agentflow.store.stored_types import Status
from agentflow.store.transaction import Transaction, Work


def prune(tx: Transaction, op: Prune) -> Work[Pruned]:
    """Look at the next runs from the cursor on, and remove those that may go."""
    after_time, after_id = op.after or (-1, "")
    rows = yield (
        sql.FIND_OLD_RUNS,
        {"before": op.before, "after_time": after_time, "after_id": after_id, "most": op.most},
    )
    old = [
        run_id
        for _, run_id, status, ended_at, has_live_parent in rows
        if status >= Status.COMPLETED and (ended_at or 0) < op.before and not has_live_parent
    ]
    if old:
        for statement in sql.DELETE_OF_RUNS:
            yield statement, {"ids": old}
        yield sql.DELETE_RUNS, {"ids": old}
    last = (rows[-1][0], rows[-1][1]) if len(rows) == op.most else None
    return Pruned(runs=len(old), after=last)


def prune_loose(tx: Transaction, op: PruneLoose) -> Work[Pruned]:
    """Remove old events and threads, and keys that nobody asks for any more."""
    before = min(op.before, op.now - DEDUP_MICROS)
    events = yield sql.DELETE_EVENTS, {"before": before, "most": op.most}
    old = yield threads.FIND_OLD_THREADS, {"before": op.before, "most": op.most}
    for app, thread in old:
        yield threads.DELETE_MESSAGES, {"app": app, "thread": thread}
        yield threads.DELETE_THREAD, {"app": app, "id": thread}
    has_more = op.most in (len(events), len(old))
    if not has_more:
        for statement in sql.DELETE_LOOSE:
            yield statement, {"before": before}
    return Pruned(events=len(events), after=(0, "") if has_more else None)
