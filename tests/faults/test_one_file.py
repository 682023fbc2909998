"""Four processes write one SQLite file, and a reader is slow: nobody hears of a lock, and the log is kept short.

At random instants all writers are stopped where they are and the file is copied with its log: each copy is whole and
has all that was acknowledged. A reader that holds its transaction for seconds keeps the log from being brought in;
it is to grow only by what is written meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentflow.store.sqlite.backend import LARGE_BYTES, LARGE_SECONDS, LARGE_SHARE
from tests.crash.processes import WorkerProcess, lines, workers
from tests.faults.reporting import Report
from tests.faults.support import FIRST_SEED, IS_FULL

COPIES = 100 if IS_FULL else 6
MB = 1_000_000


@pytest.mark.fault(16)
@pytest.mark.crash
@pytest.mark.timeout(600 if IS_FULL else 60)
@pytest.mark.parametrize(
    ("held", "pause"),
    [(2.0, 0.2), (1.0, 0.0)] if IS_FULL else [(1.0, 0.1)],
    ids=lambda seconds: f"{seconds:g}s",
)
async def test_four_writers_and_a_slow_reader_share_a_file(
    sqlite_url: str, tmp_path: Path, held: float, pause: float, report: Report
) -> None:
    """`held` seconds in each transaction of the reader, and `pause` between them."""
    path, log = Path(sqlite_url.removeprefix("sqlite:///")), tmp_path / "log"
    rng = random.Random(FIRST_SEED)
    outputs: dict[tuple[str, str], str] = {}
    with workers(sqlite_url, log, module="tests.faults.sharing_flow") as processes:
        await asyncio.gather(*[processes.start() for _ in range(4)])
        with slow_reader(path, held=held, pause=pause) as reader:
            began = time.monotonic()
            for number in range(COPIES):
                await asyncio.sleep(rng.uniform(0.05, 0.9))
                told = take_copy(processes.all, path, log, tmp_path / "copy")
                await asyncio.to_thread(check_copy, tmp_path / "copy" / path.name, told, outputs)
                assert not of_kind(told, "trouble"), f"copy {number}"
            seconds = time.monotonic() - began
            for process in processes.all:
                process.process.send_signal(signal.SIGUSR1)
            for process in processes.all:
                assert await asyncio.to_thread(process.process.wait, 60) == 0
    told = [line.split(" ") for line in lines(log)]
    kinds = Counter(words[0] for words in told)
    assert not kinds["trouble"], of_kind(told, "trouble")
    locked = [line for line in of_kind(told, "warned") if "locked" in line]
    assert not locked
    assert kinds["run"] == kinds["end"]
    assert set(of_kind(told, "run")) == set(of_kind(told, "end"))
    # Brought in when the reader pauses; where it does not, by writers that wait for it, which they do not do often.
    growth = reader.written / seconds
    most_seconds = 2 * held + 5 + (0 if pause else 2 * LARGE_SECONDS / LARGE_SHARE)
    bound = LARGE_BYTES + growth * most_seconds
    assert reader.longest_log < bound, f"{reader.longest_log:,} bytes, {growth:,.0f} a second"
    report(
        f"4 processes and a reader of {held:g} s transactions, {pause:g} s between them, for {seconds:.0f} s: "
        f"{kinds['end']:,} runs, {kinds['step']:,} steps, {growth / MB:.1f} MB/s; no 'database is locked', no other "
        f"error; the log at most {reader.longest_log / MB:.0f} MB; {COPIES} copies of file and log, taken while all "
        "stood still, whole and with every acknowledged step"
    )


def take_copy(processes: Sequence[WorkerProcess], path: Path, log: Path, folder: Path) -> list[list[str]]:
    """Copy file and log while every writer stands still; gives what had been acknowledged."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for process in processes:
        process.pause()
    try:
        for file in (path, path.with_name(f"{path.name}-wal")):
            shutil.copy(file, folder / file.name)
        return [line.split(" ") for line in lines(log)]
    finally:
        for process in processes:
            process.resume()


def check_copy(copy: Path, told: list[list[str]], outputs: dict[tuple[str, str], str]) -> None:
    """The copy is whole, has what was acknowledged, and no result differs from what it was in an earlier copy."""
    connection = sqlite3.connect(copy)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        steps = {
            (run, key): output.strip('"').split()[0]
            for run, key, output in connection.execute(
                "SELECT run_id, key, output FROM agentflow_step WHERE kind = 'run'"
            )
        }
        statuses = dict(connection.execute("SELECT id, status FROM agentflow_run"))
    finally:
        connection.close()
    assert all(outputs[step] == steps[step] for step in outputs), "a stored result is gone or another one"
    outputs.update(steps)
    # By value, which names its step: the key of one in a branch has its branch, too.
    found = {f"{run} {output}" for (run, _), output in steps.items()}
    assert set(of_kind(told, "step")) <= found
    assert set(of_kind(told, "run")) <= statuses.keys()
    assert {statuses[run] for run in of_kind(told, "end")} <= {4}


def of_kind(told: list[list[str]], kind: str) -> list[str]:
    return [" ".join(words[1:]) for words in told if words[0] == kind]


class Reader:
    """What was seen of the file by who only reads it."""

    def __init__(self) -> None:
        self.longest_log = 0
        self.written = 0


@contextmanager
def slow_reader(path: Path, *, held: float, pause: float) -> Iterator[Reader]:
    """Read the file in long transactions, one after the other, and watch its log."""
    seen, is_over = Reader(), threading.Event()
    log = path.with_name(f"{path.name}-wal")

    def read() -> None:
        connection = sqlite3.connect(path, isolation_level=None, timeout=5)
        connection.execute("PRAGMA wal_autocheckpoint=0")
        try:
            while not is_over.is_set():
                connection.execute("BEGIN")
                first = connection.execute("SELECT count(*) FROM agentflow_step").fetchone()
                is_over.wait(held)
                assert connection.execute("SELECT count(*) FROM agentflow_step").fetchone() == first
                connection.execute("COMMIT")
                is_over.wait(pause)
        finally:
            connection.close()

    def watch() -> None:
        before = 0
        while not is_over.wait(0.02):
            size = log.stat().st_size if log.exists() else 0  # it goes with its last writer
            seen.longest_log = max(seen.longest_log, size)
            seen.written += max(0, size - before)
            before = size

    threads = [threading.Thread(target=act) for act in (read, watch)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
