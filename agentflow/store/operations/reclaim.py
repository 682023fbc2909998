"""Reclaim: take up again a run that has just left memory here, and whose journal is still known.

What a claim reads of a run is known but for what was delivered meanwhile. So this costs a fraction of a claim, and it
goes by the run's epoch: whatever else happened to the run, it changes nothing and a claim looks closely.
"""

from __future__ import annotations

from typing import NamedTuple

from agentflow.store.claim_types import Reclaimed
from agentflow.store.operations.delivery import number_unread, store_numbers
from agentflow.store.statements import core as sql
from agentflow.store.statements import workers as worker_sql
from agentflow.store.stored_types import Micros, RunKey
from agentflow.store.transaction import Transaction, Work, stored_step


class Reclaim(NamedTuple):
    """Take that run, if it is ready and nobody has had it since `last`, the key under which it left memory."""

    last: RunKey
    worker_id: str
    next_seq: int
    """The number of the first of its steps that were delivered meanwhile."""
    now: Micros


def reclaim(tx: Transaction, op: Reclaim) -> Work[Reclaimed | None]:
    """Take the run, and number what was delivered; `None` where a claim has to look."""
    if op.worker_id not in tx.alive:
        return None
    run_id = op.last.run_id
    params = {"by": op.worker_id, "run": run_id, "at_epoch": op.last.epoch, "now": op.now}
    rows = yield worker_sql.RECLAIM_RUN, params
    if not rows:
        return None
    [(epoch, mail)] = rows
    unread = yield sql.READ_UNREAD, {"run": run_id, "first": 0, "beyond": 0}
    steps = number_unread((stored_step(row) for row in unread), op.next_seq)
    yield from store_numbers((run_id, step) for step in steps)
    return Reclaimed(epoch, mail, steps)
