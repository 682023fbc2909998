"""The contest: every contestant does every workload, each time in a process of its own on an empty database.

Contestants take turns within a workload, so that what else the machine does hits all of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from bench.databases import empty_database
from bench.plan import HAVE_NO_RAW_LIMIT, OURS_ALONE, PROCESS, TWO_PROCESSES
from bench.talk import HALF_DONE, Figures, Work

ROOT = Path(__file__).parent.parent
MOST_SECONDS = 120.0

# The clock stands in the new process, so that the start of Python itself is not in the figure.
LOAD = (
    "import json, time; t = time.perf_counter(); {}; print(json.dumps({{'import': time.perf_counter() - t}}))"
)


@dataclass(frozen=True)
class Contestant:
    name: str
    python: Path
    module: str
    imports: str = ""
    """The line with which its user begins; none for the raw limit."""
    is_raw: bool = False
    is_peer: bool = False
    workloads: frozenset[str] | None = None
    """All it can do; `None` is everything but what is ours alone."""

    def does(self, workload: str, database: str) -> bool:
        if self.is_raw:
            return workload not in HAVE_NO_RAW_LIMIT
        if not self.is_peer:
            return True
        is_able = workload not in OURS_ALONE if self.workloads is None else workload in self.workloads
        return is_able and database != PROCESS  # no peer offers less than it has by default


RAW = Contestant("raw", Path(sys.executable), "bench.raw", is_raw=True)
OURS = Contestant(
    "agentflow", Path(sys.executable), "bench.ours", "from agentflow import Agent, App, Context, Step, tool"
)


class Unable(Exception):
    """A contestant did not end a workload, with the end of what it said."""


Results = dict[tuple[str, str, str], list[Figures]]
"""By database, workload and contestant: the figures of each round."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    folder: Path
    server: str | None
    sizes: Mapping[str, int]
    tell: Callable[[str], None]
    clock: Literal["wall", "processor"] = "wall"
    """What agentflow and the raw limit are measured by; peers know the wall's alone."""

    async def hold(
        self, database: str, workloads: Sequence[str], contestants: Sequence[Contestant], *, rounds: int
    ) -> Results:
        """Each contestant's figures of each workload; a contestant that fails is named, and left out there."""
        results: Results = {}
        for workload in workloads:
            unable = set()
            for _ in range(rounds):
                for contestant in contestants:
                    if contestant in unable or not contestant.does(workload, database):
                        continue
                    try:
                        figures = await self._measure(contestant, database, workload)
                    except Unable as error:
                        unable.add(contestant)
                        self.tell(f"{contestant.name} did not do {workload} on {database}: {error}")
                    else:
                        results.setdefault((database, workload, contestant.name), []).append(figures)
        return results

    async def _measure(self, contestant: Contestant, database: str, workload: str) -> Figures:
        if workload == "load":
            return await figures_of([contestant.python, "-c", LOAD.format(contestant.imports)])
        async with empty_database(database, self.folder, self.server) as (folder, url):
            work = Work(
                workload=workload,
                database=database,
                url=url,
                folder=str(folder),
                sizes=dict(self.sizes),
                clock=self.clock,
            )
            command = [contestant.python, "-m", contestant.module]
            if workload in TWO_PROCESSES and not contestant.is_raw:
                await figures_of([*command, json.dumps({**asdict(work), "half": True})], kill_at=HALF_DONE)
            return await figures_of([*command, json.dumps(asdict(work))])


def median_of(results: Results, database: str, workload: str, name: str, figure: str) -> float | None:
    rounds = results.get((database, workload, name), [])
    return (
        statistics.median([figures[figure] for figures in rounds]) if rounds and figure in rounds[0] else None
    )


async def figures_of(command: Sequence[str | Path], *, kill_at: str | None = None) -> Figures:
    """The last line of the process, or nothing when it is to be killed at a line."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "providers")])},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    last = ""
    try:
        async with asyncio.timeout(MOST_SECONDS):
            async for line in process.stdout:
                last = line.decode().strip() or last
                if kill_at is not None and last == kill_at:
                    process.kill()
                    await process.wait()
                    return {}
            code = await process.wait()
    except TimeoutError:
        raise Unable(f"not done after {MOST_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        said = (await errors).decode(errors="replace").strip()
    if code != 0 or not last.startswith("{"):
        raise Unable(f"exit code {code}: {(said.splitlines() or [last])[-1]}")
    figures: Figures = json.loads(last)
    return figures
