"""Group commit: batches, poison, ambiguous commits, closing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from agentflow import crashpoints
from agentflow.errors import AgentflowError
from agentflow.store.batches import MOST_BYTES, MOST_OPERATIONS, Fault
from agentflow.store.hints import Hint, HintKind
from agentflow.store.loop_writer import MOST_TOGETHER, LoopWriter
from agentflow.store.operation_types import CommitStep, Finish, SendSignal, StartRun
from agentflow.store.outcome_types import Done, Exists, Started
from agentflow.store.protocol import Store
from agentflow.store.stored_types import Status
from tests.store.support import World, a_run, a_step, a_wait, make_store, with_worker


class Recorder:
    """Stands between the writer and its database: counts batches, and breaks what it is told to."""

    def __init__(self, store: Store) -> None:
        writer: Any = store._writer  # type: ignore[attr-defined]
        self.backend = writer._backend
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fail_after_commit: list[Exception | None] = []
        self.fail_before_commit: list[Exception] = []
        self._commit = self.backend.commit
        if isinstance(writer, LoopWriter):
            self.backend.commit = self.commit_in_the_loop
        else:
            self.backend.commit = self.commit
            writer._pace._pause = 10**9  # the thread commits all, so that the gate holds up nobody else

    def commit(self, operations: Sequence[Any]) -> Any:
        self.entered.set()
        assert self.gate.wait(10)
        self._before(operations)
        return self._after(self._commit(operations))

    async def commit_in_the_loop(self, operations: Sequence[Any]) -> Any:
        self.entered.set()
        assert await asyncio.to_thread(self.gate.wait, 10)
        self._before(operations)
        return self._after(await self._commit(operations))

    def _before(self, operations: Sequence[Any]) -> None:
        self.sizes.append(len(operations))
        if self.fail_before_commit:
            raise self.fail_before_commit.pop(0)

    def _after(self, answer: Any) -> Any:
        error = self.fail_after_commit.pop(0) if self.fail_after_commit else None
        if error is not None:
            raise error
        return answer


async def test_what_comes_during_a_commit_is_the_next_batch(world: World) -> None:
    key = await world.start()
    recorder = Recorder(world.store)
    recorder.gate.clear()
    first = world.store.submit(CommitStep(key, a_step("first")))
    await asyncio.to_thread(recorder.entered.wait, 10)
    most = MOST_TOGETHER if isinstance(world.store._writer, LoopWriter) else MOST_OPERATIONS  # type: ignore[attr-defined]
    rest = [world.store.submit(CommitStep(key, a_step(f"s{n}", n + 2))) for n in range(most + 7)]
    recorder.gate.set()
    assert {await future for future in [first, *rest]} == {Done()}
    assert recorder.sizes == [1, most, 7]


async def test_a_batch_holds_no_more_bytes_than_the_limit(world: World) -> None:
    key = await world.start()
    recorder = Recorder(world.store)
    recorder.gate.clear()
    first = world.store.submit(CommitStep(key, a_step("first")))
    await asyncio.to_thread(recorder.entered.wait, 10)
    large = '"' + "x" * (MOST_BYTES // 2) + '"'
    rest = [world.store.submit(CommitStep(key, a_step(f"s{n}", n + 2, large))) for n in range(3)]
    recorder.gate.set()
    await asyncio.gather(first, *rest)
    assert recorder.sizes == [1, 1, 1, 1]


@pytest.mark.parametrize("poison", ["\ud800", None], ids=["surrogate", "null-kind"])
async def test_a_poison_row_fails_alone(world: World, poison: str | None) -> None:
    key = await world.start()
    bad = a_step("bad", 50, f'"{poison}"') if poison else a_step("bad", 50, kind=None)
    recorder = Recorder(world.store)
    recorder.gate.clear()
    good = [world.store.submit(CommitStep(key, a_step(f"s{n}", n + 1))) for n in range(5)]
    failing = world.store.submit(CommitStep(key, bad))
    good += [world.store.submit(CommitStep(key, a_step(f"t{n}", n + 10))) for n in range(5)]
    run = a_run()
    good.append(world.store.submit(StartRun(run, 1_000)))
    recorder.gate.set()
    outcomes = await asyncio.gather(*good, failing, return_exceptions=True)
    assert outcomes[:-2] == [Done()] * 10
    assert outcomes[-2] == Started(run.id, True, 0)
    assert isinstance(outcomes[-1], Exception)
    assert len((await world.store.queries.list_steps(key.run_id)).data) == 10


async def test_after_an_ambiguous_commit_the_batch_is_played_again_and_all_is_there_once(
    world: World,
) -> None:
    key = await world.start()
    await world.wait(key, a_wait())
    recorder = Recorder(world.store)
    recorder.gate.clear()
    recorder.fail_after_commit += [None, ConnectionResetError("cut while committing")]
    recorder.backend.diagnose = _outage_if(ConnectionResetError, recorder.backend.diagnose)
    run = a_run()
    before = world.store.submit(StartRun(a_run(), 1_000))
    await asyncio.to_thread(recorder.entered.wait, 10)  # so that what follows is one batch
    futures = [
        world.store.submit(operation)
        for operation in (
            CommitStep(key, a_step("a", 1)),
            StartRun(run, 1_000, owner=world.worker),
            SendSignal("s", "go", "1", 1_500),
        )
    ]
    recorder.gate.set()
    await before
    step, started, signal = await asyncio.gather(*futures)
    # A step that is there with our own outcome is as good as done.
    assert step in (Done(1), Exists(a_step("a", 1), 1))
    assert started == Started(run.id, False, 1)
    assert signal.run_id == key.run_id
    assert len(await world.store.list_mail(world.worker)) == 1
    # Finish, played again after its commit.
    recorder.fail_after_commit.append(ConnectionResetError("cut while committing"))
    assert await world.submit(Finish(key, Status.COMPLETED, "1", None, None, 2_000)) == Done(1)


async def test_a_conflict_is_played_again_and_a_lasting_one_blamed_on_one(world: World) -> None:
    key = await world.start()
    recorder = Recorder(world.store)
    recorder.backend.diagnose = _conflict_if(ZeroDivisionError, recorder.backend.diagnose)
    recorder.fail_before_commit.extend(ZeroDivisionError() for _ in range(3))
    assert await world.step(key) == Done()
    recorder.fail_before_commit.extend(ZeroDivisionError() for _ in range(7))
    with pytest.raises(ZeroDivisionError):
        await world.step(key, "b", 2)
    assert await world.step(key, "b", 2) == Done()


async def test_a_cancelled_caller_s_operation_is_committed_all_the_same(world: World) -> None:
    key = await world.start()
    recorder = Recorder(world.store)
    recorder.gate.clear()
    task = asyncio.create_task(world.step(key))
    await asyncio.to_thread(recorder.entered.wait, 10)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    recorder.gate.set()
    assert await world.step(key) == Exists(a_step())


async def test_closing_commits_what_is_queued_and_then_refuses(ready_url: str) -> None:
    store = make_store(ready_url)
    await store.open()
    world = await with_worker(store)
    key = await world.start()
    futures = [store.submit(CommitStep(key, a_step(f"s{n}", n))) for n in range(300)]
    await store.close()
    assert {future.result() for future in futures} == {Done()}
    with pytest.raises(AgentflowError, match="not open"):
        store.submit(CommitStep(key, a_step("late")))
    await store.close()  # once more does no harm


async def test_what_was_submitted_as_the_thread_ended_fails(sqlite_ready: str, caplog: Any) -> None:
    store = make_store(sqlite_ready)
    await store.open()
    world = await with_worker(store)
    key = await world.start()
    writer: Any = store._writer  # type: ignore[attr-defined]
    writer._backend.poll = _end_the_thread
    await asyncio.wait([writer._ended])
    writer._is_closed = False  # as it was a moment ago
    with pytest.raises(AgentflowError, match="has ended"):
        await asyncio.wait_for(store.submit(CommitStep(key, a_step())), 5)
    assert "the writer's thread has ended by an error" in caplog.text
    writer._is_closed = True
    await store.close()


def _end_the_thread() -> Any:
    raise SystemExit


async def test_hints_are_told_after_the_outcome_and_a_broken_listener_hurts_nobody(world: World) -> None:
    heard: list[Hint] = []

    def broken(hint: Hint) -> None:
        raise ValueError("no good")

    world.store.subscribe(broken)
    forget = world.store.subscribe(lambda hint: None if hint.kind is HintKind.ANY else heard.append(hint))
    run_id = await world.queue()
    await asyncio.sleep(0)  # a turn of the loop later
    assert heard == [Hint(HintKind.READY)]
    forget()
    await world.submit(Finish((await world.claim_one()).key, Status.COMPLETED, "1", None, None, 2_000))
    await asyncio.sleep(0)
    assert heard == [Hint(HintKind.READY)]
    assert Hint(HintKind.ENDED, run_id) in world.hints


async def test_hints_are_told_outside_of_the_task_that_wrote(world: World) -> None:
    """It may be a run's, and whatever a listener begins would be taken for a branch of it."""
    tasks: list[object] = []
    world.store.subscribe(lambda hint: tasks.append(asyncio.current_task()))
    for _ in range(3):
        await world.queue()
    await asyncio.sleep(0)
    assert tasks
    # The writer of PostgreSQL is a task of its own.
    assert asyncio.current_task() not in tasks


@pytest.mark.parametrize("point", ["before_commit", "after_commit", "before_acknowledge"])
async def test_a_commit_passes_its_crash_points(world: World, point: str) -> None:
    key = await world.start()
    passed = threading.Event()
    crashpoints.arm(point, 1, passed.set)
    try:
        await world.step(key)
    finally:
        crashpoints.disarm()
    assert passed.is_set()


@pytest.mark.parametrize("point", ["before_claim", "after_claim"])
async def test_a_claim_passes_its_crash_points(world: World, point: str) -> None:
    passed = threading.Event()
    crashpoints.arm(point, 1, passed.set)
    try:
        await world.claim()
    finally:
        crashpoints.disarm()
    assert passed.is_set()


def _outage_if(kind: type[Exception], diagnose: Any) -> Any:
    return lambda error: Fault.OUTAGE if isinstance(error, kind) else diagnose(error)


def _conflict_if(kind: type[Exception], diagnose: Any) -> Any:
    return lambda error: Fault.CONFLICT if isinstance(error, kind) else diagnose(error)
