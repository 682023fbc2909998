"""The disk is full, or the file cannot be written: a run stops where it is, and goes on when there is room.

Nothing is acknowledged meanwhile, no run fails by it, and no acknowledged result is another one afterwards. Some of the
outages are shorter than the worker's lease and some longer, so that the worker loses it and begins again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from agentflow import App, Context, Settings, Step
from tests.crash.processes import lines, workers
from tests.faults.lossy_disk import lossy_disk
from tests.faults.reporting import Report
from tests.faults.support import FIRST_SEED, IS_FULL, SECONDS
from tests.faults.test_one_file import check_copy, of_kind, take_copy

OUTAGES = 20 if IS_FULL else 2
LEASE = 1.0

Outage = Callable[[random.Random], AbstractAsyncContextManager[None]]
"""In its block nothing can be written, or some of it cannot."""


class Work:
    """An app whose steps say in memory what they were told is stored."""

    def __init__(self, url: str) -> None:
        self.app = App("t", database_url=url, settings=Settings(lease_seconds=LEASE))
        self.acknowledged: dict[tuple[str, str], str] = {}
        self.changed: list[tuple[str, str]] = []
        calls = itertools.count()

        def work(part: str) -> str:
            return f"{part} #{next(calls)} {'x' * 3000}"

        @self.app.function
        async def flow(ctx: Context[int], step: Step) -> list[str]:
            done = []
            for n in range(4):
                value = await step.run(f"s{n}", work, f"s{n}")
                if self.acknowledged.setdefault((ctx.run_id, f"s{n}"), value) != value:
                    self.changed.append((ctx.run_id, f"s{n}"))
                done.append(value)
                if n == 1:
                    await step.sleep("nap", 0.05)
            return done


async def go_through(
    work: Work, outage: Outage, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> Counter[str]:
    """Runs are started and worked on all the time while outages come and go; then all end."""
    told: Counter[str] = Counter()
    runs: list[Any] = []
    is_over = False

    async def keep_starting() -> None:
        while not is_over:
            runs.append(await work.app.start("flow", len(runs)))
            await asyncio.sleep(0.01)

    async with work.app.running():
        starting = asyncio.gather(*[keep_starting() for _ in range(8)])
        for number in range(OUTAGES):
            before = len(work.acknowledged)
            while len(work.acknowledged) < before + 10:
                await asyncio.sleep(0.005)
            caplog.clear()
            async with outage(rng):
                while "cannot write to the database" not in caplog.text:
                    await asyncio.sleep(0.005)
                at_first = len(work.acknowledged)
                await asyncio.sleep(0.3 if number % 2 else 2.5 * LEASE)
                assert len(work.acknowledged) == at_first, "acknowledged, and not written"
            told["leases lost"] += caplog.text.count("has lost its lease")
        is_over = True
        await starting
        results = await asyncio.gather(*[run.result(30) for run in runs])
        for run, result in zip(runs, results, strict=True):
            assert result == [work.acknowledged[run.id, f"s{n}"] for n in range(4)]
        assert not work.changed
        told["runs"] = len(runs)
        told["steps"] = len(work.acknowledged)
    return told


def sentence(what: str, told: Counter[str]) -> str:
    return (
        f"{what} {OUTAGES} times under load: {told['runs']:,} runs and {told['steps']:,} steps, none lost, failed or "
        f"changed, nothing acknowledged meanwhile; the lease lost and a new one taken {told['leases lost']} times"
    )


@pytest.mark.fault(17)
@pytest.mark.timeout(SECONDS)
async def test_runs_go_on_when_a_full_disk_has_room_again(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, report: Report
) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    with lossy_disk(monkeypatch, path) as disk:

        @asynccontextmanager
        async def full(rng: random.Random) -> AsyncIterator[None]:
            # Sometimes there is room for the beginning of a transaction, not for its end.
            disk.room = rng.choice([0, rng.randint(1, 20_000)])
            try:
                yield
            finally:
                disk.room = None

        told = await go_through(Work(sqlite_url), full, random.Random(FIRST_SEED), caplog)
    report(sentence("The disk full (SQLITE_FULL)", told))


@pytest.mark.fault(17)
@pytest.mark.timeout(SECONDS)
async def test_runs_go_on_when_a_read_only_file_can_be_written_again(
    sqlite_url: str, caplog: pytest.LogCaptureFixture, report: Report
) -> None:
    work = Work(sqlite_url)

    @asynccontextmanager
    async def read_only(rng: random.Random) -> AsyncIterator[None]:
        connection = work.app.client.store._writer._backend._connection  # type: ignore[attr-defined]
        connection.execute("PRAGMA query_only=ON")
        try:
            yield
        finally:
            connection.execute("PRAGMA query_only=OFF")

    told = await go_through(work, read_only, random.Random(FIRST_SEED), caplog)
    report(sentence("The file read-only for its writer (SQLITE_READONLY)", told))


@pytest.mark.fault(17)
@pytest.mark.timeout(SECONDS)
async def test_runs_go_on_when_the_server_s_full_disk_has_room_again(
    postgres_url: str, caplog: pytest.LogCaptureFixture, report: Report
) -> None:
    """The server says of a table what it says when its file cannot grow; of one table, or of all."""
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(
        """
        CREATE OR REPLACE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE EXCEPTION 'could not extend file "base/5/16385": No space left on device'
        USING ERRCODE = 'disk_full', HINT = 'Check free disk space.'; END $$
        """
    )
    tables = [
        row[0]
        for row in await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE tablename LIKE 'agentflow_%'"
        )
    ]

    @asynccontextmanager
    async def full(rng: random.Random) -> AsyncIterator[None]:
        chosen = rng.choice([tables, ["agentflow_step", "agentflow_run"]])
        for table in chosen:
            await connection.execute(
                f"CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION no_room()"
            )
        try:
            yield
        finally:
            for table in chosen:
                await connection.execute(f"DROP TRIGGER full_disk ON {table}")

    try:
        told = await go_through(Work(postgres_url), full, random.Random(FIRST_SEED), caplog)
    finally:
        await connection.execute("DROP FUNCTION no_room")
        await connection.close()
    report(sentence("The server out of disk (53100), for all tables or for runs and steps", told))


@pytest.mark.fault(17)
@pytest.mark.crash
@pytest.mark.timeout(SECONDS)
async def test_a_process_whose_file_may_not_grow_stops_and_goes_on(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    """The operating system refuses: a limit on the size of files, set and lifted while the process works."""
    monkeypatch.setenv("AGENTFLOW_LEASE_SECONDS", "1")
    path, log = Path(sqlite_url.removeprefix("sqlite:///")), tmp_path / "log"
    wal = path.with_name(f"{path.name}-wal")
    outputs: dict[tuple[str, str], str] = {}
    with workers(sqlite_url, log, module="tests.faults.sharing_flow") as processes:
        worker = await processes.start()
        for number in range(OUTAGES):
            seen = len(lines(log))
            while len(lines(log)) < seen + 60:
                await asyncio.sleep(0.01)
            seen = len(lines(log))
            largest = max(os.stat(path).st_size, os.stat(wal).st_size)
            limit_files(worker.pid, largest + 10_000 * number)
            while not any("cannot write to the database" in line for line in lines(log)[seen:]):
                assert worker.process.poll() is None
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3 if number % 2 else 2.5)
            told = take_copy([worker], path, log, tmp_path / "copy")
            await asyncio.to_thread(check_copy, tmp_path / "copy" / path.name, told, outputs)
            limit_files(worker.pid, resource.RLIM_INFINITY)
        worker.process.send_signal(signal.SIGUSR1)
        assert await asyncio.to_thread(worker.process.wait, 60) == 0
    told = [line.split(" ") for line in lines(log)]
    assert not of_kind(told, "trouble")
    assert sorted(of_kind(told, "run")) == sorted(of_kind(told, "end"))
    report(
        f"A process whose files may not grow (EFBIG) {OUTAGES} times under load: {len(of_kind(told, 'end')):,} runs, "
        "all ended, no error for a user; each time the file whole and with every acknowledged step"
    )


def limit_files(pid: int, size: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.fault(17)
async def test_an_app_on_a_file_that_it_may_not_write_says_so(migrated_file: Path) -> None:
    code = """
import asyncio, os, sys
from agentflow import App
from agentflow.errors import ConfigurationError
from agentflow.store.sqlite import store as sqlite# before root becomes somebody who may not read its library
app = App("t", database_url="sqlite:///" + sys.argv[1])
@app.function
async def flow(ctx, step): pass
async def main():
    async with app.running(): pass
if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)
try: asyncio.run(main())
except ConfigurationError as error: print(error)
"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "agentflow.db"
        shutil.copy(migrated_file, path)
        for file, mode in ((path, 0o444), (Path(folder), 0o555)):
            os.chmod(file, mode)
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", code, str(path)], capture_output=True, text=True
        )
        os.chmod(folder, 0o755)
        assert f"the database {path} cannot be used" in done.stdout, done.stderr
        assert "see that the file and its folder are readable and writable" in done.stdout
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
