"""PostgreSQL: a run that is taken up again by one statement."""

from __future__ import annotations

from typing import Any

from agentflow.store.claim_types import Reclaimed
from agentflow.store.operations.reclaim import Reclaim
from agentflow.store.postgres.vectors import OWN_LEASE
from agentflow.store.stored_types import Status
from agentflow.store.transaction import stored_step

# What is delivered between this statement's snapshot and its lock is not among `numbered`, and counts in `mail`.
_RECLAIM = f"""
    {OWN_LEASE},
    taken AS MATERIALIZED (
        UPDATE agentflow_run r SET status = {int(Status.RUNNING)}, owner = $1, epoch = r.epoch + 1, reason = NULL
        WHERE r.id = $3 AND r.epoch = $4 AND r.status + 0 = {int(Status.QUEUED)} AND r.ready_at <= $5
        AND r.cancel_at IS NULL AND r.crash_count = 0 AND r.blocked_on IS NULL AND EXISTS (SELECT 1 FROM me)
        AND NOT EXISTS (
            SELECT 1 FROM agentflow_function f WHERE f.app = r.app AND f.id = r.function AND f.paused_at IS NOT NULL
        )
        RETURNING r.id, r.epoch, r.mail
    ),
    unread AS (
        SELECT s.run_id, s.key, $6::bigint - 1 + row_number() OVER (ORDER BY s.ended_at, s.key COLLATE "C") AS seq
        FROM agentflow_step s JOIN taken ON s.run_id = taken.id WHERE s.seq IS NULL
    ),
    numbered AS (
        UPDATE agentflow_step s SET seq = u.seq FROM unread u WHERE s.run_id = u.run_id AND s.key = u.key
        RETURNING s.key, s.seq, s.kind, s.name, s.ok, s.output, s.error, s.attempt, s.started_at, s.ended_at
    )
    SELECT taken.epoch, taken.mail, n.* FROM taken LEFT JOIN numbered n ON true ORDER BY n.seq
"""


async def reclaim_run(connection: Any, operation: Reclaim, lease_epoch: int) -> Reclaimed | None:
    """As `operations_reclaim.reclaim`, the fence included."""
    last = operation.last
    rows = await connection.fetch(
        _RECLAIM,
        operation.worker_id,
        lease_epoch,
        last.run_id,
        last.epoch,
        operation.now,
        operation.next_seq,
    )
    if not rows:
        return None
    epoch, mail = rows[0][:2]
    steps = tuple(stored_step(row[2:]) for row in rows if row["key"] is not None)
    return Reclaimed(epoch, mail, steps)
