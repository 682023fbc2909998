"""Flow control with three worker processes on PostgreSQL, some of them killed.

`AGENTFLOW_TEST_EVENTS` sets how many events are sent (5,000 for the full measure), the short form sends fewer.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from agentflow.app import App
from agentflow.events import Event
from agentflow.runs import RunStatus
from tests.crash.gated_flow import RATE, make_app
from tests.crash.processes import lines, workers

EVENTS = int(os.environ.get("AGENTFLOW_TEST_EVENTS", "300"))
FULL = 1000
MODULE = "tests.crash.gated_flow"


async def send(app: App, name: str, *rows: dict[str, object]) -> None:
    for first in range(0, len(rows), 100):
        await app.send([Event(name=name, data=row) for row in rows[first : first + 100]])


async def all_ended(app: App, *, seconds: float) -> Counter[RunStatus]:
    """Wait until no run is left that has not ended; how many there are of each status."""
    async with asyncio.timeout(seconds):
        while any([(await app.runs.list(status=status, limit=1)).data for status in ("queued", "running")]):
            await asyncio.sleep(0.1)
    return await count(app)


async def count(app: App) -> Counter[RunStatus]:
    found: Counter[RunStatus] = Counter()
    cursor = None
    while True:
        page = await app.runs.list(limit=100, cursor=cursor)
        found.update(run.status for run in page.data)
        if not page.has_more:
            return found
        cursor = page.cursor


def told(log: Path, kind: str) -> list[list[str]]:
    return [line.split()[1:] for line in lines(log) if line.startswith(f"{kind} ")]


@pytest.mark.parametrize("kills", [0, 2])
async def test_keyed_events_never_overlap_and_all_finish(
    postgres_url: str, tmp_path: Path, kills: int
) -> None:
    log, app = tmp_path / "log", make_app(postgres_url, str(tmp_path / "log"))
    await app.migrate()
    keys = max(10, EVENTS // 25)
    async with app:
        with workers(postgres_url, log, module=MODULE) as group:
            await asyncio.gather(*[group.start() for _ in range(3)])
            rows = [{"key": f"k{n % keys}", "seconds": 0.002} for n in range(EVENTS)]
            for n in range(kills):
                part = rows[n::kills]
                await send(app, "keyed", *part)
                await asyncio.sleep(0.3)
                group.all[n].kill()
                await group.start()
            if not kills:
                await send(app, "keyed", *rows)
            assert await all_ended(app, seconds=60 + EVENTS / 20) == {RunStatus.COMPLETED: EVENTS}
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for key, began, ended in told(log, "keyed"):
        spans[key].append((int(began), int(ended)))
    assert sum(map(len, spans.values())) >= EVENTS
    for key, of_key in spans.items():
        of_key.sort()
        for (_, ended), (began, _) in itertools.pairwise(of_key):
            assert ended <= began, f"two runs of {key} were at work at once"


async def test_a_throttle_keeps_its_rate_and_loses_none(postgres_url: str, tmp_path: Path) -> None:
    log, app = tmp_path / "log", make_app(postgres_url, str(tmp_path / "log"))
    await app.migrate()
    runs = RATE * 2 if EVENTS < FULL else RATE * 20
    async with app:
        with workers(postgres_url, log, module=MODULE) as group:
            await asyncio.gather(*[group.start() for _ in range(3)])
            await send(app, "throttled", *[{"n": n} for n in range(runs)])
            assert await all_ended(app, seconds=60 + runs / RATE * 3) == {RunStatus.COMPLETED: runs}
    begun = sorted(int(at) for _, at in told(log, "throttled"))
    assert len(begun) == runs
    seconds = (begun[-1] - begun[0]) / 1e9
    print(f"{runs} throttled runs in {seconds:.2f} s: {(runs - 1) / seconds:.1f} a second of {RATE}")
    # The bodies' own times are as exact as the machine is idle; tests/store/test_throttles.py looks closely.
    assert (runs - 1) / seconds <= RATE * 1.15
    if EVENTS >= FULL:  # needs a machine that can keep up
        assert RATE * 0.95 <= (runs - 1) / seconds <= RATE * 1.05


async def test_of_fifty_starts_at_once_in_several_processes_one_is_admitted(
    postgres_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    apps = [make_app(postgres_url, str(log)) for _ in range(3)]
    await apps[0].migrate()
    with workers(postgres_url, log, module=MODULE) as group:
        async with apps[0], apps[1], apps[2]:
            await asyncio.gather(*[group.start() for _ in range(3)])
            handles = await asyncio.gather(*[apps[n % 3].start("single", {"n": n}) for n in range(50)])
            async with asyncio.timeout(20):
                while await count(apps[0]) != {RunStatus.SKIPPED: 49, RunStatus.WAITING: 1}:
                    await asyncio.sleep(0.05)
            await apps[0].signal("end")
            await asyncio.gather(*[handle.result(timeout=20) for handle in handles], return_exceptions=True)
            assert await count(apps[0]) == {RunStatus.SKIPPED: 49, RunStatus.COMPLETED: 1}
    assert len(told(log, "single")) == 1


async def test_batches_flush_by_size_and_by_time(postgres_url: str, tmp_path: Path) -> None:
    log, app = tmp_path / "log", make_app(postgres_url, str(tmp_path / "log"))
    await app.migrate()
    async with app:
        with workers(postgres_url, log, module=MODULE) as group:
            await asyncio.gather(*[group.start() for _ in range(3)])
            await asyncio.gather(
                *[
                    send(app, "row", *[{"key": key, "n": n} for n in range(first, first + 40)])
                    for key in ("a", "b")
                    for first in (0, 40, 80)
                ]
            )
            await all_ended(app, seconds=30)
    for key in ("a", "b"):
        batches = [[int(n) for n in numbers.split(",")] for of, numbers in told(log, "batched") if of == key]
        assert sorted(map(len, batches)) == [20, 50, 50]
        assert sorted(n for batch in batches for n in batch) == list(range(120))
