"""A process is killed at every point of the engine, at every pass that a flow makes; the next one takes the run on.

The flow does all that a run can do with the database. In full each pass is a process that `kill -9` ends; an ordinary
run does a selection, and tests/engine/test_crash_after.py each point within one process.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agentflow.crashpoints import CRASH_POINTS
from tests.crash.processes import end_leases, lines
from tests.crash.sweep_flow import BODIES
from tests.faults.reporting import Report
from tests.faults.support import IS_FULL, SECONDS, read_rows
from tests.forked import KILLED, Starter

SOME = {"sqlite": {"before_commit": (9,), "after_commit": (17,), "after_claim": (2,)}, "postgresql": {}}
"""The passes of an ordinary run; of the points that are not named the first."""
SOME_POINTS = {
    "sqlite": CRASH_POINTS,
    "postgresql": ("after_claim", "before_suspend", "after_finish", "before_notify"),
}
RUNS = Counter({4: 3, 5: 1})
"""What a flow leaves, by status: itself, a child, one that failed, and what that one's failure started."""

Steps = dict[tuple[str, str], tuple[Any, ...]]


@pytest.mark.crash
@pytest.mark.fault(2)
@pytest.mark.timeout(SECONDS)
async def test_a_run_ends_as_if_nothing_had_happened_wherever_its_process_was_killed(
    database_url: str, tmp_path: Path, report: Report
) -> None:
    kind, began = database_url.partition(":")[0], time.perf_counter()
    kills: Counter[str] = Counter()
    again = 0
    with Starter("tests.crash.sweep_flow") as children:
        sweep = Sweep(children, database_url, tmp_path / "log")
        await sweep.check_uncrashed()
        for point in CRASH_POINTS if IS_FULL else SOME_POINTS[kind]:
            n = 0
            while IS_FULL or n < len(SOME[kind].get(point, (1,))):
                n += 1
                nth = n if IS_FULL else SOME[kind].get(point, (1,))[n - 1]
                if not await sweep.kill_at(f"{point}:{nth}"):
                    break
                kills[point] += 1
        again = sweep.bodies_again
    if not IS_FULL:
        assert kills.keys() == set(SOME_POINTS[kind]), f"not passed: {set(SOME_POINTS[kind]) - kills.keys()}"
    missing = set(CRASH_POINTS) - kills.keys()
    assert not IS_FULL or missing <= _NOT_THERE[kind], f"points that the flow does not pass: {missing}"
    report(
        f"{kills.total()} kills, at {', '.join(f'{point} {count}' for point, count in sorted(kills.items()))}, in "
        f"{time.perf_counter() - began:.0f} s: 0 bad; {again} bodies ran twice, none after its commit"
    )


_NOT_THERE: dict[str, set[str]] = {"sqlite": set(), "postgresql": set()}


class Sweep:
    """Kills one process after the other, and looks at what is left and what became of it."""

    def __init__(self, children: Starter, database_url: str, log: Path) -> None:
        self._children = children
        self._url = database_url
        self._log = log
        self._number = 0
        self._runs: Counter[int] = Counter()
        self._bodies: Counter[str] = Counter()
        self.bodies_again = 0

    async def check_uncrashed(self) -> None:
        await self._children.warm_up(self._url, str(self._log), "uncrashed", "")
        await self._check_end("uncrashed")

    async def kill_at(self, point: str) -> bool:
        """False when the flow ended before it had passed the point so often."""
        key = f"{self._number} {point}"
        self._number += 1
        code = await self._children.run(self._url, str(self._log), key, point)
        assert code in (0, KILLED), f"{point}: the process ended with {code}"
        if code == KILLED:
            if not IS_FULL:
                await end_leases(self._url)
            before, bodies = await self._read_steps(), self._read_bodies()
            assert await self._children.run(self._url, str(self._log), key, "") == 0, (
                f"{point}: it did not go on"
            )
            await self._check_steps(point, before, bodies)
        await self._check_end(point)
        return code == KILLED

    async def _check_steps(self, point: str, before: Steps, bodies: Counter[str]) -> None:
        """What was committed is as it was, and its body did not run again."""
        after, ran = await self._read_steps(), self._read_bodies()
        for key, step in before.items():
            same = after[key] == step or (step[0] is None and after[key][1:] == step[1:])
            assert same, f"{point}: step {key} was {step} and is {after[key]}"
            assert ran[" ".join(key)] == bodies[" ".join(key)], (
                f"{point}: the body of {key} ran after its commit"
            )

    async def _check_end(self, point: str) -> None:
        rows = await read_rows(self._url, "SELECT status, count(*) FROM agentflow_run GROUP BY status")
        runs = Counter(dict(rows))
        assert runs - self._runs == RUNS, f"{point}: the runs were {self._runs} and are {runs}"
        self._runs = runs
        for table in ("wait", "slot"):
            assert not await read_rows(self._url, f"SELECT * FROM agentflow_{table}"), (
                f"{point}: a {table} is left"
            )
        ran = self._read_bodies()
        new = ran - self._bodies
        assert len(new) == BODIES, f"{point}: {len(new)} bodies ran"
        assert max(new.values()) <= 2, f"{point}: a body ran more than twice: {new}"
        self.bodies_again += new.total() - len(new)
        self._bodies = ran

    async def _read_steps(self) -> Steps:
        rows = await read_rows(
            self._url, "SELECT run_id, key, seq, kind, ok, output, error FROM agentflow_step"
        )
        return {(run_id, key): tuple(rest) for run_id, key, *rest in rows}

    def _read_bodies(self) -> Counter[str]:
        return Counter(lines(self._log))
