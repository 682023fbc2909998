"""What becomes of a start under flow control when it is stored: a run, a part of another run, or none.

Whoever looks at a key holds its lock to the end of the transaction, so that of two starts one sees the other.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from agentflow.store.statements import core as sql
from agentflow.store.statements import flow as flow_sql
from agentflow.store.stored_types import CollectRule, NewRun, RateRule, SingletonRule, Status
from agentflow.store.transaction import RunState, Transaction, Work, lock_keys

KEY_LIFETIME = 24 * 3600 * 1_000_000
MOST_EXACT = 1000
"""Up to this limit a rate limit keeps the time of each run; above it the runs of a thousandth of the period."""
LAG = "lag:"


class Fresh(NamedTuple):
    """Store it; these runs of a singleton are cancelled for it."""

    run: NewRun
    cancels: tuple[str, ...] = ()
    reason: str | None = None
    lane: str | None = None
    """Where it stands at once: behind others, or among those that a gate holds back already."""


class Joined(NamedTuple):
    """It is a part of this run."""

    run_id: str


class Dropped(NamedTuple):
    """It is stored as skipped."""

    reason: str


Verdict = Fresh | Joined | Dropped


def admit(tx: Transaction, run: NewRun, now: int, *, epoch: int = 0) -> Work[Verdict]:
    """Apply the rules of the run's function, in the order in which a run can still be dropped.

    `epoch` is that of a run that is stored already, and was claimed to be planned.
    """
    admission = run.admission
    if admission is None:
        return Fresh(run)
    yield from lock_keys(tx, admission.looks_at())
    if admission.idempotency is not None:
        known = yield from _find_idempotency(run, admission.idempotency, now)
        if known is not None:
            return Dropped(f"idempotency: run {known} had the key {admission.idempotency}")
    if admission.collect is not None:
        joined = yield from _join(run, admission.collect, now)
        if joined is not None:
            yield from _keep_idempotency(run, joined, now)
            return Joined(joined)
    held_by = None
    if admission.singleton is not None:
        held_by = yield from _holder_of(admission.singleton, run.id)
        if held_by is not None and not admission.singleton.cancels:
            return Dropped(f"singleton: run {held_by} has not ended")
    if admission.rate is not None and not (yield from _take_from_rate(admission.rate, now)):
        return Dropped(_rate_reason(admission.rate))
    if admission.singleton is not None:
        yield flow_sql.WRITE_HOLDER, _holder(admission.singleton.key, run.id, now)
    yield from _keep_idempotency(run, run.id, now)
    reason = None
    if admission.collect is not None:
        rule = admission.collect
        if rule.most != 1:
            yield flow_sql.WRITE_HOLDER, _holder(rule.key, run.id, now, epoch=epoch)
            run = _due_at(run, run.ready_at + rule.wait)
            reason = _collect_reason(rule)
    lane = None
    if reason is None:
        lane = yield from _lane_of(run, now)
        reason = None if lane is None else reason_of(lane)
    return Fresh(run, () if held_by is None else (held_by,), reason, lane)


def reason_of(lane: str) -> str:
    """What a run in this lane waits for."""
    kind, _, key = lane.partition(":")
    if lane.startswith(LAG):
        return "priority: goes behind others"
    return f"{'concurrency' if kind == 'slot' else kind}: waits for its turn under {key}"


def _lane_of(run: NewRun, now: int) -> Work[str | None]:
    """The lane that a run joins when it is stored, so that claims need not look at it."""
    assert run.admission is not None
    if run.admission.lags:
        return f"{LAG}{run.app}/{run.function}"
    if run.ready_at > now:
        return None
    for key in run.admission.gates.names():
        if (yield flow_sql.IS_LANE, {"lane": key}):
            return key
    return None


def _find_idempotency(run: NewRun, value: str, now: int) -> Work[str | None]:
    """The run that has the key, if it still counts."""
    key = {"app": run.app, "function": run.function, "key": f"flow:{value}"}
    rows = yield sql.READ_KEY, key
    if not rows or rows[0][0] == run.id or rows[0][2] <= now:
        return None
    return str(rows[0][0])


def _keep_idempotency(run: NewRun, run_id: str, now: int) -> Work[None]:
    """Keep the key for 24 hours: the run is not dropped any more."""
    if run.admission is None or run.admission.idempotency is None:
        return
    key, until = f"flow:{run.admission.idempotency}", now + KEY_LIFETIME
    of = {"of_app": run.app, "of_function": run.function, "of_key": key}
    row = {
        "app": run.app,
        "function": run.function,
        "key": key,
        "run_id": run_id,
        "digest": "",
        "until": until,
    }
    if not (yield sql.INSERT_KEY, row):
        yield sql.RENEW_KEY, {"new_run": run_id, "new_digest": "", "new_until": until, **of}


def _due_at(run: NewRun, ready_at: int) -> NewRun:
    """The run, to begin later: so is the time by which it has to."""
    start_by = None if run.start_by is None else run.start_by + ready_at - run.ready_at
    return run._replace(ready_at=ready_at, start_by=start_by)


def _join(run: NewRun, rule: CollectRule, now: int) -> Work[str | None]:
    """Join the run that collects for this key, if there is one that was never claimed."""
    joined = yield flow_sql.READ_JOINED, {"id": run.id}
    if joined:  # played again
        return str(joined[0][0])
    rows = yield flow_sql.READ_HOLDER, {"key": rule.key}
    if not rows:
        return None
    holder, since, size, epoch = rows[0]
    if holder == run.id:
        return None
    if rule.most is None:
        ready_at = run.ready_at + rule.wait
        if rule.longest is not None:
            ready_at = min(ready_at, since + rule.longest)
    else:
        ready_at = now if size + 1 >= rule.most else since + rule.wait
    assert run.admission is not None
    # Of a debounced run the last start decides what it has to pass.
    gates = run.admission.gates.to_json() if rule.most is None else None
    put_off = yield (
        flow_sql.PUT_OFF,
        {
            "ready": ready_at,
            "start_by": _due_at(run, ready_at).start_by,
            "new_gates": gates,
            "run": holder,
            "at_epoch": epoch,
        },
    )
    if not put_off:
        return None
    event = None
    if rule.most is None:
        yield from _replace_input(holder, run)
    else:
        event = json.dumps([run.trigger, run.input], ensure_ascii=False)
    yield flow_sql.INSERT_JOINED, {"id": run.id, "run_id": holder, "n": size, "event": event}
    if rule.most is not None and size + 1 >= rule.most:
        yield flow_sql.DROP_HOLDER, {"key": rule.key}
    else:
        yield flow_sql.WRITE_HOLDER, _holder(rule.key, holder, since, size=size + 1, epoch=epoch)
    return str(holder)


def _replace_input(run_id: str, run: NewRun) -> Work[None]:
    """The last start wins: its data, its event, and what cancels it."""
    tags = json.dumps(run.tags, ensure_ascii=False) if run.tags else None
    yield (
        flow_sql.REPLACE_INPUT,
        {"new_input": run.input, "new_trigger": run.trigger, "new_tags": tags, "run": run_id},
    )
    yield sql.DELETE_WAITS, {"run": run_id}
    for wait in run.cancel_on:
        yield sql.INSERT_WAIT, {"run_id": run_id, **wait._asdict()}


def _holder_of(rule: SingletonRule, run_id: str) -> Work[str | None]:
    """The run that holds the key, unless that has ended."""
    rows = yield flow_sql.READ_HOLDER, {"key": rule.key}
    if not rows or rows[0][0] == run_id:
        return None
    state = yield sql.READ_RUN, {"id": rows[0][0]}
    if not state or RunState(*state[0]).status >= Status.COMPLETED:
        return None
    return str(rows[0][0])


def _take_from_rate(rule: RateRule, now: int) -> Work[bool]:
    """Note one more run, if fewer than the limit began within the period before `now`."""
    rows = yield flow_sql.READ_RATE, {"key": rule.key}
    grain = 1 if rule.limit <= MOST_EXACT else max(1, rule.period // MOST_EXACT)
    log = [entry for entry in (json.loads(rows[0][0]) if rows else ()) if entry[0] > now - rule.period]
    if sum(runs for _, runs in log) >= rule.limit:
        return False
    # The end of its grain: a run counts for no less than the period.
    moment = now if grain == 1 else (now // grain + 1) * grain
    if log and log[-1][0] >= moment:
        log[-1][1] += 1
    else:
        log.append([moment, 1])
    text = json.dumps(log, separators=(",", ":"))
    yield flow_sql.WRITE_RATE, {"key": rule.key, "log": text, "at": now + rule.period}
    return True


def _holder(key: str, run_id: str, since: int, *, size: int = 1, epoch: int = 0) -> dict[str, Any]:
    return {"key": key, "run_id": run_id, "since": since, "size": size, "epoch": epoch}


def _rate_reason(rule: RateRule) -> str:
    return f"rate_limit: {rule.limit} run(s) in {rule.period / 1e6:g} s have begun"


def _collect_reason(rule: CollectRule) -> str | None:
    if rule.most is None:
        return f"debounce: begins when {rule.wait / 1e6:g} s have passed without another"
    return f"batch: begins with {rule.most} events, or {rule.wait / 1e6:g} s after the first"
