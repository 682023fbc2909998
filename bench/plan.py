"""What is measured: the workloads, their sizes, the rows of the tables and where each is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

STRICT, PROCESS, POSTGRESQL = "strict", "process", "postgresql"

TITLES: Mapping[str, str] = MappingProxyType(
    {
        STRICT: "SQLite, WAL, synchronous=FULL (agentflow's default)",
        PROCESS: 'SQLite, WAL, synchronous=NORMAL (durability="process")',
        POSTGRESQL: "PostgreSQL, synchronous_commit=on",
    }
)

FULL: Mapping[str, int] = MappingProxyType(
    {
        "steps": 1000,
        "starts": 300,
        "signals": 200,
        "runs": 500,
        "steps_a_run": 10,
        "branches": 200,
        "parallel_runs": 10,
        "parked_few": 100,
        "parked_many": 500,
        "recovered": 200,
        "turns": 5,
        "agent_runs": 100,
        "agents": 1000,
    }
)
QUICK: Mapping[str, int] = MappingProxyType(
    {
        **FULL,
        "steps": 300,
        "starts": 100,
        "signals": 50,
        "runs": 100,
        "branches": 50,
        "parallel_runs": 5,
        "parked_many": 200,
        "recovered": 50,
        "agent_runs": 40,
        "agents": 200,
    }
)
SMALLEST: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(FULL, 10),
        "steps_a_run": 4,
        "parked_few": 5,
    }
)
"""To see that every row is there, not to learn anything of its figure."""

SIZES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {"full": FULL, "quick": QUICK, "smallest": SMALLEST}
)


@dataclass(frozen=True)
class Row:
    """One line of a table: a figure of a workload. Less is better in each."""

    workload: str
    figure: str
    title: str
    """May name sizes: `{steps}`."""
    shown_as: Literal["µs", "ms", "s", "/s", "MB", "%"]
    databases: tuple[str, ...] = (STRICT, POSTGRESQL)

    def key(self, database: str) -> str:
        return f"{database}/{self.workload}/{self.figure}"


ROWS = (
    Row("sequence", "step", "a step, in a run of {steps}", "µs", (STRICT, PROCESS, POSTGRESQL)),
    Row("throughput", "step", "steps, {runs} runs x {steps_a_run}", "/s", (STRICT, PROCESS, POSTGRESQL)),
    Row("parallel", "run", "a run with {branches} parallel steps", "ms"),
    Row("start", "p50", "start to result of one step, p50", "µs"),
    Row("start", "p99", "start to result of one step, p99", "µs"),
    Row("signal", "p50", "signal until a run goes on, p50", "µs"),
    Row("signal", "p99", "signal until a run goes on, p99", "µs"),
    Row("signal", "parked", "memory of 1,000 runs that wait", "MB"),
    Row("between", "p50", "signal to another process, p50", "µs"),
    Row("between", "p99", "signal to another process, p99", "µs"),
    Row("between", "idle", "a worker whose runs all wait, of a core", "%"),
    Row("replay", "resume", "resume a run after {steps} steps", "ms"),
    Row("agent", "turn", "an agent's turn, in runs of {turns}", "µs"),
    Row("recovery", "all", "{recovered} half-done runs after kill -9", "s", (STRICT,)),
    Row("load", "import", "import, in a fresh process", "ms", (STRICT,)),
)

TWO_PROCESSES = frozenset({"replay", "recovery"})
"""The first process is killed with -9 when it has said that its half is done; the second is measured."""

HAVE_NO_RAW_LIMIT = frozenset({"between", "recovery", "load"})
OURS_ALONE = frozenset({"agent", "between"})
"""What a peer does only where it says so."""


def workloads_on(database: str) -> list[str]:
    return list(dict.fromkeys(row.workload for row in ROWS if database in row.databases))


def rows_on(database: str) -> list[Row]:
    return [row for row in ROWS if database in row.databases]
