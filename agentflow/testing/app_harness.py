"""`harness`: an app on a database of its own, with one worker and a clock that moves only by hand."""

from __future__ import annotations

import asyncio
import contextvars
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from agentflow.app import App
from agentflow.clock import Clock, SystemClock, VirtualClock, to_datetime
from agentflow.durations import Duration, to_micros
from agentflow.engine.unwinding import LeaseLost
from agentflow.engine.worker import Worker
from agentflow.errors import ConfigurationError
from agentflow.functions import Target
from agentflow.handles import RunHandle
from agentflow.info import current_body
from agentflow.models.registry import ModelLike, substitute_model
from agentflow.step import EventLike
from agentflow.store.opening import open_store
from agentflow.testing.crashes import harnesses


class Harness:
    """What `harness` gives. Domain time (waits, retries, approvals) is virtual; leases and `timeout=` are real."""

    def __init__(self, app: App, clock: Clock, *, replay_every_step: bool) -> None:
        self.app = app
        self._replay_every_step = replay_every_step
        self._clock = clock
        self._worker: Worker | None = None
        self._started = asyncio.Event()
        self._burial: asyncio.Task[None] | None = None
        self.loop = asyncio.get_running_loop()

    def now(self) -> datetime:
        """Domain time."""
        return to_datetime(self._clock.now())

    async def start(self, function: Target, data: Any = None, **options: Any) -> RunHandle[Any]:
        """`app.start`."""
        return await self.app.start(function, data, **options)

    async def send(self, event_or_events: EventLike | Sequence[EventLike]) -> list[str]:
        """`app.send`."""
        return await self.app.send(event_or_events)

    async def signal(self, name: str, data: Any = None, *, buffer: Duration | None = None) -> str | None:
        """`app.signal`."""
        return await self.app.signal(name, data, buffer=buffer)

    async def idle(self) -> None:
        """Wait until nothing more can happen without time or input."""
        while (worker := self._worker) is not None:
            begun, running = worker.begun, worker.running
            if running:
                await worker.changed()
                continue
            found = await worker.tick_now() or await worker.claim_now() or await worker.tend_lanes_now()
            # A commit that was on its way at a crash may have hidden its run from the first reaping.
            found = found or await worker.reap_now() or await worker.cancel_jobs_now()
            if not (found or worker.running or worker.begun != begun):
                return

    async def advance(self, duration: Duration) -> None:
        """Let domain time pass; everything that comes due has run, in its order, when this returns."""
        clock = self._virtual_clock("advance")
        target = clock.now() + to_micros(duration)
        while self._worker is not None:
            await self.idle()
            if (worker := self._worker) is None:
                break  # it has crashed on the way
            ready_at = await self.app.client.store.next_ready_at(
                app=self.app.id, functions=[function.id for function in self.app.registered]
            )
            due = [at for at in (ready_at, worker.next_tick_at) if at is not None and at <= target]
            if not due:
                break
            clock.advance_to(max(min(due), clock.now()))
        clock.advance_to(target)
        await self.idle()

    async def crash(self) -> None:
        """The worker is gone, without clean-up, as after kill -9."""
        await self._buried()
        if self._worker is None:
            raise ConfigurationError("the harness's worker has crashed already: call restart() first")
        worker, self._worker = self._worker, None
        await worker.crash()

    async def restart(self) -> None:
        """Start a new worker; what a crashed one has left behind is taken over."""
        await self.stop()
        self._worker = worker = self.app.engine_worker(replay_every_step=self._replay_every_step)
        self._started.clear()
        try:
            await worker.start()
        finally:
            self._started.set()

    async def stop(self) -> None:
        """End the worker in good order, or the burial of one that has crashed."""
        await self._buried()
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop()
        await self._buried()

    def fall(self) -> bool:
        """Let the worker die within whatever calls this, in any thread (for `crash_after`); False: there is none."""
        worker = self._worker
        if worker is None:
            return False
        worker.die()
        try:
            is_here = asyncio.get_running_loop() is self.loop
        except RuntimeError:
            is_here = False
        if not is_here:
            self.loop.call_soon_threadsafe(self._bury, worker)
            return True
        self._bury(worker)
        body = current_body.get()
        if body is not None and worker.has_run(body.run_id):
            # A process that dies here does not send the request that would follow.
            raise LeaseLost(f"the worker of run {body.run_id} has crashed")
        return True

    def _bury(self, worker: Worker) -> None:
        if self._worker is worker:
            self._worker = None
        worker.drop_runs()

        async def crash() -> None:
            await self._started.wait()
            await worker.crash()

        # Not by the loop: the point may have been passed in a task of a run, and would make it one of the run's.
        self._burial = contextvars.Context().run(
            lambda: asyncio.Task(crash(), loop=self.loop, name="agentflow-burial")
        )

    async def _buried(self) -> None:
        """Nothing of a worker that crashed is left in this process."""
        if self._burial is not None:
            await self._burial
            self._burial = None

    def _virtual_clock(self, method: str) -> VirtualClock:
        if not isinstance(self._clock, VirtualClock):
            raise ConfigurationError(f'{method}() needs harness(clock="virtual")')
        return self._clock


@asynccontextmanager
async def harness(
    app: App,
    *,
    database_url: str | None = None,
    model: ModelLike | None = None,
    clock: Literal["virtual", "system"] = "virtual",
    strict_replay: bool = True,
    replay_every_step: bool = False,
) -> AsyncIterator[Harness]:
    """Run an app for a test, on a SQLite file of its own unless `database_url` is given (it is migrated then).

    With `model` every model call of the app goes to that one. With `replay_every_step` a run begins from the top after
    every step, and one whose code does not do the same again fails with `ReplayMismatch`.

        async with harness(app, model=ScriptedModel(["Hello."])) as h:
            run = await h.start(greet, "Ana")
            await h.idle()
            assert await run.result() == "Hello."
    """
    with ExitStack() as stack:
        if database_url is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentflow-test-"))
            database_url = f"sqlite:///{Path(folder) / 'test.db'}"
        if model is not None:
            stack.enter_context(substitute_model(model))
        settings = app.settings.model_copy(
            update={"database_url": database_url, "strict_replay": strict_replay}
        )
        store = open_store(database_url, settings=settings)
        await store.open(migrate=True)
        domain = VirtualClock(time.time_ns() // 1000) if clock == "virtual" else SystemClock()
        await app.connect(store, clock=domain, settings=settings)
        running = Harness(app, domain, replay_every_step=replay_every_step)
        harnesses.append(running)
        try:
            await running.restart()
            yield running
        finally:
            harnesses.remove(running)
            await running.stop()
            await app.close()
