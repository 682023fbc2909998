"""What must hold after every commit, at every body's begin, and at the end; it reads the file with eyes of its own.

- A write of a run's owner is accepted from the worker that owns it at this epoch, while its lease holds: nobody else's.
- A run is claimed once per epoch, has one owner, and is not taken from a worker that lives.
- A step that is committed never changes and never goes; user code goes on only with what is committed.
- No body begins whose outcome the process that owns the run has in the database.
- No more runs execute under a key than it has slots, and none is left when all runs have ended.
- Every run ends, as its plan says; every signal that was accepted was delivered, and none twice.
- Of the events under flow control has become what traffic.py says; one decision on an approval is taken.
"""

from __future__ import annotations

import itertools
import json
import random
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agentflow.store import operation_types as ops
from agentflow.store import outcome_types, stored_types
from agentflow.store.operations.dispatch import is_read
from agentflow.store.operations.workers import Claim
from tests.simulation.loop import SimulatedLoop, current_process
from tests.simulation.plans import AGAIN, GATE_LIMIT
from tests.simulation.process import Process, describe
from tests.simulation.traffic import ALONE, SLOTS, complaints

if TYPE_CHECKING:
    from tests.simulation.world import Root

QUEUED, RUNNING, COMPLETED, CANCELLED, SKIPPED = 0, 1, 4, 6, 7
_OWNERS_ALONE = (
    ops.CommitStep,
    ops.CommitRace,
    ops.RegisterWait,
    ops.ResolveWait,
    ops.WithdrawWait,
    ops.RecordAttempt,
    ops.Adopt,
    ops.Suspend,
    ops.Release,
    ops.Finish,
    ops.SendSignal,
    ops.SendEvents,
    ops.PlanRun,
)


class Violation(AssertionError):
    """The engine did what it must never do."""


class _Run(NamedTuple):
    status: int
    owner: str | None
    epoch: int
    function: str
    gates: str | None


@cache
def _slots(gates: str) -> tuple[str, ...]:
    return () if gates == stored_types.UNPLANNED else stored_types.Gates.from_json(gates).slots


class Oracle:
    """Also the witness of what user code sees."""

    def __init__(self, path: Path, loop: SimulatedLoop, rng: random.Random) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._loop = loop
        self._rng = rng
        self._executions = itertools.count(1)
        self._runs: dict[str, _Run] = {}
        self._steps: dict[tuple[str, str], tuple[Any, ...]] = {}
        self._committed: set[int] = set()
        self._claimed: set[tuple[str, int]] = set()
        self._owner_of: dict[str, Process] = {}
        self._leases: dict[str, int] = {}
        self._done: dict[int, Any] = {}
        self.accepted: list[tuple[str, str]] = []
        """The signals of which the sender was told that a run has them."""
        self.decided: list[tuple[str, str]] = []
        """The decisions that were taken: approval, and by whom."""
        self.sent: dict[str, int] = {}
        """How many events of a kind and key were sent."""
        self.has_pauses = False
        self._paused: frozenset[str] = frozenset()
        self.is_told = False
        """Whether all commits go into the digest, which takes its time."""
        self._history = blake2b(digest_size=16)
        self.bodies = 0
        self.commits = 0
        self.violation: Violation | None = None
        self.is_closed = False

    def fail(self, what: str) -> None:
        if self.violation is None and not self.is_closed:
            self.violation = Violation(f"at {self._loop.time():.4f} s: {what}")
            self._loop.stop()

    @property
    def digest(self) -> str:
        """Of all commits so far, with what they brought about."""
        return self._history.hexdigest()

    def has_ended(self, run_id: str) -> bool:
        run = self._runs.get(run_id)
        return run is not None and run.status >= COMPLETED

    @property
    def all_have_ended(self) -> bool:
        return all(run.status >= COMPLETED for run in self._runs.values())

    # ------------------------------------------------------------------------------------- what user code sees

    def pause(self) -> float:
        return self._rng.choice([0.0, 0.0, 0.002, 0.02, 0.3, 1.5])

    def body_begins(self, run_id: str, key: str) -> int:
        self.bodies += 1
        process = current_process.get()
        assert isinstance(process, Process)
        run = self._runs.get(run_id)
        is_owner = (
            run is not None and run.status == RUNNING and self._owner_of.get(run.owner or "") is process
        )
        if is_owner and (run_id, key) in self._steps:
            self.fail(f"the body of step {key!r} of run {run_id} begins, and its outcome is committed")
        return next(self._executions)

    def boot_failed(self, error: BaseException) -> None:
        """A worker could not start: only if it was reaped before it heard that it is known."""
        [(count,)] = self._db.execute(
            "SELECT count(*) FROM agentflow_worker WHERE reaped_at IS NOT NULL AND instr(?, id)",
            (str(error),),
        )
        if not count:
            self.fail(f"a worker cannot start: {error!r}")

    def got(self, run_id: str, value: Any) -> None:
        if value["execution"] not in self._committed:
            self.fail(f"the code of run {run_id} goes on with {value}, which is not committed")

    # ----------------------------------------------------------------------------------------- what is written

    def before_commit(self, operations: Sequence[Any]) -> None:
        if not all(map(is_read, operations)):
            self._leases = dict(
                self._db.execute("SELECT id, lease_until FROM agentflow_worker WHERE reaped_at IS NULL")
            )

    def after_commit(
        self, process: Process, operations: Sequence[Any], outcomes: Sequence[Any], *, has_changed: bool
    ) -> None:
        self.commits += 1
        if self.is_told:
            told = "".join(f"{describe(*each)}\n" for each in zip(operations, outcomes, strict=True))
            self._history.update(f"{self._loop.time():.7f} {process.name}\n{told}".encode())
        after = self._read_runs() if has_changed else self._runs
        for operation, outcome in zip(operations, outcomes, strict=True):
            if isinstance(operation, _OWNERS_ALONE):
                self._check_right(operation, outcome, after)
            elif isinstance(operation, Claim):
                self._owner_of[operation.worker_id] = process
                self._check_claim(operation, outcome)
            elif isinstance(operation, ops.StartRun) and operation.owner is not None:
                self._owner_of[operation.owner] = process
        if has_changed:
            self._check_runs(process, after)
            self._check_steps()

    def _read_runs(self) -> dict[str, _Run]:
        rows = self._db.execute("SELECT id, status, owner, epoch, function, gates FROM agentflow_run")
        return {run_id: _Run(*rest) for run_id, *rest in rows}

    def _check_right(self, operation: Any, outcome: Any, after: dict[str, _Run]) -> None:
        """A write of a run's owner is accepted from its owner alone, while its lease holds."""
        key = operation.run
        if key is None or isinstance(outcome, outcome_types.Fenced | outcome_types.MailChanged | Exception):
            return
        # Played again, a batch finds what it has done: it is the same object then.
        if id(operation) in self._done:
            return
        self._done[id(operation)] = operation
        name, run = type(operation).__name__, self._runs.get(key.run_id)
        let_go = (QUEUED, None)
        if isinstance(operation, ops.Suspend | ops.Release) and let_go in (
            run and run[:2],
            after[key.run_id][:2],
        ):
            return  # the worker was retired first and has let it go: this did nothing
        if run is None or (run.status, run.owner, run.epoch) != (RUNNING, key.worker_id, key.epoch):
            self.fail(f"{name} of {key} is accepted ({outcome!r}), and the run is {run}")
        elif self._leases.get(key.worker_id, 0) <= round(self._loop.time() * 1e6):
            self.fail(f"{name} of {key} is accepted, and the lease of its worker is over")

    def _check_claim(self, operation: Claim, outcome: Any) -> None:
        for run in outcome:
            mark = (run.key.run_id, run.key.epoch)
            if mark in self._claimed:
                self.fail(f"run {mark[0]} is claimed at epoch {mark[1]} for the second time")
            self._claimed.add(mark)

    def _check_runs(self, process: Process, now: dict[str, _Run]) -> None:
        executing: Counter[str] = Counter()
        for run_id, run in now.items():
            if run.status == RUNNING and run.gates is not None:
                executing.update(_slots(run.gates))
            before = self._runs.get(run_id)
            if before is None or before == run:
                continue
            if before.status >= COMPLETED:
                self.fail(f"run {run_id} had ended as {before} and is {run}")
            if run.epoch < before.epoch:
                self.fail(f"the epoch of run {run_id} went back: {before}, {run}")
            if before.status == RUNNING and before.owner != run.owner:
                self._check_takeover(process, run_id, before, run)
        for run_id in self._runs:
            if run_id not in now:
                self.fail(f"run {run_id} is lost")
        for slot, count in executing.items():
            if count > SLOTS.get(slot, GATE_LIMIT):
                self.fail(f"{count} runs execute under {slot}")
        self._check_alone(now)
        if self.has_pauses:
            self._check_paused(now)
        self._runs = now

    def _check_alone(self, now: dict[str, _Run]) -> None:
        """Of the function that is alone one run is there, and one is skipped only because of it."""
        live = [run_id for run_id, run in now.items() if run.function == ALONE and run.status < COMPLETED]
        if len(live) > 1:
            self.fail(f"runs {live} of {ALONE!r} are there at once")
        was_there = any(run.function == ALONE and run.status < COMPLETED for run in self._runs.values())
        for run_id in now.keys() - self._runs.keys():
            if now[run_id].function == ALONE and now[run_id].status == SKIPPED and not was_there:
                self.fail(f"run {run_id} of {ALONE!r} is skipped, and none was there")

    def _check_paused(self, now: dict[str, _Run]) -> None:
        """No run of a paused function begins to execute."""
        rows = self._db.execute("SELECT id FROM agentflow_function WHERE paused_at IS NOT NULL")
        paused = frozenset(function for (function,) in rows)
        for run_id, run in now.items():
            before = self._runs.get(run_id)
            begins = run.status == RUNNING and (before is None or before.owner != run.owner)
            if begins and run.function in paused & self._paused:
                self.fail(f"run {run_id} executes, and its function {run.function!r} is paused")
        self._paused = paused

    def _check_takeover(self, process: Process, run_id: str, before: _Run, run: _Run) -> None:
        if run.status == RUNNING and run.epoch == before.epoch:
            self.fail(f"run {run_id} has two owners at one epoch: {before}, {run}")
        owner = self._owner_of.get(before.owner or "")
        is_live = owner is not None and not owner.is_dead
        lease = self._leases.get(before.owner or "", 0)
        if is_live and owner is not process and lease > round(self._loop.time() * 1e6):
            self.fail(f"run {run_id} is taken from a live worker by {process.name}: {before}, {run}")

    def _check_steps(self) -> None:
        rows = self._db.execute("SELECT run_id, key, seq, kind, ok, output, error FROM agentflow_step")
        now = {(run_id, key): tuple(rest) for run_id, key, *rest in rows}
        for key, step in now.items():
            before = self._steps.get(key)
            if before is None:
                if step[1] == "run" and step[3] and '"execution"' in step[3]:
                    self._committed.add(json.loads(step[3])["execution"])
            elif before != step and (before[0] is not None or before[1:] != step[1:]):
                self.fail(f"step {key} has changed after its commit: {before}, {step}")
        if len(now) < len(self._steps):
            self.fail(f"steps are lost: {self._steps.keys() - now.keys()}")
        self._steps = now

    # ------------------------------------------------------------------------------------------------ the end

    def check_end(self, roots: Sequence[Root]) -> None:
        """Every run has ended as its plan says, every signal was delivered once, and nothing is left over."""
        for run_id, run in self._runs.items():
            if run.status < COMPLETED:
                self.fail(f"run {run_id} does not end: {run}")
        for root in roots:
            self._check_root(root)
        for table in ("slot", "wait"):
            left = self._db.execute(f"SELECT * FROM agentflow_{table}").fetchall()
            if left:
                self.fail(f"all runs have ended, and a {table} is left: {left}")
        self._check_delivery(copies={root.run_id for root in roots if root.rerun_of is not None})
        self._check_decisions()
        for complaint in complaints(self._db, self.sent):
            self.fail(complaint)
        seqs: set[tuple[str, int]] = set()
        for (run_id, key), step in self._steps.items():
            if self._runs[run_id].status == COMPLETED and (step[0] is None or (run_id, step[0]) in seqs):
                self.fail(f"step {key!r} of run {run_id} has no seq of its own: {step}")
            seqs.add((run_id, step[0]))

    def _check_root(self, root: Root) -> None:
        if root.run_id is None or root.run_id not in self._runs:
            return self.fail(f"run {root.prefix} was never started")
        text, error = self._db.execute(
            "SELECT output, error FROM agentflow_run_io WHERE run_id = ?", (root.run_id,)
        ).fetchone()
        status = self._runs[root.run_id].status
        if status == CANCELLED and root.was_cancelled:
            return None
        if status != COMPLETED or not root.fits(json.loads(text)):
            self.fail(
                f"run {root.run_id} gave {text} (status {status}, error {error}); its plan: {root.plan}"
            )
        elif root.rerun_of is not None:
            self.check_rerun(root)
        return None

    def _check_delivery(self, *, copies: Collection[str | None]) -> None:
        delivered: Counter[str] = Counter()
        for (run_id, _), step in self._steps.items():
            if run_id not in copies and step[1] == "signal" and step[3] and step[3] != "null":
                delivered[step[3]] += 1
        for name, data in self.accepted:
            if not delivered[json.dumps({"name": name, "data": data}, separators=(",", ":"))]:
                self.fail(f"signal {name!r} with {data!r} was accepted, and nobody has got it")
        for signal, times in delivered.items():
            if times > 1:
                self.fail(f"signal {signal} was delivered {times} times")

    def open_approvals(self) -> list[tuple[str, str]]:
        """Their ids and titles."""
        return self._db.execute(
            "SELECT id, title FROM agentflow_approval WHERE status = 'pending'"
        ).fetchall()

    def _check_decisions(self) -> None:
        """One decision was taken on each approval that has not ended with its run, and the run was given that one."""
        taken: dict[str, list[str]] = {}
        for approval_id, by in self.decided:
            taken.setdefault(approval_id, []).append(by)
        rows = self._db.execute("SELECT id, run_id, step_key, status FROM agentflow_approval")
        for approval_id, run_id, key, status in rows:
            by = taken.get(approval_id, [])
            if len(by) != (status != "cancelled"):
                self.fail(f"approval {approval_id} is {status}, and the decisions taken on it are by {by}")
            elif by and json.loads(self._steps[run_id, key][3])["by"] != by[0]:
                self.fail(f"{by[0]!r} decided approval {approval_id}; its run got {self._steps[run_id, key]}")

    def check_rerun(self, root: Root) -> None:
        """What ended before the step from which a run was run again was not done again."""
        assert root.rerun_of is not None
        assert root.run_id is not None
        first, second = ([*self._executed(run_id)] for run_id in (root.rerun_of, root.run_id))
        if [entry for entry in first if entry[0] != AGAIN] != [
            entry for entry in second if entry[0] != AGAIN
        ]:
            self.fail(f"run {root.run_id} has done {second}, and of {root.rerun_of} it had {first}")
        if {entry for entry in first if entry[0] == AGAIN} & set(second):
            self.fail(f"step {AGAIN!r} of run {root.run_id} was not run again")

    def _executed(self, run_id: str) -> Iterator[tuple[str, int]]:
        for (run, key), step in sorted(self._steps.items()):
            if run == run_id and step[1] == "run" and step[2] and '"execution"' in (step[3] or ""):
                yield key, json.loads(step[3])["execution"]

    def close(self) -> None:
        self.is_closed = True
        self._db.close()
