"""The power fails: whatever was acknowledged is there when it is back, and the file is whole.

Two stores work on one file of a disk that keeps only what was fsynced (`lossy_disk`). At random instants, in the middle
of commits and checkpoints, it is written down what a cut would leave and what had been acknowledged until then.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agentflow import App, Context, Settings, Step
from agentflow.store.sqlite import backend as sqlite_backend
from tests.faults.lossy_disk import LossyDisk, lossy_disk
from tests.faults.reporting import Report
from tests.faults.support import FIRST_SEED, IS_FULL, SECONDS

ROUNDS = 40 if IS_FULL else 2
RUNS = 12
CUTS = 25
GONE_ON = 10 if IS_FULL else 2
"""How many of the cuts are gone on from, in all."""


@dataclass
class Acknowledged:
    """What users of the store were told is done."""

    runs: list[str] = field(default_factory=list)
    steps: list[tuple[str, str, str]] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)
    ends: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Cut:
    """The files after a cut, and how much had been acknowledged."""

    files: dict[str, bytes]
    runs: int
    steps: int
    signals: int
    ends: int


def make_app(url: str, durability: Any, acknowledged: Acknowledged | None = None) -> App:
    app = App("t", database_url=url, settings=Settings(durability=durability, lease_seconds=2.0))

    async def commit(ctx: Context[int], key: str, step: Awaitable[str]) -> str:
        value = await step
        if acknowledged is not None:
            acknowledged.steps.append((ctx.run_id, key, value))
        return value

    def work(n: int, part: str) -> str:
        return f"{n} {part} {'x' * (n * 997 % 9000)}"

    @app.function
    async def flow(ctx: Context[int], step: Step) -> list[str]:
        n = ctx.data
        done = [await commit(ctx, f"s{i}", step.run(f"s{i}", work, n, f"s{i}")) for i in range(3)]
        done += await asyncio.gather(
            *[commit(ctx, f"p{i}", step.run(f"p{i}", work, n, f"p{i}")) for i in range(3)]
        )
        await step.sleep("nap", 0.01)
        signal = await step.wait_for_signal("wait", signal=f"go {n}", timeout="1h")
        assert signal is not None
        return [*done, await commit(ctx, "last", step.run("last", work, n, signal.data))]

    return app


def expected(n: int) -> list[str]:
    return [f"{n} {part} {'x' * (n * 997 % 9000)}" for part in ("s0", "s1", "s2", "p0", "p1", "p2", "go")]


@pytest.mark.fault(16)
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("durability", ["strict", "process"])
async def test_what_was_acknowledged_outlives_the_power(
    sqlite_url: str,
    tmp_path: Path,
    durability: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    report: Report,
) -> None:
    monkeypatch.setattr(sqlite_backend, "CHECKPOINT_BYTES", 150_000)
    monkeypatch.setattr(sqlite_backend, "CHECKPOINT_PAUSE_SECONDS", 0.02)
    rng = random.Random(FIRST_SEED)
    empty = await asyncio.to_thread(Path(sqlite_url.removeprefix("sqlite:///")).read_bytes)
    cuts = gone_on = syncs = 0
    told: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "agentflow.db"
        path.write_bytes(empty)
        acknowledged = Acknowledged()
        with lossy_disk(monkeypatch, path) as disk:
            taken = await work_and_cut(disk, path, durability, acknowledged, rng)
            syncs += disk.syncs
        assert len(acknowledged.ends) == RUNS
        assert "failed" not in caplog.text, "this disk cannot do what agentflow asks of it"
        for cut in taken:
            missing = check(restore(cut, tmp_path / "found"), cut, acknowledged)
            assert not missing or durability == "process", missing
            lost.update(what for what, *_ in missing)
            told.update(starts=cut.runs, steps=cut.steps, ends=cut.ends, signals=cut.signals)
            cuts += 1
        for cut in rng.sample(taken, max(1, GONE_ON // ROUNDS)):
            await go_on(restore(cut, tmp_path / "found"), cut, acknowledged)
            gone_on += 1
    assert cuts >= ROUNDS * CUTS * 0.8
    if durability == "process":
        # Else the disk of this test would lose nothing, and prove nothing.
        assert lost["steps"]
    of = ", ".join(f"{lost[what]:,} of {count:,} {what}" for what, count in told.items())
    report(
        f"durability {durability!r}, the power cut at {cuts:,} random instants of commits and checkpoints "
        f"({syncs:,} fsyncs): every file whole; lost of what was acknowledged by then: {of}; {gone_on} of the files "
        "gone on from, every run in them ended as it should"
    )


async def work_and_cut(
    disk: LossyDisk, path: Path, durability: str, acknowledged: Acknowledged, rng: random.Random
) -> list[Cut]:
    """Let runs go from start to end in two apps at once; what cuts in between would have left."""
    taken: list[Cut] = []
    until_next = 20

    def perhaps_cut() -> None:
        nonlocal until_next
        until_next -= 1
        if until_next > 0 or len(taken) == CUTS:
            return
        until_next = rng.randint(1, 60)
        # First what was acknowledged, then the disk: both are read under way.
        told = (acknowledged.runs, acknowledged.steps, acknowledged.signals, acknowledged.ends)
        runs, steps, signals, ends = map(len, told)
        taken.append(Cut(disk.cut(rng), runs, steps, signals, ends))

    url = f"sqlite:///{path}"
    one, two = (make_app(url, durability, acknowledged) for _ in range(2))
    async with one.running(), two.running():
        disk.on_change = perhaps_cut

        async def one_run(app: App, n: int) -> None:
            run = await app.start("flow", n)
            acknowledged.runs.append(run.id)
            await app.signal(f"go {n}", "go", buffer="1h")
            acknowledged.signals.append(f"go {n}")
            result = await run.result()
            assert result == expected(n)
            acknowledged.ends.append((run.id, json.dumps(result, separators=(",", ":"))))

        async def some_runs(app: App, first: int) -> None:
            for n in range(first, RUNS, 4):
                await one_run(app, n)

        # A few at once, so that cuts fall on starts and ends alike.
        await asyncio.gather(*[some_runs([one, two][first % 2], first) for first in range(4)])
        disk.on_change = lambda: None
    return taken


def restore(cut: Cut, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for old in folder.glob("agentflow.db*"):
        old.unlink() if old.is_file() else [*map(Path.unlink, old.iterdir()), old.rmdir()]
    for name, content in cut.files.items():
        (folder / Path(name).name).write_bytes(content)
    return folder / "agentflow.db"


def check(path: Path, cut: Cut, acknowledged: Acknowledged) -> list[tuple[str, ...]]:
    """The file is whole; gives what was acknowledged and is not in it."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_autocheckpoint=0")
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        steps = {
            (run, key): output
            for run, key, output in connection.execute("SELECT run_id, key, output FROM agentflow_step")
        }
        statuses = dict(connection.execute("SELECT id, status FROM agentflow_run"))
        outputs = dict(connection.execute("SELECT run_id, output FROM agentflow_run_io"))
        told = {name for (name,) in connection.execute("SELECT name FROM agentflow_signal")}
        told |= {json.loads(output)["name"] for (_, key), output in steps.items() if key == "wait"}
    finally:
        connection.close()
    missing: list[tuple[str, ...]] = [
        ("starts", run) for run in acknowledged.runs[: cut.runs] if run not in statuses
    ]
    for run, key, value in acknowledged.steps[: cut.steps]:
        if (run, key) not in steps:
            missing.append(("steps", run, key))
        else:
            assert json.loads(steps[run, key]) == value
    for run, output in acknowledged.ends[: cut.ends]:
        if json.loads(outputs.get(run) or "null") != json.loads(output):
            missing.append(("ends", run))
    signals = set(acknowledged.signals[: cut.signals])
    assert signals <= told, f"signals are always strict: {signals - told}"
    return missing


async def go_on(path: Path, cut: Cut, acknowledged: Acknowledged) -> None:
    """A new process finds the file: every run in it ends as it would have."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_autocheckpoint=0")
    runs = dict(connection.execute("SELECT run_id, input FROM agentflow_run_io").fetchall())
    names = {name for (name,) in connection.execute("SELECT name FROM agentflow_signal")}
    connection.close()
    app = make_app(f"sqlite:///{path}", "strict")
    async with app.running():
        for n in range(RUNS):
            if f"go {n}" not in names:
                await app.signal(f"go {n}", "go", buffer="1h")
        for run_id, data in runs.items():
            assert await asyncio.wait_for(app.runs.handle(run_id).result(), 30) == expected(int(data))
