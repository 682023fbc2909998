"""Gates: what a claimed run has to pass before it executes, and who is let through when one has passed.

A concurrency key has as many slots as its limit; a run holds one of each of its keys while it executes, and only then.
A run that finds none stands in the lane of that key, outside of what claims look at; whoever gives a slot back, or
leaves although a slot was free, lets the first of the lane through, in the same transaction and under the key's lock.

A throttle lets one run begin in an interval (GCRA: the row keeps the theoretical arrival time of the next one). The
first runs of its lane are given the times at which they may begin; the last of these, when it begins, gives the next
ones theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from agentflow.store.hints import HintKind
from agentflow.store.operations.admission import LAG, reason_of
from agentflow.store.protocol import NO_GATES
from agentflow.store.statements import flow as flow_sql
from agentflow.store.stored_types import UNPLANNED, GateLimits, Gates
from agentflow.store.transaction import Transaction, Work, lock_keys

AHEAD_MICROS = 500_000
"""Runs that may begin within this time are given their times together."""
MOST_AHEAD = 200
MOST_LET_THROUGH = 100
CATCH_UP = 25
"""A throttle that is behind gains one run in so many."""
LONGEST_STALL_MICROS = 10_000_000
"""What is longer was no stall: nobody worked, and nothing is made good."""


class Candidate(NamedTuple):
    """A run that was claimed, before its gates: its row as the claim gives it, and what it has to pass."""

    run_id: str
    function: str
    gates: Gates
    has_begun: bool


class TendLanes(NamedTuple):
    """Let through what stands before an open gate."""

    app: str
    functions: tuple[str, ...]
    now: int
    gates: Mapping[str, GateLimits]


def pass_gates(
    tx: Transaction,
    candidates: Sequence[Candidate],
    limits: Mapping[str, GateLimits],
    *,
    worker_id: str,
    now: int,
) -> Work[frozenset[str]]:
    """Let as many of the runs pass as there is room for, in their order; the others stand in a lane."""
    yield from lock_keys(tx, (key for each in candidates for key in each.gates.names()))
    visit = _Visit(limits, now)
    yield from visit.read_slots([key for each in candidates for key in each.gates.slots])
    passed: list[str] = []
    for candidate in candidates:
        lane = visit.full_slot(candidate)
        if lane is None:
            lane = yield from visit.full_throttle(candidate)
        if lane is None:
            yield from visit.take_slots(candidate)
            passed.append(candidate.run_id)
        else:
            visit.block(candidate, lane)
    for lane, run_ids in visit.blocked.items():
        yield flow_sql.BLOCK_RUNS, {"lane": lane, "why": reason_of(lane), "ids": run_ids, "by": worker_id}
    yield from visit.write_throttles(tx)
    for key in visit.left_open():
        yield from let_through(tx, key, now)
    return frozenset(passed)


def free_slots(tx: Transaction, run_ids: Collection[str], now: int, keys: Collection[str] = ()) -> Work[None]:
    """These runs execute no longer: their slots go to the first in the lanes. `keys` are theirs, where known."""
    yield from lock_keys(tx, keys)
    rows = yield flow_sql.FREE_SLOTS, {"ids": sorted(run_ids)}
    freed = [key for (key,) in rows]
    yield from lock_keys(tx, freed)
    for key in sorted(set(freed)):
        yield from let_through(tx, key, now, most=freed.count(key))


def leave_lanes(tx: Transaction, run_id: str, now: int) -> Work[None]:
    """A run ends that does not execute. If it was let through or had its time to begin, another takes its place."""
    rows = yield flow_sql.READ_GATES, {"id": run_id}
    if not rows or rows[0][0] in (None, UNPLANNED) or rows[0][1] is not None:
        return
    stored, _, started_at = rows[0]
    gates = Gates.from_json(stored)
    yield from lock_keys(tx, gates.names())
    for key in gates.slots:
        yield from let_through(tx, key, now)
    if gates.throttle is not None and started_at is None:
        yield from _pass_on(tx, gates.throttle, run_id, now)


def let_through(tx: Transaction, key: str, now: int, *, most: int = 1) -> Work[int]:
    """Let the first of a lane try again; how many there were. The key's lock is held."""
    rows = yield flow_sql.LET_THROUGH, {"lane": key, "most": most, "now": now}
    if rows:
        tx.tell(HintKind.READY)
    return len(rows)


def let_laggards_through(
    tx: Transaction, app: str, functions: Collection[str], most: int, now: int
) -> Work[int]:
    """Runs of negative priority begin when nobody else wants to."""
    found = 0
    for function in sorted(functions):
        if found < most:
            lane = f"{LAG}{app}/{function}"
            rows = yield flow_sql.LET_LAGGARDS_THROUGH, {"lane": lane, "most": most - found, "now": now}
            found += len(rows)
    return found


def tend_lanes(tx: Transaction, op: TendLanes) -> Work[int]:
    """Look at every lane in which runs of these functions stand; locks are taken only where something is to be done."""
    stale = yield flow_sql.FREE_STALE_SLOTS, {}
    for key in sorted({key for (key,) in stale}):
        yield from lock_keys(tx, [key])
        yield from let_through(tx, key, op.now)
    lanes = [lane for (lane,) in (yield flow_sql.LIST_LANES, {"after": ""}) if not lane.startswith(LAG)]
    found = 0
    for lane in lanes:
        heads = yield flow_sql.READ_HEAD, {"lane": lane, "app": op.app, "functions": op.functions}
        if heads:
            function, stored = heads[0]
            found += yield from _tend(tx, op, lane, Gates.from_json(stored), op.gates.get(function))
    return found


def _tend(tx: Transaction, op: TendLanes, lane: str, gates: Gates, limits: GateLimits | None) -> Work[int]:
    if limits is not None and lane == gates.throttle and limits.interval:
        return (yield from _tend_throttle(tx, op.now, lane, limits))
    room = yield from _room(lane, gates, limits)
    if room < 1:
        return 0
    yield from lock_keys(tx, [lane])
    room = yield from _room(lane, gates, limits)
    mine = {"lane": lane, "app": op.app, "functions": op.functions}
    rows = yield (
        flow_sql.LET_MINE_THROUGH,
        {**mine, "most": max(0, min(room, MOST_LET_THROUGH)), "now": op.now},
    )
    if rows:
        tx.tell(HintKind.READY)
    return len(rows)


def _room(lane: str, gates: Gates, limits: GateLimits | None) -> Work[int]:
    """How many of the lane find a slot; a gate that its function no longer has is open."""
    if limits is None or lane not in gates.slots[: len(limits.slots)]:
        return MOST_LET_THROUGH
    taken = yield flow_sql.COUNT_SLOTS, {"keys": [lane]}
    return limits.slots[gates.slots.index(lane)] - (taken[0][1] if taken else 0)


def _tend_throttle(tx: Transaction, now: int, lane: str, limits: GateLimits) -> Work[int]:
    """Somebody of the lane has to have a time at which to begin."""
    throttle = yield from _Visit(now=now).throttle(lane, limits)
    if (yield from _is_scheduled(throttle.scheduled)):
        return 0
    yield from lock_keys(tx, [lane])
    throttle = yield from _Visit(now=now).throttle(lane, limits)
    if (yield from _is_scheduled(throttle.scheduled)):
        return 0
    return (yield from throttle.schedule(tx))


class _Visit:
    """One look at the gates: the slots taken, the throttles' times, and who is sent back to which lane."""

    def __init__(self, limits: Mapping[str, GateLimits] = NO_GATES, now: int = 0) -> None:
        self._limits = limits
        self._now = now
        self._taken: dict[str, int] = {}
        self._throttles: dict[str, _Throttle] = {}
        self._open: set[str] = set()
        self.blocked: dict[str, list[str]] = {}

    def read_slots(self, keys: Collection[str]) -> Work[None]:
        if keys:
            for key, taken in (yield flow_sql.COUNT_SLOTS, {"keys": sorted(set(keys))}):
                self._taken[key] = taken

    def full_slot(self, candidate: Candidate) -> str | None:
        """The first of its keys that has no slot left."""
        limits = self._limits[candidate.function].slots
        for key, limit in zip(candidate.gates.slots, limits, strict=False):
            if self._taken.get(key, 0) >= limit:
                return key
        return None

    def full_throttle(self, candidate: Candidate) -> Work[str | None]:
        """The throttle's key, if the run's time has not come; else its begin is noted."""
        limits, key = self._limits[candidate.function], candidate.gates.throttle
        if key is None or not limits.interval or candidate.has_begun:
            return None
        throttle = yield from self.throttle(key, limits)
        return None if throttle.take(candidate.run_id) else key

    def throttle(self, key: str, limits: GateLimits) -> Work[_Throttle]:
        if key not in self._throttles:
            rows = yield flow_sql.READ_BUCKET, {"key": key}
            tat, behind, scheduled = rows[0] if rows else (0, 0, None)
            self._throttles[key] = _Throttle(key, limits, self._now, tat, behind, scheduled)
        return self._throttles[key]

    def take_slots(self, candidate: Candidate) -> Work[None]:
        for key in candidate.gates.slots[: len(self._limits[candidate.function].slots)]:
            self._taken[key] = self._taken.get(key, 0) + 1
            yield flow_sql.INSERT_SLOT, {"key": key, "run_id": candidate.run_id}

    def block(self, candidate: Candidate, lane: str) -> None:
        self.blocked.setdefault(lane, []).append(candidate.run_id)
        # It may have been let through one of its gates to be stopped at another: the first one is still open.
        self._open.update(key for key in candidate.gates.slots if key != lane)

    def left_open(self) -> list[str]:
        return sorted(self._open - self.blocked.keys())

    def write_throttles(self, tx: Transaction) -> Work[None]:
        for key in sorted(self._throttles):
            throttle = self._throttles[key]
            needs = throttle.needs_more or (
                key in self.blocked and not (yield from _is_scheduled(throttle.scheduled))
            )
            if needs:
                yield from throttle.schedule(tx)
            elif throttle.was_taken:
                yield from throttle.write()


class _Throttle:
    """A throttle's row, under its lock."""

    def __init__(
        self, key: str, limits: GateLimits, now: int, tat: int, behind: int, scheduled: str | None
    ) -> None:
        self._key = key
        self._limits = limits
        self._now = now
        self._tat = tat
        self._behind = behind
        self.scheduled = scheduled
        """The last run that was given a time."""
        self.was_taken = False
        self.needs_more = False

    def take(self, run_id: str) -> bool:
        """Begin a run, if the time has come."""
        next_at = self._next_at(self._tat)
        if next_at > self._now:
            return False
        if self.scheduled is None:
            self._behind = 0
            self._tat = max(self._tat, self._now)
        else:
            # Others wait: that this one comes late is our fault. A little does not move the rest; what is more is
            # made good by and by, a little faster than the rate.
            late = self._now - next_at - self._limits.slack
            if late > 0:
                self._tat += late
                self._behind += late if late < LONGEST_STALL_MICROS else 0
        self._step()
        self.was_taken = True
        if self.scheduled in (None, run_id):
            self.needs_more = True
        return True

    def schedule(self, tx: Transaction) -> Work[int]:
        """Give the first of the lane their times."""
        most = max(1, min(MOST_AHEAD, AHEAD_MICROS // self._limits.interval))
        heads = yield flow_sql.LANE_HEADS, {"lane": self._key, "most": most}
        self.scheduled = None
        kept = self._tat, self._behind
        for (run_id,) in heads:
            at = max(self._next_at(self._tat), self._now)
            yield flow_sql.SCHEDULE_RUN, {"at": at, "run": run_id, "lane": self._key}
            self.scheduled = run_id
            self._step()
        self._tat, self._behind = kept
        if heads:
            tx.tell(HintKind.READY)
        yield from self.write()
        return len(heads)

    def write(self) -> Work[None]:
        row = {"key": self._key, "tat": self._tat, "behind": self._behind, "run_id": self.scheduled}
        yield flow_sql.WRITE_BUCKET, row

    def _next_at(self, tat: int) -> int:
        return tat - (self._limits.burst - 1) * self._limits.interval

    def _step(self) -> None:
        made_good = min(self._behind, self._limits.interval // CATCH_UP)
        self._behind -= made_good
        self._tat += self._limits.interval - made_good


def _pass_on(tx: Transaction, key: str, run_id: str, now: int) -> Work[None]:
    """The last run that was given a time will not begin: any of the lane may take it; when is looked at then."""
    rows = yield flow_sql.READ_BUCKET, {"key": key}
    if rows and rows[0][2] == run_id:
        tat, behind, _ = rows[0]
        let = yield flow_sql.LANE_HEADS, {"lane": key, "most": 1}
        scheduled = None
        for (head,) in let:
            yield flow_sql.SCHEDULE_RUN, {"at": now, "run": head, "lane": key}
            scheduled = head
            tx.tell(HintKind.READY)
        yield flow_sql.WRITE_BUCKET, {"key": key, "tat": tat, "behind": behind, "run_id": scheduled}


def _is_scheduled(run_id: str | None) -> Work[bool]:
    """Whether the run that was given a time last has still to begin."""
    if run_id is None:
        return False
    return bool((yield flow_sql.IS_SCHEDULED, {"id": run_id}))
