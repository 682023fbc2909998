"""Which runs a worker may take next: the claim index, read as a stream of runs for each function.

A stream holds what can be claimed of one function, in order; suspects are in streams of their own. A claim takes what
comes first in all the streams that it may take from, and follows none of them further than it has to. What is due of a
function that is paused, or that this worker does not know, is in a stream that nobody reads: it costs nothing, however
much it is.
"""

from __future__ import annotations

from sqlalchemy import CTE, TextClause
from sqlalchemy import text as raw_text

from agentflow.clock import NEVER
from agentflow.store.rows import CLAIMABLE, SUSPECTED
from agentflow.store.statements.core import run
from agentflow.store.statements.statement import Flavour

# Word for word what the index has, or the databases do not see that it is meant.
_CLAIMABLE = f"r.{CLAIMABLE.text}"
_SUSPECTED = SUSPECTED.text.replace("crash_count", "r.crash_count")

_HAS_SUSPECT = (
    f"EXISTS (SELECT 1 FROM agentflow_run AS r WHERE r.owner = :p_by AND r.status = 1 AND {_SUSPECTED} = 1)"
)
"""Whether the claiming worker executes a suspect now."""
_ANY_SUSPECT = (
    f"EXISTS (SELECT 1 FROM agentflow_run AS r WHERE r.app = :p_app AND {_SUSPECTED} = 1 AND {_CLAIMABLE})"
)
"""Nearly always there is none, and then no function needs to be asked for its suspects."""
_PAUSED = """(
    SELECT agentflow_function.id FROM agentflow_function
    WHERE agentflow_function.app = :p_app AND agentflow_function.paused_at IS NOT NULL
)"""
_FUNCTIONS = {
    False: "json_each(:p_json_functions) AS listed",
    True: "unnest(CAST(:p_functions AS text[])) AS listed(value)",
}


def ready(d: Flavour) -> CTE:
    """The ids of the first `limit` runs of `functions` that are due, by (ready_at, id); on PostgreSQL locked."""
    return raw_text(_LOCKED if d.is_postgres else _MERGED).columns(run.id).cte("ready")


def next_ready(d: Flavour) -> TextClause:
    """The earliest `ready_at` of what can be claimed, or null."""
    head = _of_stream("r.ready_at", where=f"r.ready_at < {NEVER}")
    streams = _streams(is_postgres=d.is_postgres, with_suspects=_ANY_SUSPECT)
    return raw_text(
        f"SELECT min(head.ready_at) FROM (SELECT ({head}) AS ready_at FROM {streams} "
        f"WHERE stream.function NOT IN {_PAUSED}) AS head"
    )


def _streams(*, is_postgres: bool, with_suspects: str) -> str:
    return (
        "(SELECT kind.suspect, listed.value AS function "
        f"FROM (SELECT 0 AS suspect UNION ALL SELECT 1 WHERE {with_suspects}) AS kind "
        f"CROSS JOIN {_FUNCTIONS[is_postgres]}) AS stream"
    )


def _of_stream(columns: str, *, where: str, most: str = "1") -> str:
    return (
        f"SELECT {columns} FROM agentflow_run AS r WHERE r.app = :p_app AND {_SUSPECTED} = stream.suspect "
        f"AND r.function = stream.function AND {_CLAIMABLE} AND {where} ORDER BY r.ready_at, r.id LIMIT {most}"
    )


# SQLite: nobody else writes meanwhile. A recursive query with an order is a queue; in it is the next run of each
# stream, and whichever leaves it lets the one behind it in.
_MERGED = f"""
WITH RECURSIVE taken(suspect, function, ready_at, id) AS (
    SELECT stream.suspect, stream.function, head.ready_at, head.id
    FROM {_streams(is_postgres=False, with_suspects=f"{_ANY_SUSPECT} AND NOT {_HAS_SUSPECT}")}
    CROSS JOIN agentflow_run AS head
    WHERE head.id = ({_of_stream("r.id", where="r.ready_at <= :p_now")}) AND head.function NOT IN {_PAUSED}
    UNION ALL
    SELECT stream.suspect, stream.function, behind.ready_at, behind.id
    FROM taken AS stream CROSS JOIN agentflow_run AS behind
    WHERE behind.id = ({
    _of_stream("r.id", where="r.ready_at <= :p_now AND (r.ready_at, r.id) > (stream.ready_at, stream.id)")
})
    ORDER BY 3, 4 LIMIT :p_limit
)
SELECT id FROM taken
"""

_AFTER = "(r.ready_at, r.id) > (page.ready_at, page.id)"

# PostgreSQL: others claim at the same time. What they have locked is passed over, and others looked at instead: `page`
# is asked for the `limit` runs that come next until as many are locked, and none is locked that is not taken. All joins
# are by LATERAL, which leaves the planner no choice that it would regret when the table has grown.
_LOCKED = f"""
WITH RECURSIVE page(ids, ready_at, id, is_last) AS (
    SELECT CAST(ARRAY[] AS text[]), CAST('-9223372036854775808' AS bigint), CAST('' AS text), false
    UNION ALL
    SELECT due.ids, due.times[cardinality(due.times)], due.ids[cardinality(due.ids)], cardinality(due.ids) < :p_limit
    FROM page CROSS JOIN LATERAL (
        SELECT array_agg(due.id) AS ids, array_agg(due.ready_at) AS times FROM (
            SELECT due.ready_at, due.id FROM (
                -- With so many streams, nothing that comes after the last one's first run is among the first.
                SELECT stream.suspect, stream.function, least(
                    :p_now, CASE WHEN count(*) OVER () >= :p_limit THEN max(stream.ready_at) OVER () END
                ) AS until FROM (
                    SELECT stream.suspect, stream.function, head.ready_at
                    FROM {_streams(is_postgres=True, with_suspects=f"{_ANY_SUSPECT} AND NOT {_HAS_SUSPECT}")}
                    CROSS JOIN LATERAL (
                        {_of_stream("r.ready_at, r.id", where=f"r.ready_at <= :p_now AND {_AFTER}")}
                    ) AS head
                    WHERE stream.function NOT IN {_PAUSED}
                    ORDER BY head.ready_at, head.id LIMIT :p_limit
                ) AS stream
            ) AS stream CROSS JOIN LATERAL (
                {_of_stream("r.ready_at, r.id", where=f"r.ready_at <= stream.until AND {_AFTER}", most=":p_limit")}
            ) AS due
            ORDER BY due.ready_at, due.id LIMIT :p_limit
        ) AS due
    ) AS due
    WHERE NOT page.is_last
)
SELECT locked.id FROM page CROSS JOIN LATERAL unnest(page.ids) AS due(id) CROSS JOIN LATERAL (
    SELECT r.id FROM agentflow_run AS r
    -- Looked at again under the lock, in words that no index has but that of the ids.
    WHERE r.id = due.id AND r.status <> 1 AND r.status < 4 AND r.ready_at <= :p_now
        AND ({_SUSPECTED} = 0 OR NOT {_HAS_SUSPECT})
    FOR UPDATE SKIP LOCKED
) AS locked LIMIT :p_limit
"""

__all__ = ["next_ready", "ready"]
