"""Whether agentflow got slower: its ratios to the raw limit, held against those kept in figures.json.

The databases are in memory, where a commit costs the same every time and next to nothing, and the clock is the time of
the processor that a process uses: what is left is agentflow's own work held against the database's, a ratio that two
machines can share, busy ones too. A ratio more than a third above the kept one is measured again, up to four times, as
others may have taken the processor's cache; what stays too high is a regression.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from pathlib import Path

from bench.contest import OURS, RAW, Contest, Results
from bench.plan import HAVE_NO_RAW_LIMIT, ROWS

FIGURES = Path(__file__).parent / "figures.json"
ROUNDS = 3
MOST = 4 / 3
AGAIN = 4

# A p99 of so few rounds, the memory of one process and a lone import say more of the machine than of agentflow.
CHECKED = [
    row
    for row in ROWS
    if row.figure in ("step", "run", "p50", "turn", "resume") and row.workload not in HAVE_NO_RAW_LIMIT
]

Ratios = dict[str, float]


async def check(contest: Contest, databases: list[str], kept: Mapping[str, float]) -> list[str]:
    """What got slower, a line each."""
    ratios = await measure(contest, databases)
    for _ in range(AGAIN):
        slow = regressions(ratios, kept)
        if not slow:
            break
        again = await measure(contest, databases, only=set(slow))
        ratios = {key: min(ratio, again.get(key, ratio)) for key, ratio in ratios.items()}
    for key, ratio in ratios.items():
        before = f"kept {kept[key]:7.2f}" if key in kept else "not kept"
        contest.tell(f"{key:<28} {ratio:7.2f} x raw   {before}")
    missing = sorted(kept_key for kept_key in kept if kept_key not in ratios and _is_of(kept_key, databases))
    return [
        f"{key}: {ratios[key]:.2f} x raw, {ratios[key] / kept[key]:.2f} times the kept {kept[key]:.2f}"
        for key in regressions(ratios, kept)
    ] + [f"{key}: was not measured" for key in missing]


def regressions(ratios: Mapping[str, float], kept: Mapping[str, float]) -> list[str]:
    """The keys whose ratio is more than a third above the kept one."""
    return [key for key, ratio in ratios.items() if key in kept and ratio > kept[key] * MOST]


async def measure(contest: Contest, databases: list[str], *, only: set[str] | None = None) -> Ratios:
    ratios: Ratios = {}
    for database in databases:
        rows = {
            row.key(database): row
            for row in CHECKED
            if database in row.databases and (only is None or row.key(database) in only)
        }
        workloads = list(dict.fromkeys(row.workload for row in rows.values()))
        results = await contest.hold(database, workloads, [RAW, OURS], rounds=ROUNDS)
        for key, row in rows.items():
            if ratio := _ratio(results, database, row.workload, row.figure):
                ratios[key] = ratio
    return ratios


def keep(ratios: Mapping[str, float]) -> None:
    kept = {**read_kept(), **{key: round(ratio, 2) for key, ratio in ratios.items()}}
    FIGURES.write_text(json.dumps(dict(sorted(kept.items())), indent=2) + "\n")


def memory() -> str | None:
    """Where files are in memory; None where this system has no such place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def read_kept() -> Ratios:
    figures: Ratios = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    return figures


def _ratio(results: Results, database: str, workload: str, figure: str) -> float | None:
    """The median over the rounds, each round held against the raw limit of the same moment."""
    raw, ours = (results.get((database, workload, name.name), []) for name in (RAW, OURS))
    ratios = [mine[figure] / limit[figure] for limit, mine in zip(raw, ours, strict=False)]
    return statistics.median(ratios) if ratios else None


def _is_of(key: str, databases: list[str]) -> bool:
    return key.partition("/")[0] in databases
