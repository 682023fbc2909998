"""One simulated world: a file, some processes, the faults that a seed brings, and the driver that wants work done."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from agentflow import crashpoints, ids
from agentflow.app import App
from agentflow.approvals import Approve, DecisionInput, Deny
from agentflow.errors import NotFound, NoWaiter, SignalConflict
from agentflow.events import Event
from agentflow.settings import Settings
from agentflow.store.operation_types import CancelRun, Decide, PauseFunction, RegisterFunctions
from agentflow.store.outcome_types import DecisionResult
from agentflow.store.sqlite.files import LockFolder
from agentflow.store.sqlite.schema import prepare
from tests.simulation.faults import CALM_AFTER, Faults
from tests.simulation.loop import NumberedTask, SimulatedLoop, Stuck, VirtualTime, current_process
from tests.simulation.oracle import Oracle, Violation
from tests.simulation.plans import AGAIN, PERHAPS, Node, Plan, fits, generate, make_app
from tests.simulation.process import Killed, Process, SimulatedHeartbeat, SimulatedThreads
from tests.simulation.traffic import KINDS, letters

LEASE = 4.0
GIVE_UP_AFTER = 95.0
POINTS = (
    "before_claim",
    "after_claim",
    "after_start",
    "before_suspend",
    "after_suspend",
    "before_finish",
    "after_finish",
    "before_acknowledge",
    "before_notify",
)

Engine = Callable[..., Any]


@dataclass
class Root:
    """A run that the driver wants."""

    prefix: str
    plan: Node
    signals: list[tuple[str, int]]
    run_id: str | None = None
    was_cancelled: bool = False
    rerun_of: str | None = None

    def fits(self, value: Any) -> bool:
        return fits(self.plan, value)


class Story(NamedTuple):
    """What became of a seed."""

    digest: str
    commits: int
    bodies: int
    kills: int
    stops: int
    seconds: float


class World:
    """See the module."""

    def __init__(
        self, path: Path, app: App, seed: int, *, is_calm: bool = False, about: Sequence[str] | None = None
    ) -> None:
        """`about` names the kinds of traffic that there have to be, instead of some that the seed draws."""
        self.path = path
        self.app = app
        self.about = about
        self.rng = rng = random.Random(seed)
        self.loop = SimulatedLoop(random.Random(rng.random()))
        self.faults = Faults(rng, self.loop, is_calm=True) if is_calm else Faults.drawn(rng, self.loop)
        self.oracle = Oracle(path, self.loop, rng)
        self.is_over = False
        self._is_decided = False
        self.processes: list[Process] = []
        self.roots: list[Root] = []
        self._settings = Settings(durability="process", lease_seconds=LEASE, strict_replay=True)
        self.engine_commit: Engine = lambda commit, operations: commit(operations)
        """Replaced by mutants of the writer."""
        self.arrange: Callable[[Any], Any] = lambda batch: batch

    def announce(self, writer: Process) -> None:
        for process in self.processes:
            if process is not writer and (delay := self.faults.notice()) is not None:
                process.notice_others(delay)

    def add_process(self, *, has_worker: bool = True) -> Process:
        name = f"p{len(self.processes)}" if has_worker else "driver"
        process = Process(self, name, self._settings, has_worker=has_worker)
        self.processes.append(process)
        process.boot()
        return process

    # --------------------------------------------------------------------------------------------- the story

    def run(self) -> Story:
        """Play it to its end. Raises what the oracle saw."""
        driver = self.add_process(has_worker=False)
        story = driver.spawn(self._drive(driver))
        story.add_done_callback(lambda _: self.loop.stop())
        try:
            self.loop.run_forever()
            if self.oracle.violation is None:
                story.result()
        except Stuck as error:
            self.oracle.fail(str(error))
        for unhandled in self.loop.unhandled:
            if not isinstance(unhandled.get("exception"), Killed):
                self.oracle.fail(f"the loop was left with an error: {unhandled}")
        if self.oracle.violation is not None:
            raise self.oracle.violation
        faults = self.faults
        oracle = self.oracle
        return Story(
            oracle.digest, oracle.commits, oracle.bodies, faults.kills, faults.stops, self.loop.time()
        )

    async def _drive(self, driver: Process) -> None:
        await asyncio.sleep(0)
        infos = tuple(function.info() for function in self.app.registered)
        await driver.store.submit(RegisterFunctions(infos, driver.client.clock.now()))
        for _ in range(self.rng.choice([1, 2, 2, 3])):
            self.add_process()
        tasks = []
        kinds = self.rng.sample(list(KINDS), self.rng.choice([0, 0, 1, 1, 1, 2]))
        kinds = kinds if self.about is None else list(self.about)
        for kind in kinds:
            for key in KINDS[kind].keys[: self.rng.randint(1, 2)]:
                tasks.append(asyncio.create_task(self._send_letters(kind, key)))
        for n in range(self.rng.choice([1, 1, 2] if kinds else [1, 2, 2, 3])):
            plan, signals = generate(self.rng)
            root = Root(f"r{n}-", plan, signals)
            self.roots.append(root)
            tasks.append(asyncio.create_task(self._see_through(driver, root)))
        # To the end: who sends last finds a worker too.
        trouble = asyncio.create_task(self._bring_trouble())
        deciding = asyncio.create_task(self._decide(driver))
        if self.rng.random() < 0.15:
            tasks.append(asyncio.create_task(self._pause_something(driver)))
        await asyncio.gather(*tasks)
        while not self.oracle.all_have_ended:
            await self._wait(0.25)
        # Not cancelled: a decision may be committed whose answer is still on its way.
        self._is_decided = True
        await deciding
        while not self.oracle.all_have_ended:  # a schedule may have ticked
            await self._wait(0.25)
        self.oracle.check_end(self.roots)
        trouble.cancel()
        await asyncio.wait([trouble])
        assert trouble.cancelled() or trouble.result() is None

    async def _wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self.loop.time() > GIVE_UP_AFTER:
            self.oracle.check_end(self.roots)
            self.oracle.fail("the time is over")

    async def _see_through(self, driver: Process, root: Root) -> None:
        """Start a run, send its signals one after the other, perhaps cancel it, and see it end."""
        await asyncio.sleep(self.rng.random() * 2)
        cancel_at = self.loop.time() + self.rng.random() * 12 if self.rng.random() < 0.12 else None
        while (run_id := await self._start(root)) is None:
            await self._wait(0.2)
        root.run_id = run_id
        senders = [asyncio.create_task(self._signal(driver, root, *signal)) for signal in root.signals]
        while not self.oracle.has_ended(run_id):
            await self._wait(self.rng.random())
            if cancel_at is not None and self.loop.time() > cancel_at and not root.was_cancelled:
                root.was_cancelled = True
                await driver.store.submit(CancelRun(run_id, "not wanted", driver.client.clock.now()))
        await asyncio.gather(*senders)
        if not root.was_cancelled and root.rerun_of is None and self.rng.random() < 0.15:
            await self._run_again(driver, root)

    async def _run_again(self, driver: Process, root: Root) -> None:
        """From its last step on. Nothing but that one may be done."""
        assert root.run_id is not None
        again = Root(root.prefix, root.plan, [], rerun_of=root.run_id)
        try:
            again.run_id = (await driver.client.runs.rerun(root.run_id, AGAIN)).id
        except NotFound as error:
            self.oracle.fail(f"it has ended without its last step: {error}")
            return
        self.roots.append(again)

    async def _send_letters(self, kind: str, key: str) -> None:
        """One after the other; each until it is known to have been sent."""
        counts: Counter[str] = Counter()
        for gap, events in letters(kind, key, self.rng):
            await self._wait(gap)
            # Known by its id, an event that was sent by a process that died is not sent twice.
            send = [
                Event(name=name, data=data, id=f"{name} {data['key']} {data['n']}") for name, data in events
            ]
            while not await self._post(send):
                await self._wait(0.2)
            counts.update(f"{name.removeprefix('sim/')}:{data['key']}" for name, data in events)
        self.oracle.sent.update(counts)

    async def _post(self, events: list[Event]) -> bool:
        process = self.rng.choice([process for process in self.processes if not process.is_dead])
        if process.store._writer is None:
            return False
        sent = process.spawn(process.client.send(events))
        await asyncio.wait([sent], timeout=2.0)
        return sent.done() and sent.exception() is None

    async def _decide(self, driver: Process) -> None:
        """Two people decide each approval, one for it and one against: whoever is first."""
        seen: set[str] = set()
        while not self._is_decided:
            await asyncio.sleep(0.5)
            for approval_id, _ in self.oracle.open_approvals():
                if approval_id not in seen:
                    seen.add(approval_id)
                    ana = self._decide_as(driver, approval_id, Approve(), "ana")
                    bo = self._decide_as(driver, approval_id, Deny(), "bo")
                    await asyncio.gather(ana, bo)

    async def _decide_as(self, driver: Process, approval_id: str, decision: DecisionInput, who: str) -> None:
        await asyncio.sleep(self.rng.choice([0.0, 0.0, 0.002, 0.3]))
        now = driver.client.clock.now()
        answer = await driver.store.submit(
            Decide(ids.new_id("dec", now), approval_id, decision, who, (), None, None, now)
        )
        if answer.result is DecisionResult.TAKEN:
            self.oracle.decided.append((approval_id, who))

    async def _pause_something(self, driver: Process) -> None:
        """One function's runs stay where they are, for a while."""
        await asyncio.sleep(self.rng.random() * 5)
        function, app = self.rng.choice(["follows", "one-by-one", *(self.about or ())]), self.app.id
        self.oracle.has_pauses = True
        await driver.store.submit(PauseFunction(app, function, driver.client.clock.now()))
        await asyncio.sleep(self.rng.random() * 4)
        await driver.store.submit(PauseFunction(app, function, driver.client.clock.now(), resume=True))

    async def _start(self, root: Root) -> str | None:
        """By one of the processes, which may die of it: the key sees to it that there is one run."""
        process = self.rng.choice([process for process in self.processes if not process.is_dead])
        if process.store._writer is None:
            return None
        data = Plan(prefix=root.prefix, root=root.plan)
        started = process.spawn(process.client.start("follows", data, idempotency_key=root.prefix))
        await asyncio.wait([started], timeout=2.0)
        return started.result().id if started.done() and started.exception() is None else None

    async def _signal(self, driver: Process, root: Root, name: str, times: int) -> None:
        for n in range(times):
            while not self.oracle.has_ended(root.run_id or ""):
                is_once = name.startswith(PERHAPS)
                await self._wait(self.rng.random() * (3 if is_once else 1))
                buffer = "1h" if self.rng.random() < 0.3 and not is_once else None
                try:
                    taken_by = await driver.client.signal(root.prefix + name, f"{name}.{n}", buffer=buffer)
                except (NoWaiter, SignalConflict):
                    if is_once:
                        break
                    continue
                if taken_by is not None:
                    self.oracle.accepted.append((root.prefix + name, f"{name}.{n}"))
                break

    # ------------------------------------------------------------------------------------------- the trouble

    async def _bring_trouble(self) -> None:
        if self.rng.random() < 0.4 and self.faults.kills_left:
            crashpoints.arm(self.rng.choice(POINTS), self.rng.randint(1, 8), self._die_here)
        while True:
            await self._wait(self.rng.random() * 2.5)
            workers = [process for process in self.processes if process.worker is not None and process.works]
            if self.loop.time() > CALM_AFTER:
                crashpoints.disarm()
            elif workers and not self.faults.is_calm:
                match self.rng.choice(["kill", "stop", "stop", None]):
                    case "kill" if self.faults.kills_left:
                        self.faults.note_kill()
                        self.rng.choice(workers).kill()
                    case "stop" if self.faults.stops_left:
                        self._stop(self.rng.choice(workers))
            if not workers:
                self.add_process()

    def _stop(self, process: Process) -> None:
        self.faults.stops_left -= 1
        self.faults.stops += 1
        process.stop()
        self.loop.call_later(self.rng.choice([0.5, 3.0, 6.0, 9.0]), process.go_on)

    def _die_here(self) -> None:
        process = current_process.get()
        if isinstance(process, Process) and process.worker is not None and self.faults.kills_left:
            self.faults.note_kill()
            process.kill()
            raise Killed

    # ---------------------------------------------------------------------------------------------- the end

    def close(self) -> None:
        """End what still stands somewhere, with nothing written any more."""
        self.is_over = True
        crashpoints.disarm()
        self.oracle.close()
        for process in self.processes:
            kept, process.kept = process.kept, None
            self.loop.resume(kept or [])
            worker = process.worker
            if worker is not None:
                worker._is_dead = worker._is_draining = True
                if worker._heartbeat is not None:
                    worker._heartbeat.stop()
                for runner, _ in worker._runners.values():
                    runner.lose("the simulation is over")
        for _ in range(200):
            tasks = asyncio.all_tasks(self.loop)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
        for process in self.processes:
            process.let_go()
        self.loop.close()


@contextmanager
def simulated_time(world: World, seed: int) -> Iterator[None]:
    """The engine's clocks, ids, threads and dice are the world's."""
    time = VirtualTime(world.loop)
    dice = random.Random(seed)
    state = random.getstate()
    with ExitStack() as stack:
        for module in (
            "agentflow.client",
            "agentflow.engine.leases",
            "agentflow.engine.worker",
            "agentflow.store.sqlite.store",
            "agentflow.store.sqlite.backend",
        ):
            stack.enter_context(patch(f"{module}.time", time))
        stack.enter_context(patch.object(ids, "_source", ids.IdSource(random_bytes=dice.randbytes)))
        stack.enter_context(patch("agentflow.step.new_secret_id", lambda: dice.randbytes(8).hex()))
        stack.enter_context(patch("agentflow.engine.worker.HeartbeatThread", SimulatedHeartbeat))
        stack.enter_context(patch("agentflow.engine.worker.ThreadPoolExecutor", SimulatedThreads))
        stack.enter_context(patch("agentflow.engine.tasks.Task", NumberedTask))
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


Mutant = Callable[[World], AbstractContextManager[None]]
"""Takes a protection out of the engine while a world is played."""


class Simulation:
    """Plays seeds, each on a fresh copy of an empty database."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._empty = folder / "empty.db"
        self._apps = [make_app(has_schedule=n == 0) for n in range(2)]
        prepare(self._empty, LockFolder(self._empty), migrate=True)

    def play(
        self,
        seed: int,
        *,
        is_calm: bool = False,
        mutant: Mutant | None = None,
        about: Sequence[str] | None = None,
        is_told: bool = False,
    ) -> Story:
        """One seed. `about` names the kinds of traffic that it has to have, "cron" a schedule.

        With `is_told` the story's digest is that of all commits. Raises `Violation`.
        """
        path = self._folder / f"{seed}.db"
        shutil.copyfile(self._empty, path)
        has_schedule = seed % 5 == 0 if about is None else "cron" in about
        app = self._apps[0 if has_schedule else 1]
        kinds = None if about is None else [kind for kind in about if kind in KINDS]
        world = World(path, app, seed, is_calm=is_calm, about=kinds)
        world.oracle.is_told = is_told
        try:
            with simulated_time(world, seed), nullcontext() if mutant is None else mutant(world):
                try:
                    return world.run()
                finally:
                    world.close()
        except Violation as violation:
            violation.add_note(f"seed {seed}")
            raise
        finally:
            for left in self._folder.glob(f"{seed}.db*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
