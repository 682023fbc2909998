"""How the driver and a contestant speak: one JSON object as argument, one JSON object as the last line of output.

A contestant is a module of its own, run in a process of its own for every workload, on an empty database. Standard
library only: a peer's environment has nothing of ours in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, Literal, NoReturn

HALF_DONE = "half done"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a contestant is asked to do; `half` asks for the part before the process is killed."""

    workload: str
    database: str
    url: str
    folder: str
    half: bool = False
    sizes: Mapping[str, int]
    most_seconds: float = 3.0
    """A workload of many rounds ends after so long: some take a second for one."""
    clock: Literal["wall", "processor"] = "wall"
    """`processor` counts the time that this process uses, which what else the machine does hardly changes."""

    def now(self) -> float:
        """Seconds on its clock."""
        return time.perf_counter() if self.clock == "wall" else time.process_time()


Figures = dict[str, float]
Workloads = Mapping[str, Callable[[Work], Coroutine[Any, Any, Figures]]]


def answer(workloads: Workloads) -> None:
    """Do the work that the argument describes and print its figures, in seconds or MB."""
    work = Work(**json.loads(sys.argv[1]))
    print(json.dumps(asyncio.run(workloads[work.workload](work))), flush=True)


async def wait_to_be_killed() -> NoReturn:
    """Say that the first half is done, and wait for kill -9."""
    print(HALF_DONE, flush=True)
    while True:
        await asyncio.sleep(60)


async def rounds(work: Work, count: int, once: Callable[[int], Awaitable[Any]]) -> list[float]:
    """Seconds of each call, one after the other; at least five, then as many of them as there is time for."""
    took: list[float] = []
    end = time.perf_counter() + work.most_seconds
    for n in range(count):
        began = work.now()
        await once(n)
        took.append(work.now() - began)
        if n + 1 >= 5 and time.perf_counter() > end:
            break
    return took


def spread(took: Sequence[float]) -> Figures:
    return {"p50": median(took), "p99": quantiles(took, n=100)[-1]}


def cpu_seconds(pid: int) -> float:
    """The time that a process has used so far, of its own and of the system's (Linux)."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb() -> float:
    """What this process holds in memory now; where /proc is not there, the most it ever held."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize() / 1e6
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
