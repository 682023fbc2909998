"""Many processes claim the same runs: each run is one's alone, in each of its epochs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.crash.processes import lines, workers
from tests.faults.counted_flow import make_app
from tests.faults.killed_flow import facts_of
from tests.faults.reporting import Report
from tests.faults.support import IS_FULL, read_rows

MODULE = "tests.faults.counted_flow"
AT_ONCE = 250

pytestmark = [pytest.mark.crash, pytest.mark.timeout(1200 if IS_FULL else 120)]


@pytest.mark.fault(10)
async def test_each_run_is_claimed_once_in_each_epoch(
    database_url: str, tmp_path: Path, report: Report
) -> None:
    is_sqlite = database_url.startswith("sqlite")
    processes = 4 if is_sqlite else 8 if IS_FULL else 4
    number = (5_000 if is_sqlite else 50_000) if IS_FULL else 500
    log = tmp_path / "log"
    app = make_app(database_url)
    began = time.monotonic()
    with workers(database_url, log, module=MODULE) as group:
        await asyncio.gather(*[group.start() for _ in range(processes)])
        async with app:
            for first in range(0, number, AT_ONCE):
                await asyncio.gather(*[app.start("short", n) for n in range(first, first + AT_ONCE)])
            while (await read_rows(database_url, "SELECT count(*) FROM agentflow_run WHERE status < 4"))[0][
                0
            ]:
                await asyncio.sleep(0.2)
        seconds = time.monotonic() - began
        claims = [line.split() for line in lines(Path(facts_of(log)))]
    runs = await read_rows(
        database_url,
        "SELECT r.id, r.status, r.epoch, io.input, io.output FROM agentflow_run r "
        "JOIN agentflow_run_io io ON io.run_id = r.id",
    )
    assert len(runs) == number
    twice = [claim for claim, times in Counter((run, epoch) for run, epoch, _ in claims).items() if times > 1]
    assert not twice, f"claimed by two, or twice: {twice[:5]}"
    claimed = Counter(run for run, _, _ in claims)
    assert claimed == Counter({run: epoch for run, _, epoch, _, _ in runs}), "an epoch without a claim"
    for run, status, epoch, given, output in runs:
        assert (status, int(output)) == (4, 2 * int(given)), run
        assert epoch == (2 if int(given) % 4 == 0 else 1), f"{run} was claimed {epoch} times"
    by_process = Counter(pid for _, _, pid in claims)
    assert len(by_process) > processes / 2, by_process
    report(
        f"{processes} processes claimed {number:,} runs {len(claims):,} times in {seconds:.0f} s, "
        f"each between {min(by_process.values()):,} and {max(by_process.values()):,} of them: none twice in one epoch"
    )
