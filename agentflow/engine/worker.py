"""A worker: the runs this process has in memory, under one lease."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agentflow.clock import Clock
from agentflow.crashpoints import point
from agentflow.engine.claims import Claims
from agentflow.engine.garbage import collect_seldom
from agentflow.engine.host import Host, Timers
from agentflow.engine.jobs import AbandonedJobs
from agentflow.engine.lanes import Lanes
from agentflow.engine.leases import RENEW_AT, HeartbeatThread, Reaper
from agentflow.engine.retention import Retention
from agentflow.engine.runner import Runner
from agentflow.engine.schedules import Schedules
from agentflow.engine.tasks import install_task_factory
from agentflow.engine.verdicts import Suspended, Verdict
from agentflow.engine.wakeups import Wakeups
from agentflow.engine.warm import WarmRun, WarmRuns
from agentflow.errors import ConfigurationError
from agentflow.flow import Budget
from agentflow.functions import Registry
from agentflow.ids import new_id
from agentflow.model_limits import ModelLimits
from agentflow.runs import End
from agentflow.settings import Settings
from agentflow.starts import plan_admission
from agentflow.store.claim_types import ClaimedRun, FunctionInfo, Plan, Reclaimed
from agentflow.store.operation_types import PlanRun
from agentflow.store.poison import is_suspect, must_be_alone
from agentflow.store.protocol import Store
from agentflow.store.stored_types import NewRun, RunKey

logger = logging.getLogger("agentflow.engine")

HAND_OVER_SECONDS = 1.0
RETIRE_SECONDS = 2.0
ORPHAN_INTERVAL_SECONDS = 5.0
LONGEST_REAP_SECONDS = 1.0
"""However long leases are: on SQLite a file lock tells at once that a worker is dead."""


class Worker:
    """Runs the functions of one app until it is stopped.

    `start()` takes a lease and begins; `stop()` returns when every run has ended, was suspended or handed over.
    """

    def __init__(
        self,
        app: str,
        store: Store,
        registry: Registry,
        *,
        settings: Settings,
        clock: Clock,
        list_functions: Callable[[], Awaitable[Sequence[FunctionInfo]]],
        concurrency: int,
        on_written: Callable[[str], None],
        on_ended: Callable[[End], None],
        version: str = "",
        model_limits: ModelLimits | None = None,
        budgets: tuple[Budget, ...] = (),
        replay_every_step: bool = False,
    ) -> None:
        if concurrency < 1:
            raise ConfigurationError(f"concurrency={concurrency}: a worker needs room for one run at least")
        self._app = app
        self._store = store
        self._registry = registry
        self._settings = settings
        self._clock = clock
        self._concurrency = concurrency
        self._version = version
        self._rng = random.Random()
        self._threads = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="agentflow-body")
        self._runners: dict[str, tuple[Runner, asyncio.Task[None]]] = {}
        self._next: dict[str, ClaimedRun] = {}
        self._begun = 0
        self._planning: set[asyncio.Future[Any]] = set()
        self._alone: ClaimedRun | None = None
        self._offered: set[str] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._heartbeat: HeartbeatThread | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._is_draining = False
        self._is_started = False
        self._is_dead = False
        self._stopped = asyncio.Event()
        self._changed = asyncio.Event()
        self._identity = ("", 0)
        self._context = contextvars.copy_context()
        self._wakeups = Wakeups(
            on_ready=self._reclaim, on_mail=self._look_into_mail, on_any=self._look_into_all_mail
        )
        self._mail_task: asyncio.Task[None] | None = None
        self._warm = WarmRuns()
        self._reclaims: set[asyncio.Task[None]] = set()
        self._host = Host(
            app=app,
            store=store,
            registry=registry,
            settings=settings,
            clock=clock,
            timers=Timers(clock),
            threads=self._threads,
            rng=self._rng,
            list_functions=list_functions,
            is_draining=lambda: self._is_draining,
            on_written=on_written,
            on_ended=on_ended,
            model_limits=model_limits or {},
            budgets=budgets,
            replay_every_step=replay_every_step,
        )
        gates = registry.gates()
        self._gated = frozenset(gates)
        self._claims = Claims(
            store,
            clock,
            registry,
            self._wakeups,
            app=app,
            worker=lambda: self._identity,
            room=self._room,
            on_claimed=self._take,
            rng=self._rng,
            gates=gates,
        )
        self._lanes = Lanes(
            store,
            clock,
            app=app,
            functions=registry.ids(),
            gates=gates,
            on_open=self._wakeups.look_for_runs,
        )
        self._retention = Retention(store, clock, keep=settings.retention, rng=self._rng)
        self._schedules = Schedules(store, clock, registry, app=app)
        self._abandoned_jobs = AbandonedJobs(store, clock, app=app)
        self._reaper = Reaper(
            store,
            clock,
            interval_seconds=min(max(0.3, settings.lease_seconds * RENEW_AT), LONGEST_REAP_SECONDS),
            on_reaped=self._wakeups.look_for_runs,
        )

    # ------------------------------------------------------------------------------------------ life

    @property
    def id(self) -> str:
        return self._identity[0]

    async def stopped(self) -> None:
        """Wait until it has stopped."""
        await self._stopped.wait()

    @property
    def is_stopping(self) -> bool:
        return self._is_draining

    async def start(self) -> None:
        """Take a lease and begin to work."""
        if self._is_started:
            raise ConfigurationError("this worker was started before: make a new one with app.worker()")
        self._is_started = True
        self._context = contextvars.copy_context()
        install_task_factory(asyncio.get_running_loop())
        collect_seldom()
        await self._register()
        self._unsubscribe = self._store.subscribe(self._wakeups.hear)
        await self._reaper.run_once()
        await self._schedules.begin()
        await self._claims.run_once()
        self._loops = [
            asyncio.create_task(self._claims.run(), name="agentflow-claims"),
            asyncio.create_task(self._reaper.run(), name="agentflow-reaper"),
            asyncio.create_task(self._release_orphans(), name="agentflow-orphans"),
            asyncio.create_task(self._schedules.run(), name="agentflow-schedules"),
            asyncio.create_task(self._lanes.run(), name="agentflow-lanes"),
            asyncio.create_task(self._retention.run(), name="agentflow-retention"),
            asyncio.create_task(self._abandoned_jobs.run(), name="agentflow-abandoned-jobs"),
        ]

    async def stop(self) -> None:
        """Take no more runs, hand over those without a running body, give the others their grace, and end."""
        if not self._is_started or self._stopped.is_set():
            self._stopped.set()
            return
        if self._is_draining:
            await self._stopped.wait()
            return
        self._is_draining = True
        try:
            await self._end_loops()
            for runner, _ in self._runners.values():
                runner.drain()
            await self._wait_for_runners(self._settings.shutdown_grace_seconds)
            for runner, _ in self._runners.values():
                runner.lose("the worker stopped before the body had ended")
            await self._wait_for_runners(HAND_OVER_SECONDS)
            await self._retire(self.id)
        finally:
            await self._end()  # whatever happened: a heartbeat that goes on keeps others from the runs

    def die(self) -> None:
        """Be dead from this instant on: no body begins and nothing is written. From any thread (for tests)."""
        self._is_dead = self._is_draining = True
        self._store.disown_worker(self.id)

    def drop_runs(self) -> None:
        """What a crash does to the runs in memory; nothing of them is written."""
        for runner, _ in self._runners.values():
            runner.lose("the worker crashed")

    async def crash(self) -> None:
        """Stop as a killed process does, as far as the database can see: nothing is written any more (for tests)."""
        self._is_dead = self._is_draining = True
        await self._end_loops()
        self.drop_runs()
        await self._store.abandon_worker(self.id)
        await self._wait_for_runners(HAND_OVER_SECONDS)
        await self._end()

    async def _register(self) -> None:
        worker_id = new_id("wrk", self._clock.now())
        leased_at = time.monotonic()
        epoch = await self._store.register_worker(
            worker_id, lease_seconds=self._settings.lease_seconds, version=self._version
        )
        self._identity = (worker_id, epoch)
        if self._is_dead:
            self._store.disown_worker(worker_id)
        self._heartbeat = HeartbeatThread(
            self._store,
            worker_id,
            epoch,
            lease_seconds=self._settings.lease_seconds,
            hang_limit_seconds=self._settings.hang_limit_seconds,
            on_lost=self._lost_lease,
            leased_at=leased_at,
        )
        self._heartbeat.start()

    def _lost_lease(self) -> None:
        """Fenced: drop everything, and begin again as somebody else."""
        if self._is_dead:
            return
        logger.warning("worker %s has lost its lease; it goes on under a new id", self.id)
        for runner, _ in self._runners.values():
            runner.lose("the worker has lost its lease")
        self._alone = None
        self._loops.append(asyncio.create_task(self._begin_again(), name="agentflow-new-lease"))

    async def _begin_again(self) -> None:
        old = self.id
        while not self._is_draining:
            try:
                await self._register()
                break
            except Exception:
                logger.exception("could not get a new lease; trying again in a second")
                await asyncio.sleep(1.0)
        self._wakeups.look_for_runs()
        await self._retire(old)

    async def _retire(self, worker_id: str) -> None:
        """Let go of what the worker still owns; if the database is away others take it when the lease is over."""
        try:
            async with asyncio.timeout(RETIRE_SECONDS):
                await self._store.retire_worker(worker_id)
        except Exception as error:
            logger.warning("worker %s could not be retired; its lease has to run out: %r", worker_id, error)

    async def _end_loops(self) -> None:
        for loop in self._loops:
            loop.cancel()
        if self._mail_task is not None:
            self._mail_task.cancel()
            self._loops.append(self._mail_task)
        for reclaim in self._reclaims:
            reclaim.cancel()
        await asyncio.gather(*self._loops, *self._reclaims, return_exceptions=True)
        self._loops.clear()
        if self._unsubscribe is not None:
            self._unsubscribe()

    async def _end(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
            await self._heartbeat.join()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._stopped.set()

    async def _wait_for_runners(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + seconds
        # More than once: a run whose start was on its way begins meanwhile.
        while self._runners and (left := give_up_at - loop.time()) > 0:
            await asyncio.wait([task for _, task in self._runners.values()], timeout=left)

    # ------------------------------------------------------------------------------------------ runs

    @property
    def running(self) -> int:
        """How many runs are in memory."""
        return len(self._runners) + len(self._planning)

    @property
    def begun(self) -> int:
        """How many runs have begun or gone on here so far."""
        return self._begun

    def has_run(self, run_id: str) -> bool:
        """Whether that run is in memory here."""
        return run_id in self._runners

    async def changed(self) -> None:
        """Wait until a run has left memory."""
        self._changed.clear()
        await self._changed.wait()

    async def reap_now(self) -> int:
        """Take runs from workers that are gone; how many it took (for tests and simulation)."""
        return len(await self._reaper.run_once())

    async def claim_now(self) -> int:
        """Claim what is ready; how many it got (for tests and simulation)."""
        return await self._claims.run_once()

    async def tick_now(self) -> int:
        """Start the runs of schedules that are due; how many (for tests and simulation)."""
        return await self._schedules.run_once()

    async def tend_lanes_now(self) -> int:
        """Let through what stands before an open gate; how many (for tests and simulation)."""
        return await self._lanes.run_once()

    async def cancel_jobs_now(self) -> int:
        """Cancel the jobs at model providers whose runs have ended; how many (for tests and simulation)."""
        return await self._abandoned_jobs.run_once()

    @property
    def next_tick_at(self) -> int | None:
        """When the next schedule is due, as of the last look."""
        return self._schedules.next_at

    def offer(self, run: NewRun) -> str | None:
        """The worker's id if this run can begin here at once, before anything that is queued."""
        has_room = self._room() > 0 and not self._is_draining and not self._claims.has_backlog
        fits = (
            run.app == self._app and run.ready_at <= self._clock.now() and self._registry.find(run.function)
        )
        is_free = run.admission is None and not run.is_unplanned
        if not (has_room and fits and is_free and self._is_started):
            return None
        self._offered.add(run.id)
        return self.id

    def decline(self, run: NewRun) -> None:
        """The offer was not taken."""
        self._offered.discard(run.id)
        self._begin_alone()

    def begin(self, run: NewRun, owner: str) -> None:
        """Begin a run that was stored as running and owned by this worker."""
        self._offered.discard(run.id)
        key = RunKey(run.id, owner, 1)
        self._take(
            ClaimedRun(
                key=key,
                app=run.app,
                function=run.function,
                input=run.input,
                trigger=run.trigger,
                created_at=run.created_at,
                started_at=run.created_at,
                parent_id=run.parent_id,
                parent_key=run.parent_key,
                root_id=run.root_id,
                depth=run.depth,
                tags=run.tags,
                mail=0,
                crash_count=0,
                cancel_at=None,
                reason=None,
                next_seq=1,
            )
        )

    def _reclaim(self, run_id: str) -> bool:
        """A run is ready: take it up again if it is known here; whether that is tried."""
        warm = self._warm.take(run_id)
        if warm is None or self._is_draining or self._claims.has_backlog or self._room() <= 0:
            return False
        self._offered.add(run_id)
        task = asyncio.create_task(self._take_up(warm), name="agentflow-reclaim")
        self._reclaims.add(task)
        task.add_done_callback(self._reclaims.discard)
        return True

    async def _take_up(self, warm: WarmRun) -> None:
        last, (worker_id, epoch) = warm.claimed.key, self._identity
        found: Reclaimed | None = None
        try:
            found = await self._store.reclaim(
                worker_id, epoch=epoch, last=last, next_seq=warm.journal.next_seq, now=self._clock.now()
            )
        except Exception:
            logger.exception("run %s could not be taken up again; it is claimed", last.run_id)
        finally:
            self._offered.discard(last.run_id)
        if found is None:
            self._wakeups.look_for_runs()
            self._begin_alone()
            return
        claimed = warm.taken_up(worker_id, found)
        self._take(claimed)
        if found.mail != claimed.mail:
            self._look_into_mail(last.run_id)

    def _room(self) -> int:
        if self._alone is not None and not self._is_proven(self._alone):
            return 0
        return self._concurrency - len(self._runners) - len(self._next) - len(self._offered)

    def _is_proven(self, claimed: ClaimedRun) -> bool:
        """Whether this suspect has got a step further: others may begin beside it."""
        entry = self._runners.get(claimed.key.run_id)
        return entry is not None and entry[0].has_new_step

    def _take(self, claimed: ClaimedRun) -> None:
        run_id = claimed.key.run_id
        if run_id in self._runners:
            # The old coroutine has not ended yet. The run is ours in the database; it begins when that one is gone.
            self._next[run_id] = claimed
            return
        if claimed.plan is not None:
            self._plan(claimed, claimed.plan)
            return
        if must_be_alone(claimed.crash_count):
            self._alone = claimed
            self._begin_alone()
        else:
            self._begin_run(claimed)

    def _plan(self, claimed: ClaimedRun, plan: Plan) -> None:
        """Say what flow control asks of a run whose sender could not; it is claimed again then."""
        function = self._registry.find(claimed.function)
        assert function is not None, "claims ask for registered functions only"
        admission, ready_at = plan_admission(claimed, function, plan)
        planned = self._store.submit(PlanRun(claimed.key, admission, ready_at, self._clock.now()))
        self._planning.add(planned)
        planned.add_done_callback(self._is_planned)

    def _is_planned(self, planned: asyncio.Future[Any]) -> None:
        self._planning.discard(planned)
        self._changed.set()
        if not planned.cancelled() and planned.exception() is not None:
            logger.error("a run could not be planned; it is tried again", exc_info=planned.exception())

    def _begin_run(self, claimed: ClaimedRun) -> None:
        run_id = claimed.key.run_id
        function = self._registry.find(claimed.function)
        assert function is not None, "claims ask for registered functions only"
        runner = Runner(claimed, function, self._host)
        # In the worker's own context: whoever started the run may be the body of a step.
        task = self._context.copy().run(
            asyncio.get_running_loop().create_task, self._execute(runner), name=f"agentflow-{run_id}"
        )
        self._runners[run_id] = (runner, task)
        self._begun += 1
        point("after_start")

    async def _execute(self, runner: Runner) -> None:
        verdict: Verdict | None = None
        try:
            verdict = await runner.execute()
        except Exception:
            logger.exception("run %s could not be brought to an end here", runner.run_id)
        finally:
            self._runners.pop(runner.run_id, None)
            self._changed.set()
            if self._alone is not None and self._alone.key == runner.run_key:
                self._alone = None
            following = self._next.pop(runner.run_id, None)
            if isinstance(verdict, Suspended) and following is None and runner.function.id not in self._gated:
                self._warm.keep(runner)
            if following is not None and not self._is_draining:
                self._take(following)
            elif (
                self._claims.has_backlog
                or is_suspect(runner.claimed.crash_count)
                or (isinstance(verdict, Suspended) and verdict.ready_at < self._clock.now() + 5_000_000)
            ):
                self._wakeups.look_for_runs()
            self._begin_alone()

    def _begin_alone(self) -> None:
        """A run that has to be alone begins when all others are gone."""
        if self._alone is not None and not (self._runners or self._offered or self._is_draining):
            self._begin_run(self._alone)

    def _look_into_mail(self, run_id: str) -> None:
        entry = self._runners.get(run_id)
        if entry is not None:
            entry[0].look_into_mail()

    def _look_into_all_mail(self) -> None:
        if self._runners and (self._mail_task is None or self._mail_task.done()):
            self._mail_task = asyncio.create_task(self._read_mail(), name="agentflow-mail")

    async def _read_mail(self) -> None:
        try:
            for run_id, mail, cancel in await self._store.list_mail(self.id):
                entry = self._runners.get(run_id)
                if entry is not None and (cancel or mail != entry[0].waits.mail):
                    entry[0].look_into_mail()
        except Exception:
            logger.exception("could not look whether there is mail; the next hint tries again")

    async def _release_orphans(self) -> None:
        while True:
            await asyncio.sleep(ORPHAN_INTERVAL_SECONDS)
            try:
                # With no claim under way, what is claimed is held: however long its answer took.
                async with self._claims.one_at_a_time:
                    held = {*self._runners, *self._next, *self._offered}
                    if self._alone is not None:
                        held.add(self._alone.key.run_id)
                    await self._store.release_orphans(self.id, held, now=self._clock.now())
                self._look_into_all_mail()
            except Exception:
                logger.exception("could not look for orphaned runs; trying again later")
