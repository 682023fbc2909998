"""Functions under flow control, the events that a world sends them, and what must have become of every one.

An event of a kind names its key, its number under that key, and perhaps a priority. What is looked at when all is over
is the order in which the events were committed, which is the file's own: a key's events go out one after the other.
"""

from __future__ import annotations

import itertools
import json
import random
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from agentflow.app import App
from agentflow.context import Context
from agentflow.flow import (
    Batch,
    CancelOn,
    Concurrency,
    CronTick,
    Debounce,
    Idempotency,
    RateLimit,
    RunFailure,
    Singleton,
    Throttle,
    Timeouts,
)
from agentflow.step import Step
from agentflow.triggers import cron, on_event
from tests.simulation.bodies import work

COMPLETED, FAILED, CANCELLED, SKIPPED = 4, 5, 6, 7
QUIET, LONGEST, FLUSH, INTERVAL, PERIOD, PATIENCE = 1.5, 3.0, 2.0, 1.5, 4.0, 2.0
MOST = 3
"""Of a batch."""
RATE = 2
SHARED_LIMIT = 2
STOP = "sim/stop"


class Sent(NamedTuple):
    """An event as it was committed. Times are seconds."""

    n: int
    key: str
    priority: int
    at: float
    runs: tuple[str, ...]


class Started(NamedTuple):
    """A run of a kind's function."""

    id: str
    function: str
    status: int
    created_at: float
    started_at: float | None
    ended_at: float
    reason: str
    output: Any


@dataclass(frozen=True)
class Seen:
    """What became of the events under one key: both in the order in which they were committed or created."""

    events: list[Sent]
    runs: dict[str, Started]
    stops: list[Sent]

    def of_function(self, *statuses: int) -> list[Started]:
        return [run for run in self.runs.values() if run.status in statuses]


@dataclass(frozen=True)
class Kind:
    """One way in which a function may be told when its runs begin."""

    options: dict[str, Any]
    complaints: Callable[[Seen], Iterator[str]]
    gaps: tuple[float, ...] = (0.0, 0.1, 0.7, 2.5)
    keys: str = "ab"
    together: int = 1
    """So many of the events go out in one send, after the first."""
    waits: bool = False
    """Its runs end by nothing but what is done to them."""
    fails: bool = False
    functions: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------- what must have become


def _each_has_run(seen: Seen) -> Iterator[str]:
    """One completed run for each event, which has that event."""
    for event in seen.events:
        got = [seen.runs[run].output for run in event.runs]
        if got != [[event.n]] * len(got) or not got:
            yield f"event {event.n} should have run and gave {got}"


def _never_more_than(limit: int, seconds: float, begins: list[float]) -> Iterator[str]:
    for first, last in zip(begins, begins[limit:], strict=False):
        if last - first < seconds:
            yield f"more than {limit} began within {seconds} s: at {first} and at {last}"


def _groups(seen: Seen) -> dict[str, list[Sent]]:
    """The events of each run, which has to be one and the same for all that it collected."""
    groups: dict[str, list[Sent]] = defaultdict(list)
    for event in seen.events:
        for run in event.runs:
            groups[run].append(event)
    return groups


def debounced(longest: float | None) -> Callable[[Seen], Iterator[str]]:
    def complaints(seen: Seen) -> Iterator[str]:
        groups = _groups(seen)
        for event in seen.events:
            if len(event.runs) != 1:
                yield f"event {event.n} has the runs {event.runs}"
        for run, events in groups.items():
            got, last = seen.runs[run], events[-1]
            if got.output != [last.n]:
                yield f"run {run} of the events {[e.n for e in events]} gave {got.output}: the last one counts"
            due = last.at + QUIET if longest is None else min(last.at + QUIET, events[0].at + longest)
            if (got.started_at or 0) < due - 1e-6:
                yield f"run {run} began at {got.started_at}, its events were not quiet before {due}"

    return complaints


def batched(seen: Seen) -> Iterator[str]:
    gathered = Counter(n for run in seen.runs.values() for n in run.output or [])
    if gathered != Counter(event.n for event in seen.events):
        yield f"the batches hold {gathered}"
    by_number = {event.n: event for event in seen.events}
    for run in seen.runs.values():
        if not 1 <= len(run.output) <= MOST:
            yield f"batch {run.id} holds {run.output}"
        elif len(run.output) < MOST and (run.started_at or 0) < by_number[run.output[0]].at + FLUSH - 1e-6:
            yield f"batch {run.id} of {run.output} began at {run.started_at}, neither full nor due"


def throttled(seen: Seen) -> Iterator[str]:
    yield from _each_has_run(seen)
    begins = sorted(run.started_at or 0 for run in seen.runs.values())
    # What was kept waiting by us is made good, a 25th of the interval at a time.
    yield from _never_more_than(1, INTERVAL * 0.9, begins)


def limited(seen: Seen) -> Iterator[str]:
    admitted: list[float] = []
    for event in seen.events:
        [run] = event.runs
        is_dropped = seen.runs[run].status == SKIPPED
        if is_dropped != (sum(at > event.at - PERIOD for at in admitted) >= RATE):
            yield f"event {event.n} at {event.at} is {'dropped' if is_dropped else 'run'} after runs at {admitted}"
        if not is_dropped:
            admitted.append(event.at)
    yield from _reasons(seen, "rate_limit: ")


def single(seen: Seen) -> Iterator[str]:
    if not seen.of_function(COMPLETED):
        yield "none of the singletons has run"
    yield from _reasons(seen, "singleton: ")


def replaced(seen: Seen) -> Iterator[str]:
    for event in seen.events:
        [run] = event.runs
        if seen.runs[run].status not in (COMPLETED, CANCELLED):
            yield f"event {event.n} ended as {seen.runs[run]}"
        if event is seen.events[-1] and seen.runs[run].status != COMPLETED:
            yield f"the last event, {event.n}, has not run: {seen.runs[run]}"


def ordered(seen: Seen) -> Iterator[str]:
    """Those that came together while the slot was taken begin in the order of their priority."""
    yield from _each_has_run(seen)
    first, *rest = [(event, seen.runs[event.runs[0]]) for event in seen.events]
    if not rest or first[1].started_at is None or not first[1].started_at < rest[0][0].at < first[1].ended_at:
        return
    for low, behind in rest:
        for high, ahead in rest:
            # By its end as well: the time of a claim is when it was asked for, and it may have waited for a commit.
            is_first = (behind.started_at or 0) < (ahead.started_at or 0) and behind.ended_at < ahead.ended_at
            if low.priority < high.priority and is_first:
                yield f"event {low.n} of priority {low.priority} went before {high.n} of {high.priority}"


def picked(seen: Seen) -> Iterator[str]:
    for event in seen.events:
        if len(event.runs) != (1 if event.n % 2 == 0 else 0):
            yield f"event {event.n} has started {event.runs}"


def stopped(seen: Seen) -> Iterator[str]:
    for run in seen.runs.values():
        if run.status != CANCELLED or not any(s.n > 0 and s.at <= run.ended_at for s in seen.stops):
            yield f"{run} should have been cancelled by one of {seen.stops}"


def timed_out(seen: Seen) -> Iterator[str]:
    for run in seen.runs.values():
        if (
            run.status != CANCELLED
            or run.started_at is None
            or run.ended_at < run.started_at + PATIENCE - 1e-6
        ):
            yield f"{run} should have been cancelled {PATIENCE} s after its begin"


def broken(seen: Seen) -> Iterator[str]:
    told = Counter(
        run.output
        for run in seen.runs.values()
        if run.function.endswith("-failure") and run.status == COMPLETED
    )
    failed = Counter(run.id for run in seen.of_function(FAILED))
    if told != failed or len(failed) != len(seen.events):
        yield f"{len(seen.events)} events; the failed runs are {failed}, told of are {told}"


def known(seen: Seen) -> Iterator[str]:
    for event in seen.events:
        wanted = COMPLETED if event is seen.events[0] else SKIPPED
        if [seen.runs[run].status for run in event.runs] != [wanted]:
            yield f"event {event.n} of one key ended as {[seen.runs[run] for run in event.runs]}"


def _reasons(seen: Seen, reason: str) -> Iterator[str]:
    for run in seen.runs.values():
        if run.status not in (COMPLETED, SKIPPED) or (
            run.status == SKIPPED and not run.reason.startswith(reason)
        ):
            yield f"run {run.id} ended as {run}"


KINDS: dict[str, Kind] = {
    "debounce": Kind({"debounce": Debounce(f"{QUIET}s", key="data.key")}, debounced(None)),
    "debounce-longest": Kind(
        {"debounce": Debounce(f"{QUIET}s", key="data.key", timeout=f"{LONGEST}s")},
        debounced(LONGEST),
        gaps=(0.1, 0.7, 1.2),
    ),
    "batch": Kind({"batch": Batch(MOST, f"{FLUSH}s", key="data.key")}, batched),
    "throttle": Kind({"throttle": Throttle(2, f"{2 * INTERVAL}s", key="data.key")}, throttled),
    "rate": Kind({"rate_limit": RateLimit(RATE, f"{PERIOD}s", key="data.key")}, limited),
    "single": Kind({"singleton": Singleton("data.key")}, single, keys="a"),
    "replace": Kind({"singleton": Singleton("data.key", mode="cancel")}, replaced, gaps=(0.0, 0.3, 1.0)),
    "priority": Kind(
        {"concurrency": Concurrency(1, key="data.key"), "priority": "data.priority"},
        ordered,
        gaps=(0.05, 0.1),
        keys="a",
        together=5,
    ),
    "shared": Kind(
        {"concurrency": [Concurrency(1, key="data.key"), Concurrency(SHARED_LIMIT, scope="app")]},
        _each_has_run,
        gaps=(0.0, 0.1),
        functions=("shared-one", "shared-two"),
    ),
    "if": Kind({"if_": "event.data.n % 2 == 0"}, picked),
    "cancel-on": Kind(
        {"cancel_on": CancelOn(STOP, match="data.key", if_="async.data.n > 0")}, stopped, waits=True
    ),
    "timeout": Kind({"timeouts": Timeouts(finish=f"{PATIENCE}s")}, timed_out, waits=True),
    "failure": Kind({"retries": 0}, broken, fails=True),
    "idempotency": Kind({"idempotency": Idempotency("data.key")}, known),
}
CRON = "minutely"
ALONE = "single"
"""The function of which two runs are never there at once."""
SLOTS = {"slot:sim::=": SHARED_LIMIT}
"""The limits of slots that are not 1, by key."""


def add_functions(app: App) -> None:
    """Each kind's function, or functions, with its event `sim/<kind>`."""
    for name, kind in KINDS.items():
        for function in kind.functions or (name,):
            _add(app, function, name, kind)


def add_schedule(app: App) -> None:
    @app.function(id=CRON, on=cron("* * * * *", catch_up="all"))
    async def minutely(ctx: Context[CronTick], step: Step) -> Any:
        return await work(ctx, step, "tick", 0) and ctx.data.nominal_at.isoformat()


def _add(app: App, function: str, name: str, kind: Kind) -> None:
    async def act(ctx: Context[Any], step: Step) -> Any:
        numbers = [event.data["n"] for event in ctx.events] if "batch" in kind.options else [ctx.data["n"]]
        await work(ctx, step, "first", 0)
        if kind.fails:
            raise ValueError("it breaks")
        if kind.waits:
            await step.wait_for_signal("for ever", signal=ctx.run_id, timeout="300d")
        return numbers

    async def tell(ctx: Context[RunFailure], step: Step) -> str:
        await work(ctx, step, "tell", 0)
        return ctx.data.run_id

    options = dict(kind.options)
    options["on"] = on_event(f"sim/{name}", if_=options.pop("if_", None))
    if kind.fails:
        options["on_failure"] = tell
    app.function(id=function, **options)(act)


# -------------------------------------------------------------------------------------------------- what is sent


class Letter(NamedTuple):
    """Events that go out together, so long after the ones before."""

    gap: float
    events: tuple[tuple[str, dict[str, Any]], ...]


def letters(kind: str, key: str, rng: random.Random) -> list[Letter]:
    """What is sent under one key, in this order."""
    rules, count = KINDS[kind], rng.randint(2, 4)
    if rules.together > 1:
        events = [
            (f"sim/{kind}", {"key": key, "n": n, "priority": rng.randint(0, 3) * 10})
            for n in range(rules.together + 1)
        ]
        return [Letter(rng.random(), (events[0],)), Letter(rng.choice(rules.gaps), tuple(events[1:]))]
    sent = [
        Letter(rng.choice(rules.gaps), ((f"sim/{kind}", {"key": key, "n": n, "priority": 0}),))
        for n in range(count)
    ]
    if kind == "cancel-on":
        # The first stop is none: its number is too small.
        sent += [
            Letter(rng.choice((0.2, 1.0)), ((STOP, {"key": key, "n": n, "priority": 0}),)) for n in (0, 1)
        ]
    return sent


# ----------------------------------------------------------------------------------------------- what was seen


def complaints(db: sqlite3.Connection, sent: dict[str, int]) -> Iterator[str]:
    """What is wrong with what became of the events; `sent` says how many went out, by kind and key."""
    runs = _read_runs(db)
    by_key: dict[tuple[str, str], list[Sent]] = defaultdict(list)
    started: dict[str, list[str]] = defaultdict(list)
    for event_id, run_id in db.execute("SELECT event_id, run_id FROM agentflow_event_run"):
        started[event_id].append(run_id)
    rows = db.execute("SELECT id, name, data, received_at FROM agentflow_event ORDER BY rowid")
    for event_id, name, text, at in rows:
        if name.startswith("sim/"):
            data = json.loads(text)
            event = Sent(data["n"], data["key"], data["priority"], at / 1e6, tuple(sorted(started[event_id])))
            by_key[name.removeprefix("sim/"), data["key"]].append(event)
    for name, count in sent.items():
        kind, _, key = name.partition(":")
        events = by_key[kind, key]
        if sorted(event.n for event in events) != list(range(count)):
            yield f"{count} events {name} were sent, and there are {[event.n for event in events]}"
            continue
        if kind not in KINDS:
            continue
        own = {run: runs[run] for event in events for run in event.runs}
        if KINDS[kind].fails:
            own |= {
                run.id: run
                for run in runs.values()
                if run.function == f"{kind}-failure" and run.output in own
            }
        for complaint in KINDS[kind].complaints(Seen(events, own, by_key["stop", key])):
            yield f"{name}: {complaint}"
    yield from _schedule_complaints(db, [run for run in runs.values() if run.function == CRON])


def _read_runs(db: sqlite3.Connection) -> dict[str, Started]:
    rows = db.execute(
        "SELECT r.id, function, status, created_at, started_at, ended_at, reason, output "
        "FROM agentflow_run r JOIN agentflow_run_io ON run_id = r.id ORDER BY r.id"
    )
    return {
        id: Started(
            id,
            function,
            status,
            created_at / 1e6,
            None if started_at is None else started_at / 1e6,
            (ended_at or 0) / 1e6,
            reason or "",
            None if output is None else json.loads(output),
        )
        for id, function, status, created_at, started_at, ended_at, reason, output in rows
    }


def _schedule_complaints(db: sqlite3.Connection, runs: list[Started]) -> Iterator[str]:
    """Each minute from the first to the one that is due next has its run, and no minute two."""
    for run in runs:
        if run.status != COMPLETED:
            return (yield f"the run of a minute ended as {run}")
    minutes = sorted(round(datetime.fromisoformat(run.output).timestamp()) for run in runs)
    for before, after in itertools.pairwise(minutes):
        if after != before + 60:
            yield f"the schedule has ticked at {before} and then at {after}"
    for next_at, last in db.execute("SELECT next_at, last_nominal FROM agentflow_schedule"):
        ticked = minutes[-1] if minutes else None
        if ticked != (last and last // 1_000_000) or (ticked and next_at // 1_000_000 != ticked + 60):
            yield f"the schedule says {last} and then {next_at}, its last run is {ticked}"
