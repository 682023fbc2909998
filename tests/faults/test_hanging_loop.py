"""An event loop that hangs in a body: the heartbeat has its own thread, so nobody takes the run, until the limit.

In full the loop hangs for 60 s under the settings that a user gets by default.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.crash.hanging_flow import make_app
from tests.crash.processes import Workers, lines, workers
from tests.faults.reporting import Report
from tests.faults.support import IS_FULL, read_rows

MODULE = "tests.crash.hanging_flow"
LEASE = 10.0 if IS_FULL else 1.0
HANG = 60.0 if IS_FULL else 2.5
LIMIT = 60.0
"""As it is by default."""
SHORT_LIMIT = 20.0 if IS_FULL else 1.0
TOO_LONG = 60.0 if IS_FULL else 4.5
SLACK = 2.0


class Scene:
    """A run that hangs the loop of one worker, while another one looks on."""

    def __init__(self, url: str, log: Path, group: Workers, *, seconds: float) -> None:
        self.url = url
        self.log = log
        self.seconds = seconds
        self.calls = make_app(url, str(log))
        self.group = group

    async def play(self) -> None:
        """Let one of two workers hang: which of them takes the run is all the same."""
        await self.calls.migrate()
        one, other = await asyncio.gather(self.group.start(), self.group.start())
        self.run = await self.calls.start("hanging", self.seconds)
        while not self.said("hangs"):
            await asyncio.sleep(0.02)
        is_one = self.said("hangs")[0][0] == one.pid
        self.hanging, self.healthy = (one, other) if is_one else (other, one)

    def said(self, word: str) -> list[tuple[int, float]]:
        """Which process said it, and when by the machine's clock."""
        found = [line.split() for line in lines(self.log) if line.startswith(f"{word} ")]
        return [(int(pid), float(at)) for _, pid, at in found]

    async def epoch(self) -> int:
        """How often the run was claimed."""
        [(epoch,)] = await read_rows(self.url, f"SELECT epoch FROM agentflow_run WHERE id = '{self.run.id}'")
        return int(epoch)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.touch()
    return path


@pytest.mark.fault(18)
@pytest.mark.timeout(60 + 2 * TOO_LONG)
async def test_nobody_takes_the_run_of_a_loop_that_hangs_while_its_heartbeat_lives(
    database_url: str, log: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    monkeypatch.setenv("AGENTFLOW_LEASE_SECONDS", str(LEASE))
    monkeypatch.setenv("AGENTFLOW_HANG_LIMIT_SECONDS", str(LIMIT))
    with workers(database_url, log, module=MODULE) as group:
        scene = Scene(database_url, log, group, seconds=HANG)
        async with scene.calls:
            await scene.play()
            epochs = set()
            while not scene.said("done"):
                epochs.add(await scene.epoch())
                await asyncio.sleep(0.05)
            hanging = scene.hanging.pid
            assert await scene.run.result() == [hanging, hanging]
    assert epochs == {1}, "one worker had it all the time"
    assert [pid for pid, _ in scene.said("hangs")] == [hanging]
    report(
        f"a loop hung for {HANG:.0f} s, {HANG / LEASE:.0f} times its lease of {LEASE:.0f} s, with a limit of "
        f"{LIMIT:.0f} s: nobody took its run, which went on there"
    )


@pytest.mark.fault(18)
@pytest.mark.timeout(60 + 2 * TOO_LONG)
async def test_a_loop_that_hangs_longer_than_the_limit_loses_its_run_and_what_it_does_then_is_refused(
    database_url: str, log: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    monkeypatch.setenv("AGENTFLOW_LEASE_SECONDS", str(LEASE))
    monkeypatch.setenv("AGENTFLOW_HANG_LIMIT_SECONDS", str(SHORT_LIMIT))
    with workers(database_url, log, module=MODULE) as group:
        scene = Scene(database_url, log, group, seconds=TOO_LONG)
        async with scene.calls:
            await scene.play()
            hanging, healthy = scene.hanging.pid, scene.healthy.pid
            assert await scene.run.result() == [healthy, healthy]
            ended_at = time.monotonic()
            (_, hung_at), (taken_by, taken_at) = scene.said("hangs")
            assert taken_by == healthy
            before_the_end = hung_at + TOO_LONG - ended_at
            assert before_the_end > 0, "the other worker did not wait for the end of the hang"
            while len(scene.said("done")) < 2:
                await asyncio.sleep(0.05)
            # It goes on as somebody else, and what it has done in vain changes nothing.
            group.all.remove(scene.healthy)
            scene.healthy.close()
            quick = await scene.calls.start("quick")
            assert await quick.result() == hanging
    steps = await read_rows(
        database_url, f"SELECT key, output FROM agentflow_step WHERE run_id = '{scene.run.id}' ORDER BY key"
    )
    assert steps == [("after", str(healthy)), ("hang", str(healthy))]
    took = taken_at - hung_at
    assert SHORT_LIMIT < took < SHORT_LIMIT + LEASE + LEASE * 0.6 + SLACK
    report(
        f"a loop hung for {TOO_LONG:.0f} s with a limit of {SHORT_LIMIT:.0f} s: its run was taken over after "
        f"{took:.1f} s; what it wrote after the hang was refused, and it went on as a new worker"
    )
