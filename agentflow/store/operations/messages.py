"""Events and signals: stored, starting runs, waking waits."""

from __future__ import annotations

import json

from agentflow.clock import to_datetime
from agentflow.store.conditions import Arriving, holds
from agentflow.store.operation_types import SendEvents, SendSignal
from agentflow.store.operations.delivery import Delivery, deliver
from agentflow.store.operations.runs import cancel_tree, insert_run
from agentflow.store.outcome_types import AlreadyBuffered, Delivered, Fenced, NobodyWaits, Sent, Started
from agentflow.store.statements import core as sql
from agentflow.store.stored_types import CANCEL_KIND, Json, NewEvent
from agentflow.store.transaction import Transaction, Work, fence

DEDUP_MICROS = 24 * 3600 * 1_000_000

_BUFFERED, _DELIVERED = 0, 1


def send_events(tx: Transaction, op: SendEvents) -> Work[Sent | Fenced]:
    """Store events, start their runs, wake the waits they match."""
    if op.run is not None:
        state = yield from fence(tx, op.run)
        if isinstance(state, Fenced):
            return state
    event_ids: list[str] = []
    run_ids: list[str] = []
    for event in op.events:
        event_id, started = yield from _send_event(tx, event, op.now)
        event_ids.append(event_id)
        run_ids.extend(started)
    return Sent(tuple(event_ids), tuple(run_ids))


def send_signal(tx: Transaction, op: SendSignal) -> Work[Delivered | NobodyWaits | AlreadyBuffered | Fenced]:
    """Give a signal to the one wait of its name, or keep it."""
    yield sql.LOCK_NAME, {"name": f"signal:{op.name}"}
    if op.run is not None:
        state = yield from fence(tx, op.run)
        if isinstance(state, Fenced):
            return state
    rows = yield sql.READ_SIGNAL, {"id": op.id}
    if rows:
        _, run_id, until = rows[0]
        # One that was buffered was answered so, wherever it went since.
        return Delivered(run_id if until is None else None)
    for run_id, key in (yield sql.FIND_SIGNAL_WAIT, {"name": op.name}):
        delivery = yield from deliver(tx, run_id, key, op.now, (True, signal_output(op.name, op.data), None))
        if delivery is Delivery.DONE:
            yield from _store_signal(op, _DELIVERED, run_id=run_id, until=None)
            return Delivered(run_id)
    if op.buffer_until is None:
        return NobodyWaits()
    yield sql.EXPIRE_BUFFERED, {"of_name": op.name, "now": op.now}
    stored = yield from _store_signal(op, _BUFFERED, run_id=None, until=op.buffer_until)
    return Delivered(None) if stored else AlreadyBuffered()


def signal_output(name: str, data: Json) -> Json:
    """What a wait for a signal resolves to."""
    return f'{{"name":{json.dumps(name, ensure_ascii=False)},"data":{data}}}'


def event_output(event_id: str, name: str, data: Json, ts: int) -> Json:
    """What a wait for an event resolves to."""
    texts = (json.dumps(text, ensure_ascii=False) for text in (name, event_id, to_datetime(ts).isoformat()))
    name_text, id_text, ts_text = texts
    return f'{{"name":{name_text},"data":{data},"id":{id_text},"ts":{ts_text}}}'


def find_matching_event(
    name: str, correlation: str | None, condition: str | None, *, since: int, run_id: str
) -> Work[tuple[str, str, Json, int] | None]:
    """The earliest stored event that fits, leaving out the one that started the run."""
    rows = yield sql.FIND_RECENT_EVENTS, {"name": name, "since": since, "run": run_id}
    for event_id, event_name, data, ts, dedup_key in rows:
        if correlation is not None and not _has_correlation(correlation, event_id, event_name, data, ts):
            continue
        if (yield from holds(condition, run_id, Arriving(dedup_key or event_id, event_name, data, ts))):
            return event_id, event_name, data, ts
    return None


def _send_event(tx: Transaction, event: NewEvent, now: int) -> Work[tuple[str, list[str]]]:
    # Shared among senders; a wait that looks back takes it alone, so that neither misses the other.
    yield sql.SHARE_NAME, {"name": f"event:{event.name}"}
    if event.dedup_key is not None:
        yield sql.RELEASE_DEDUP, {"dedup": event.dedup_key, "horizon": now - DEDUP_MICROS}
    rows = yield (
        sql.INSERT_EVENT,
        {
            "id": event.id,
            "name": event.name,
            "data": event.data,
            "ts": event.ts,
            "dedup_key": event.dedup_key,
            "source_run": event.source_run,
            "received_at": event.received_at,
        },
    )
    if not rows:
        return (yield from _sent_before(event))
    started: list[str] = []
    for run in event.starts:
        outcome = yield from insert_run(tx, run._replace(event_id=event.id), now)
        if isinstance(outcome, Started) and outcome.created:
            started.append(run.id)
    yield from _wake_waits(tx, event, now)
    return event.id, started


def _sent_before(event: NewEvent) -> Work[tuple[str, list[str]]]:
    """A duplicate of the user's starts nothing; our own event played again gives its first answer."""
    if event.dedup_key is not None:
        rows = yield sql.FIND_DUPLICATE, {"dedup": event.dedup_key}
        if rows and rows[0][0] != event.id:
            return rows[0][0], []
    runs = yield sql.READ_EVENT_RUNS, {"id": event.id}
    return event.id, [run_id for (run_id,) in runs]


def _wake_waits(tx: Transaction, event: NewEvent, now: int) -> Work[None]:
    """Wake what waits for the event and cancel what it cancels; but none of the runs that it has just started."""
    if event.correlations is None:
        waits = yield sql.FIND_ALL_EVENT_WAITS, {"name": event.name}
    else:
        waits = yield sql.FIND_EVENT_WAITS, {"name": event.name, "correlations": event.correlations}
    if not waits:
        return
    output = event_output(event.id, event.name, event.data, event.ts)
    started = {run.id for run in event.starts}
    cancelled: list[str] = []
    arriving = Arriving(event.dedup_key or event.id, event.name, event.data, event.ts)
    for run_id, key, kind, correlation, deadline, condition in waits:
        if run_id in started or (kind == CANCEL_KIND and deadline <= now):
            continue
        is_checked = event.correlations is not None or correlation is None
        if not is_checked and not _has_correlation(correlation, event.id, event.name, event.data, event.ts):
            continue
        if not (yield from holds(condition, run_id, arriving)):
            continue
        if kind == CANCEL_KIND:
            cancelled.append(run_id)
        else:
            yield from deliver(tx, run_id, key, now, (True, output, None))
    if cancelled:
        yield from cancel_tree(tx, cancelled, f"event {event.name!r} ({event.id})", now)


def _has_correlation(correlation: str, event_id: str, name: str, data: Json, ts: int) -> bool:
    from agentflow.matching import has_correlation

    return has_correlation(json.loads(event_output(event_id, name, data, ts)), correlation)


def _store_signal(op: SendSignal, state: int, *, run_id: str | None, until: int | None) -> Work[bool]:
    rows = yield (
        sql.INSERT_SIGNAL,
        {
            "id": op.id,
            "name": op.name,
            "data": op.data,
            "state": state,
            "run_id": run_id,
            "until": until,
            "sent_at": op.now,
        },
    )
    return bool(rows)
