"""A process of the simulation: a store of its own on the shared file, and a worker, in one thread with all others.

The store is the real `SqliteStore` with the real batches, statements and file locks; only who carries out a batch, and
when, is decided by the seed. Dying closes its connections and file locks, as the operating system does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import json
import sqlite3
from asyncio import Handle
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentflow.client import Client
from agentflow.engine.leases import FENCE_AT, RENEW_AT, HeartbeatThread
from agentflow.engine.worker import Worker
from agentflow.errors import ConfigurationError
from agentflow.settings import Settings
from agentflow.store.batches import Submission
from agentflow.store.claim_types import FunctionInfo, Origin
from agentflow.store.hints import Hint, HintKind
from agentflow.store.operations.workers import RegisterWorker, ReleaseOrphans
from agentflow.store.sqlite.backend import SqliteBackend
from agentflow.store.sqlite.store import SqliteStore
from agentflow.store.writer import Writer
from tests.simulation.bodies import witness
from tests.simulation.loop import LoopClock, current_process

if TYPE_CHECKING:
    from tests.simulation.world import World

CONCURRENCY = 4


class Killed(BaseException):
    """Takes down what a process was doing when it died."""


class Interrupted(BaseException):
    """A batch was refused, or its answer was lost: it is committed again later."""


class Process:
    """One of the processes; without `has_worker` it only sends."""

    def __init__(self, world: World, name: str, settings: Settings, *, has_worker: bool) -> None:
        self.world = world
        self.name = name
        self.kept: list[Handle] | None = None
        self.is_dead = False
        self.context = contextvars.copy_context()
        self.context.run(current_process.set, self)
        self.context.run(witness.set, world.oracle)
        self._settings = settings
        self._has_worker = has_worker
        self.store = SimulatedStore(self, world.path)
        self.client = Client(world.app.id, self.store, world.app._registry, settings, LoopClock(world.loop))
        self.worker: Worker | None = None
        self.heartbeats: list[SimulatedHeartbeat] = []
        self._is_told = False

    @property
    def works(self) -> bool:
        return self.kept is None

    def boot(self) -> asyncio.Task[None]:
        return self.spawn(self._boot())

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        return self.world.loop.create_task(coroutine, context=self.context.copy())

    async def _boot(self) -> None:
        self.store.attach()
        if not self._has_worker:
            return
        self.worker = worker = Worker(
            self.world.app.id,
            self.store,
            self.world.app._registry,
            settings=self._settings,
            clock=LoopClock(self.world.loop),
            list_functions=self.client.list_functions,
            on_written=self.client.watchers.note_written,
            on_ended=self.client.watchers.note_end,
            concurrency=CONCURRENCY,
        )
        worker._rng.seed(self.world.rng.random())
        self.client.local_worker = worker
        try:
            await worker.start()
        except ConfigurationError as error:
            self.world.oracle.boot_failed(error)
            self.kill()

    def kill(self) -> None:
        """The process is gone; what it was about to do stays where it is."""
        if self.is_dead:
            return
        self.is_dead = True
        self.kept = self.kept or []
        self.let_go()

    def let_go(self) -> None:
        for heartbeat in self.heartbeats:
            heartbeat.cut()
        self.store.cut()

    def stop(self) -> None:
        """As by SIGSTOP."""
        if self.kept is None:
            self.kept = []

    def go_on(self) -> None:
        """As by SIGCONT."""
        if self.kept is not None and not self.is_dead:
            kept, self.kept = self.kept, None
            self.world.loop.resume(kept)

    def notice_others(self, delay: float) -> None:
        """Another process has written: this one sees it when it polls the next time."""
        if self._is_told or self.is_dead:
            return
        self._is_told = True
        self.world.loop.call_later(delay, self._hear, context=self.context)

    def _hear(self) -> None:
        self._is_told = False
        self.store._tell([Hint(HintKind.ANY)])


class SimulatedStore(SqliteStore):
    """The real one, with a writer that the loop drives."""

    def __init__(self, process: Process, path: Path) -> None:
        super().__init__(path, durability="process")
        self._process = process
        self.queries = FewPages(path)  # type: ignore[assignment]
        self._backend: SimulatedBackend | None = None

    def attach(self) -> None:
        self._backend = SimulatedBackend(self._process, self._path, self._leases, self._locks)
        self._backend.connect()
        self._writer = SimulatedWriter(self._process, self._backend, listener=self._tell)

    def cut(self) -> None:
        if self._backend is not None:
            self._backend.disconnect()
            self._backend = None
        self._locks.drop_all()


class FewPages:
    """What the engine asks of the pages' queries: what is registered here is known anyway, and a rerun's origin."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def list_functions(self) -> list[FunctionInfo]:
        return []

    async def get_origin(self, run_id: str) -> Origin:
        with closing(sqlite3.connect(self._path)) as connection:
            connection.execute("PRAGMA wal_autocheckpoint=0")
            [(app, function, text)] = connection.execute(
                "SELECT app, function, input FROM agentflow_run JOIN agentflow_run_io ON run_id = id WHERE id = ?",
                (run_id,),
            )
        return Origin(run_id, app, function, text, trigger=None, tags=(), event_id=None)


class SimulatedBackend(SqliteBackend):
    """Fails when the seed says so; what it does is shown to the oracle."""

    def __init__(self, process: Process, path: Path, leases: Any, locks: Any) -> None:
        super().__init__(path, strict=False, leases=leases, locks=locks)
        self._process = process

    def commit(self, operations: Sequence[Any], *, is_patient: bool = True) -> tuple[list[Any], list[Hint]]:
        world = self._process.world
        fate = world.faults.of_commit(self._process)
        if fate == "refused":
            raise Interrupted
        if fate == "killed before":
            self._process.kill()
            raise Killed
        before = self._connection.total_changes
        world.oracle.before_commit(operations)
        outcomes, hints = world.engine_commit(super().commit, operations)
        has_changed = self._connection.total_changes != before
        world.oracle.after_commit(self._process, operations, outcomes, has_changed=has_changed)
        if has_changed:
            world.announce(self._process)
        if fate == "killed after":
            self._process.kill()
            raise Killed
        if fate == "answer lost":
            raise Interrupted
        return outcomes, hints


class SimulatedWriter(Writer):
    """The real queue, batches and answers; instead of a thread, callbacks at instants that the seed decides."""

    def __init__(
        self, process: Process, backend: SimulatedBackend, *, listener: Callable[[Any], None]
    ) -> None:
        super().__init__(backend, listener=listener, name="simulated")
        self._process = process
        self._world = process.world
        self._loop = process.world.loop
        self._is_busy = False
        self._at_the_thread = (
            1  # never none, so that nothing is committed in the turn in which it is submitted
        )
        self._answers: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._answer_at = 0.0

    def _hand_over(self, batch: list[Submission]) -> None:
        super()._hand_over(batch)
        if not self._is_busy and not self._world.is_over:
            self._is_busy = True
            self._later(self._world.faults.pause(), self._form_batch)

    def _form_batch(self) -> None:
        batch, _ = self._next_batch(0.0)
        self._later(self._world.faults.pause(), self._write, self._world.arrange(batch))

    def _write(self, batch: Any) -> None:
        try:
            self._commit(batch)
        except Interrupted:
            self._later(self._world.faults.outage(), self._write, batch)
        except Killed:
            pass
        else:
            self._is_busy = bool(self._held_back) or not self._queue.empty()
            if self._is_busy:
                self._later(self._world.faults.pause(), self._form_batch)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        # Answers keep their order, as those of `call_soon_threadsafe` do.
        self._answers.append((function, args))
        self._later(self._world.faults.pause(), self._pass_on)

    def _pass_on(self) -> None:
        function, args = self._answers.popleft()
        function(*args)

    def _later(self, delay: float, callback: Callable[..., None], *args: Any) -> None:
        self._world.loop.call_later(delay, callback, *args, context=self._process.context)


class SimulatedHeartbeat(HeartbeatThread):
    """The real statement and the real rules, on the loop's time instead of a thread's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        process = current_process.get()
        assert isinstance(process, Process)
        self._process = process
        self._beating = self._store.heartbeat()
        self._timer: asyncio.TimerHandle | None = None
        process.heartbeats.append(self)

    def start(self) -> None:
        self._watch_fence()
        self._beat_later()

    def stop(self) -> None:
        super().stop()
        if self._timer is not None:
            self._timer.cancel()

    async def join(self) -> None:
        self.cut()

    def cut(self) -> None:
        self._beating.close()

    def _beat_later(self) -> None:
        delay = self._lease * RENEW_AT + self._process.world.faults.pause()
        self._timer = self._loop.call_later(delay, self._beat, context=self._process.context)

    def _beat(self) -> None:
        if self._stop.is_set():
            return
        began_at = self._loop.time()
        if not self._process.world.faults.is_beat_lost():
            if not self._beating.renew(self._worker_id, self._epoch, self._lease):
                self._lose()
                return
            self._renewed_at = began_at
        if began_at - self._renewed_at > self._lease * FENCE_AT:
            self._lose()
        else:
            self._beat_later()


class SimulatedThreads(concurrent.futures.Executor):
    """Sync bodies: each runs at once, at an instant of its own."""

    def __init__(self, **_: Any) -> None:
        self._is_shut = False

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        process = current_process.get()
        assert isinstance(process, Process)
        job: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            if not job.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except Exception as error:
                job.set_exception(error)
            else:
                job.set_result(result)

        process.world.loop.call_later(process.world.faults.pause(), run, context=process.context)
        return job

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._is_shut = True


def describe(operation: Any, outcome: Any) -> str:
    """What the digest of a history holds of an operation and what it gave."""
    name = type(operation).__name__
    if isinstance(operation, RegisterWorker):  # it holds the number of this process
        return f"{name} -> {outcome}"
    if isinstance(operation, ReleaseOrphans):  # it holds sets, in no order
        return f"{name} -> {outcome[0]}"
    return f"{name}{json.dumps(operation, default=repr, ensure_ascii=False)} -> {outcome!r}"
