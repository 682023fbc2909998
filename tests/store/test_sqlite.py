"""What is special about the SQLite store: one file, several processes, locks of the operating system, the WAL."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentflow.store.hints import HintKind
from agentflow.store.operation_types import (
    AppendStream,
    CommitStep,
    Decide,
    RegisterWait,
    SendSignal,
    StartRun,
)
from agentflow.store.outcome_types import Done, Fenced
from agentflow.store.sqlite import backend as sqlite_backend
from agentflow.store.sqlite.files import LockFolder
from agentflow.store.stored_types import Chunk
from tests.store.support import (
    World,
    a_run,
    a_step,
    a_wait,
    an_approval,
    expire_leases,
    fresh,
    make_store,
    until,
    with_worker,
)

# A worker of another process: it claims what is ready, commits `steps` steps of each run and finishes it.
PEER = """
import asyncio, json, sys
from agentflow.settings import Settings
from agentflow.store.opening import open_store
from agentflow.store.operation_types import CommitStep, Finish
from agentflow.store.outcome_types import Done
from agentflow.store.stored_types import Status, StoredStep

async def main(url, name, mode):
    store = open_store(url, settings=Settings())
    await store.open()
    epoch = await store.register_worker(name, lease_seconds=60, version="1")
    print("ready", flush=True)
    sys.stdin.readline()
    done, idle = [], 0
    while idle < 5:
        runs = await store.claim(name, epoch=epoch, app="shop", functions=["order"], limit=7, now=2_000)
        if mode == "hold":
            print(json.dumps([run.key.run_id for run in runs]), flush=True)
            await asyncio.sleep(60)
        idle = 0 if runs else idle + 1
        for run in runs:
            for n in range(3):
                step = StoredStep(f"s{n}", n + 1, "run", None, True, json.dumps(name), None, 1, 1, 2)
                assert await store.submit(CommitStep(run.key, step)) == Done(), run
            assert await store.submit(Finish(run.key, Status.COMPLETED, "1", None, None, 3_000)) == Done()
            done.append(run.key.run_id)
    await store.close()
    print(json.dumps(done), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def world(sqlite_ready: str) -> AsyncIterator[World]:
    store = make_store(sqlite_ready)
    await store.open()
    yield await with_worker(store)
    await store.close()


class Peer:
    """A worker in a process of its own."""

    def __init__(self, url: str, mode: str = "work") -> None:
        self.name = fresh("peer")
        self.process = subprocess.Popen(
            [sys.executable, "-c", PEER, url, self.name, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.to_thread(self.process.stdout.readline)).strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.crash
async def test_two_processes_on_one_file_share_the_work(world: World, sqlite_ready: str) -> None:
    heard: list[HintKind] = []
    world.store.subscribe(lambda hint: heard.append(hint.kind))
    ids = [await world.queue() for _ in range(60)]
    peers = [Peer(sqlite_ready), Peer(sqlite_ready)]
    try:
        assert [await peer.line() for peer in peers] == ["ready", "ready"]
        for peer in peers:
            peer.go()
        done = [json.loads(await peer.line()) for peer in peers]
        assert sorted(done[0] + done[1]) == sorted(ids)
        assert {peer.process.wait(10) for peer in peers} == {0}
    finally:
        for peer in peers:
            peer.end()
    assert HintKind.ANY in heard
    completed = await world.store.queries.list_runs(status=["completed"], limit=100)  # type: ignore[list-item]
    assert len(completed.data) == 60


@pytest.mark.crash
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_killed_process_is_known_at_once_and_a_stopped_one_by_its_lease(
    world: World, sqlite_ready: str, how: signal.Signals
) -> None:
    run_id = await world.queue()
    peer = Peer(sqlite_ready, "hold")
    try:
        assert await peer.line() == "ready"
        peer.go()
        assert json.loads(await peer.line()) == [run_id]
        os.kill(peer.process.pid, how)
        if how is signal.SIGKILL:
            peer.process.wait(10)
        else:
            assert await world.store.reap(now=2_000) == []
            await expire_leases(world.store, keep=world.worker)
        assert await world.store.reap(now=2_000) == [run_id]
    finally:
        os.kill(peer.process.pid, signal.SIGCONT) if peer.process.poll() is None else None
        peer.end()
    assert (await world.claim_one()).crash_count == 1


async def test_a_store_in_the_same_process_sees_the_lock_of_a_live_worker(
    world: World, sqlite_ready: str
) -> None:
    other = make_store(sqlite_ready)
    await other.open()
    try:
        key = await world.start()
        assert await other.reap(now=2_000) == []
        await world.store.abandon_worker(world.worker)
        assert await other.reap(now=2_000) == [key.run_id]
    finally:
        await other.close()


async def test_another_store_s_write_is_a_hint_to_look_at_everything(world: World, sqlite_ready: str) -> None:
    other = make_store(sqlite_ready)
    await other.open()
    try:
        heard = asyncio.Event()
        world.store.subscribe(lambda hint: heard.set() if hint.kind is HintKind.ANY else None)
        await other.submit(StartRun(a_run(), 1_000))
        await asyncio.wait_for(heard.wait(), 5)
    finally:
        await other.close()


async def test_a_batch_renews_its_worker_s_lease(world: World) -> None:
    other = await world.other_worker(lease_seconds=1.0)
    key = await other.start()
    path = world.store._path  # type: ignore[attr-defined]

    def lease_until() -> int:
        connection = sqlite3.connect(path)
        try:
            [(until,)] = connection.execute(
                "SELECT lease_until FROM agentflow_worker WHERE id = ?", (other.worker,)
            )
            return int(until)
        finally:
            connection.close()

    first = lease_until()
    await asyncio.sleep(0.3)
    await other.step(key)
    assert lease_until() > first


async def test_a_locked_file_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = world.store._writer._backend  # type: ignore[attr-defined]
    backend._connection.execute("PRAGMA busy_timeout=1")
    blocker = sqlite3.connect(world.store._path, isolation_level=None)  # type: ignore[attr-defined]
    blocker.execute("BEGIN IMMEDIATE")
    key = asyncio.ensure_future(world.start())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(key), 0.2)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert (await key).epoch == 1


async def test_a_full_disk_stops_writes_until_there_is_room(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    key = await world.start()
    connection = world.store._writer._backend._connection  # type: ignore[attr-defined]
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")
    big = json.dumps("x" * 100_000)
    step = world.store.submit(CommitStep(key, a_step("a", 1, big)))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(step), 0.3)
    assert "cannot write to the database" in caplog.text
    connection.execute("PRAGMA max_page_count=1000000")
    assert await step == Done()
    assert "can be written again" in caplog.text


async def test_the_wal_is_brought_in_when_it_has_grown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(world.store._path)  # type: ignore[attr-defined]
    wal = path.with_name(f"{path.name}-wal")
    key = await world.start()
    await world.step(key, "a", 1, json.dumps("x" * 300_000))
    assert wal.stat().st_size > 300_000
    monkeypatch.setattr(sqlite_backend, "CHECKPOINT_BYTES", 100_000)
    world.store._writer._backend._checkpoint_at = 0  # type: ignore[attr-defined]
    await until(lambda: wal.stat().st_size == 0)
    assert (await world.step(key, "b", 2)) == Done()


async def test_the_wal_is_brought_in_although_one_long_reader_always_follows_the_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(world.store._path)  # type: ignore[attr-defined]
    wal = path.with_name(f"{path.name}-wal")
    key, is_over = await world.start(), threading.Event()
    for name, value in (("CHECKPOINT_BYTES", 50_000), ("LARGE_BYTES", 300_000), ("LARGE_SECONDS", 0.7)):
        monkeypatch.setattr(sqlite_backend, name, value)
    monkeypatch.setattr(sqlite_backend, "CHECKPOINT_PAUSE_SECONDS", 0.1)

    def read() -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA wal_autocheckpoint=0")
        while not is_over.is_set():
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM agentflow_step").fetchone()
            is_over.wait(0.3)
            connection.execute("COMMIT")
        connection.close()

    async def write() -> None:
        for n in itertools.count(1):
            assert await world.step(key, f"s{n}", n, json.dumps("x" * 20_000)) == Done()
            await asyncio.sleep(0.01)

    reader, writer = threading.Thread(target=read), asyncio.create_task(write())
    reader.start()
    try:
        await until(lambda: wal.stat().st_size > 300_000)
        await until(lambda: wal.stat().st_size < 100_000)
    finally:
        is_over.set()
        reader.join()
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)


async def test_nobody_checkpoints_while_another_process_does(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(world.store._path)  # type: ignore[attr-defined]
    wal = path.with_name(f"{path.name}-wal")
    key = await world.start()
    with LockFolder(path).only_one("checkpoint") as alone:
        assert alone
        monkeypatch.setattr(sqlite_backend, "CHECKPOINT_BYTES", 1)
        backend = world.store._writer._backend  # type: ignore[attr-defined]
        backend._checkpoint_at = 0
        await world.step(key)
        await until(lambda: backend._checkpoint_at > 0)
        assert wal.stat().st_size > 0


@pytest.mark.parametrize("durability", ["strict", "process"])
async def test_what_has_to_reach_the_disk_does(sqlite_ready: str, durability: str) -> None:
    store = make_store(sqlite_ready, durability=durability)
    await store.open()
    world = await with_worker(store)
    backend: Any = store._writer._backend  # type: ignore[attr-defined]
    syncs: list[tuple[str, bool]] = []
    commit = backend.commit

    def watch(operations: Any) -> Any:
        answer = commit(operations)
        level = backend._connection.execute("PRAGMA synchronous").fetchone()[0]
        syncs.append((type(operations[0]).__name__, level == 2))
        return answer

    backend.commit = watch
    key = await world.start()
    await world.step(key)
    await world.submit(AppendStream(key, (Chunk(5, "text", None, 0, "1"),)))
    await world.submit(SendSignal("s", "go", "1", 1_500, buffer_until=9_000))
    approval = an_approval()
    await world.submit(RegisterWait(key, a_wait("ask", "approval", approval.id), 2, 1_500, approval=approval))
    from agentflow.approvals import Approve

    await world.submit(Decide("d", approval.id, Approve(), "ana", (), None, None, 1_600))
    await store.close()
    strict = durability == "strict"
    assert syncs == [
        ("StartRun", strict),
        ("CommitStep", strict),
        ("AppendStream", False),
        ("SendSignal", True),
        ("RegisterWait", True),
        ("Decide", True),
    ]


async def test_the_claim_s_query_walks_its_index(world: World) -> None:
    from agentflow.store.statements import workers as worker_sql

    connection = sqlite3.connect(world.store._path)  # type: ignore[attr-defined]
    params = {"by": "w", "app": "a", "functions": ["f"], "gated": [], "now": 1, "limit": 5}
    text, arguments = worker_sql.CLAIM_RUNS.sqlite
    plan = [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + text, arguments(params))]
    next_text, next_arguments = worker_sql.NEXT_READY.sqlite
    plan += [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + next_text, next_arguments(params))]
    connection.close()
    # The claim: the first of each stream, and the next of one; then when the next is due. A look for suspects each.
    of_stream = [
        line for line in plan if "agentflow_run_claim (app=? AND <expr>=? AND function=? AND ready_at" in line
    ]
    assert len(of_stream) == 3, plan
    assert sum("agentflow_run_claim" in line for line in plan) == 5, plan
    assert not any("TEMP B-TREE" in line or line.startswith("SCAN agentflow_") for line in plan), plan


async def test_an_abandoned_worker_s_queued_writes_are_fenced(world: World) -> None:
    key = await world.start()
    await world.store.abandon_worker(world.worker)
    assert isinstance(await world.step(key), Fenced)
