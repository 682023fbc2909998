"""One run in memory: its function is called, its steps are executed or replayed, until it ends or only waits.

A step comes through one door (`perform` or `wait`), on the first run and on replay: known outcome? hand it out in its
turn : do it, commit it, hand it out. What becomes of the run is its verdict; the first one stands.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import Future
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from agentflow.context import Context, RunLogger
from agentflow.engine.bodies import NOT_HERE, Bodies
from agentflow.engine.conclusion import Conclusion
from agentflow.engine.host import Host
from agentflow.engine.journal import Journal
from agentflow.engine.order import CallOrder
from agentflow.engine.origins import Origins
from agentflow.engine.outcomes import is_timeout, outside_value, stored_error
from agentflow.engine.races import Races, winner_of
from agentflow.engine.settle import Settling
from agentflow.engine.streams import RunStream
from agentflow.engine.tasks import Branch, current_branch, start_task
from agentflow.engine.time_limit import TimeLimit
from agentflow.engine.unwinding import LeaseLost, Suspend, unwind
from agentflow.engine.verdicts import Cancelled, Drained, Lost, Mismatched, Raised, Returned, Verdict
from agentflow.engine.waits import RunWaits, answer_of
from agentflow.errors import (
    ConfigurationError,
    InvalidInput,
    LimitExceeded,
    NestedStep,
    NotFound,
    Poisoned,
    ReplayMismatch,
)
from agentflow.events import Event
from agentflow.functions import Function, FunctionRef, RegisteredRef, Target
from agentflow.ids import validate_id
from agentflow.info import current_body
from agentflow.keys import CANCELLED, branch_of, escape, make_key
from agentflow.runs import StepKind
from agentflow.starts import all_events, new_event, trigger_event
from agentflow.step import Step
from agentflow.step_runner import Body, Contenders, RawId, TakenKey, Wait
from agentflow.store.claim_types import ClaimedRun
from agentflow.store.operation_types import (
    BeginCode,
    CancelRun,
    CommitRace,
    CommitStep,
    EndTurn,
    Operation,
    RecordAttempt,
    ResolveWait,
)
from agentflow.store.outcome_types import Done, Exists, Fenced, Outcome
from agentflow.store.poison import POISONED
from agentflow.store.stored_types import Json, Micros, NewEvent, StoredAttempt, StoredStep

HAND_OVER_PATIENCE = 0.3
"""Seconds that the code of a run may take to end before others may have the run, when the worker stops."""
_COMMITS_OF_STEPS = frozenset((CommitStep, ResolveWait, CommitRace, EndTurn))


class Runner:
    """One attempt of one run. Implements what `Step` needs of it (`StepRunner`)."""

    def __init__(self, claimed: ClaimedRun, function: Function[Any, Any], host: Host) -> None:
        self.host = host
        self.function = function
        self.claimed = claimed
        self.run_key = claimed.key
        self.run_id = claimed.key.run_id
        self.app = claimed.app
        self.root_id = claimed.root_id
        self.depth = claimed.depth
        self.settings = host.settings
        self.context: Context[Any]
        self.trigger_event: dict[str, Any] = {}
        self.is_over = False
        """From here on no step runs, and what the code returns or raises is dropped."""
        self.has_new_step = False
        """Whether it has got further here than where it was taken up."""
        self._loop = asyncio.get_running_loop()
        self._verdict: Future[Verdict] = self._loop.create_future()
        self.branches: dict[Branch, None] = {}
        self._told: set[Branch] = set()
        """Those whose code has been told that the run leaves memory."""
        self._uncommitted = 0
        self.journal = Journal(claimed, host.settings)
        self._order = CallOrder(claimed.steps, claimed.attempts) if host.settings.strict_replay else None
        self.stream = RunStream(host.store, claimed.key, self.journal.take_seq)
        self.bodies = Bodies(self)
        self.waits = RunWaits(self, mail=claimed.mail)
        self.races = Races(self)
        self.origins = Origins(self)
        self.time_limit = TimeLimit(function.config.timeouts, claimed, host, on_over=self.decide)
        self.settling = Settling(
            self._loop,
            self.branches,
            waiting=(self.waits.outstanding, self.waits.naps, self.bodies.held_back),
            is_idle=self._is_idle,
            on_quiescent=self._rest,
            on_staying=self._stay,
        )

    # ------------------------------------------------------------------------------------------ the run

    async def execute(self) -> Verdict:
        """Call the function, and see to it that what becomes of the run is written before its code is forgotten."""
        if self.claimed.cancel_at is not None:
            self.decide(Cancelled())
        elif self.claimed.crash_count >= POISONED:
            self.decide(Raised(self._poisoned()))
        elif not self.time_limit.watch():
            self._begin() if self.claimed.crash_count == 0 else self._begin_watched()
        verdict = await self._verdict
        self.time_limit.close()
        self.settling.close()
        self.waits.close()
        self.stream.flush() if isinstance(verdict, Returned | Raised) else self.stream.close()
        if isinstance(verdict, Drained):
            verdict = await self._hand_over(verdict)
        else:
            await self._unwind(verdict)
            verdict = await Conclusion(self).write(verdict)
        self.host.on_written(self.run_id)
        return verdict

    async def _unwind(self, verdict: Verdict) -> None:
        if self.branches:
            await unwind(
                self.branches,
                self.settling.futures,
                reason=self.unwinding,
                cancel_bodies=self.bodies.cancel,
                told=self._told if isinstance(verdict, Drained | Lost | Cancelled) else None,
                is_writing=lambda: self._uncommitted > 0,
            )

    async def _hand_over(self, verdict: Verdict) -> Verdict:
        """Others may have it soon, whatever the code's own clean-up still does."""
        unwinding = asyncio.create_task(self._unwind(verdict))
        await asyncio.wait([unwinding], timeout=HAND_OVER_PATIENCE)
        verdict = await Conclusion(self).write(verdict)
        await unwinding
        return verdict

    def _poisoned(self) -> Poisoned:
        done = [step.key for step in self.claimed.steps]
        return Poisoned(
            f"run {self.run_id} of {self.function.id!r}: {self.claimed.crash_count} processes died while they "
            f"executed it after {f'step {done[-1]!r}' if done else 'its start'}, the last one nothing else; look for "
            "what ends a process there (memory, a native library, os.kill), then start it again"
        )

    def lose(self, why: str) -> None:
        """The worker has lost its lease: nothing of this run may be written any more."""
        self.decide(Lost(why))

    def drain(self) -> None:
        """Give the run back as soon as no body runs."""
        if not self.bodies:
            self.decide(Drained())

    def _is_idle(self) -> bool:
        return not (self.bodies or self._uncommitted)

    def _rest(self) -> None:
        if self.bodies.held_back:
            self.decide(Drained())
        else:
            self.waits.suspend()

    def _stay(self) -> None:
        if self.bodies.held_back and self._is_idle():
            self.decide(Drained())
        elif self.waits:
            self.waits.watch_deadlines()

    def look_into_mail(self) -> None:
        """Something may have been delivered to the run, or asked of it."""
        self.waits.look_into_mail()

    def decide(self, verdict: Verdict) -> None:
        """Say what becomes of the run, unless that is decided."""
        if not self._verdict.done():
            self._verdict.set_result(verdict)
            self.is_over = True

    def _decide_from_anywhere(self, verdict: Verdict) -> None:
        try:
            is_here = asyncio.get_running_loop() is self._loop
        except RuntimeError:  # the thread of a sync body
            is_here = False
        if is_here:
            self.decide(verdict)
        else:
            self._loop.call_soon_threadsafe(self.decide, verdict)

    def lost(self, why: str) -> LeaseLost:
        """Note that somebody else owns the run; gives what to raise."""
        self.decide(Lost(why))
        return LeaseLost(why)

    def unwinding(self) -> Suspend:
        """What takes the run's code down."""
        branch = current_branch()
        if branch is not None and branch.owner is self:
            self._told.add(branch)
            branch.swallowed += 1
        return Suspend(f"run {self.run_id} leaves memory")

    def _begin_watched(self) -> None:
        """Write down that its code is about to be called: it has crashed, and the next crash may be no fault of its."""
        self.submit(BeginCode(self.run_key)).add_done_callback(self._begin_if_noted)

    def _begin_if_noted(self, noted: Future[Outcome]) -> None:
        if self.is_over:
            return
        match answer_of(noted):
            case Done(cancel=True):
                self.decide(Cancelled())
            case Done():
                self._begin()
            case Fenced(why=why):
                self.decide(Lost(why))
            case error:
                self.decide(Lost(f"that its code begins could not be written: {error!r}"))

    def _begin(self) -> None:
        try:
            event, self.trigger_event = trigger_event(self.claimed.trigger, self.claimed.input)
            events = all_events(
                event,
                self.trigger_event["data"],
                self.claimed.batch,
                is_batch=self.function.config.flow.batch is not None,
            )
            data = self.function.input_codec.decode(self.claimed.input)
        except Exception as error:  # a validator of the user's may raise anything
            refused = InvalidInput(f"the input of {self.function.id!r} is not valid: {error}")
            refused.__cause__ = error
            self.decide(Raised(refused))
            return
        self.context = Context(
            data=data,
            run_id=self.run_id,
            function_id=self.function.id,
            attempt=len(self.journal.attempts.get(self.journal.code_key, ())),
            event=event,
            events=events,
            logger=RunLogger(
                logging.getLogger("agentflow.run"),
                run_id=self.run_id,
                function=self.function.id,
                is_replaying=lambda: self.journal.is_replaying,
            ),
        )
        code = self._call_function()
        task = start_task(self._loop, code, branch=Branch(self), name=self.run_id)
        task.add_done_callback(self._function_ended)

    async def _call_function(self) -> Any:
        try:
            return await self.function(self.context, Step(self))
        except SystemExit as error:  # asyncio would end the whole worker by it
            self.decide(Raised(error))
            raise self.unwinding() from error

    def _function_ended(self, task: asyncio.Task[Any]) -> None:
        if self.is_over:
            return
        if task.cancelled():
            self.decide(Raised(asyncio.CancelledError("the function let a cancellation escape")))
        elif (error := task.exception()) is not None:
            self.decide(Raised(error))
        else:
            self._returned(task.result())

    def _returned(self, value: Any) -> None:
        missing = None if self._order is None else self._order.missing_before(None, "")
        if missing is None:
            self.decide(Returned(value))
        else:
            self.mismatch(
                f"the function returned without calling step {missing!r}, which it called before: the step was "
                "removed or renamed (strict_replay)"
            )

    # --------------------------------------------------------------------------------------- its tasks

    def add_branch(self, branch: Branch) -> None:
        self.branches[branch] = None
        self.settling.watch(branch)

    def drop_branch(self, branch: Branch) -> None:
        self.branches.pop(branch, None)
        task = branch.task
        if self.is_over:
            if task is not None and not task.cancelled():
                task.exception()  # what was raised while the run unwound is nobody's business
        else:
            self.settling.poke()

    # ----------------------------------------------------------------------------------------- its keys

    def now(self) -> Micros:
        return self.host.clock.now()

    def take_key(self, scope: str, step_id: str) -> str:
        branch = self._branch(step_id)
        if type(step_id) is TakenKey:
            return str(step_id)
        own = (
            step_id
            if type(step_id) is RawId
            else _escaped(step_id)
            if type(step_id) is str
            else _escape(step_id)
        )
        name = branch.within(scope) + own
        key = make_key(name, branch.next_ordinal(name), branch.path)
        if self.races.withdrawn and not branch.is_deaf:
            self.races.check(key)
        if self._order is not None:
            self._order.called(key, branch.scope + branch.path)
        return key

    def take_ordinal(self, scope: str, name: str) -> int:
        branch = self._branch(name)
        return branch.next_ordinal(f"{branch.within(scope)}{name}#")

    def _branch(self, step_id: str) -> Branch:
        body = current_body.get()
        if body is not None:
            error = NestedStep(
                f"step {step_id!r} was called inside the body of step {body.step_id!r} of run {self.run_id}: "
                "call it from the function itself, a body is one step"
            )
            self._decide_from_anywhere(Raised(error))
            raise error
        branch = current_branch()
        if self.is_over and not (branch is not None and branch.is_deaf):
            raise self.unwinding()
        if branch is None or branch.owner is not self:
            raise ConfigurationError(
                f"step {step_id!r} of run {self.run_id} was called outside of the run's own tasks "
                "(from a thread, a callback, or another run): call it in the function, or in a task it creates"
            )
        return branch

    # ----------------------------------------------------------------------------------------- its steps

    async def perform(self, key: str, body: Body) -> Any:
        if self.is_over or self.races.withdrawn:
            await self._stop(key)
        known = self._look_up(key)
        try:
            if known is None:
                known, value = await self.bodies.execute(key, body)
                self._re_enter()
                if value is not NOT_HERE:
                    return value
            else:
                await self._replay(known, body.kind)
        except asyncio.CancelledError:
            self._mark_cancelled(key)
            raise
        return self._open(known, body.codec.decode)

    async def wait(self, key: str, wait: Wait) -> Any:
        if self.is_over or self.races.withdrawn:
            await self._stop(key)
        known = self._look_up(key)
        try:
            if known is None:
                known = await self.waits.resolve(key, wait)
                self._re_enter()
            else:
                await self._replay(known, wait.kind)
        except asyncio.CancelledError:
            self._mark_cancelled(key)
            raise
        if wait.on_timeout is not None and is_timeout(known):
            await wait.on_timeout()
        if wait.is_from_outside:
            return outside_value(known, wait.decode)
        return self._open(known, wait.decode)

    async def race(self, key: str, contenders: Contenders) -> tuple[str, Any]:
        if self.is_over or self.races.withdrawn:
            await self._stop(key)
        known = self._look_up(key)
        try:
            if known is None:
                known = await self.races.decide(key, contenders)
                self._re_enter()
            else:
                await self._replay(known, StepKind.RACE)
                self.journal.delivered_within(tuple(each.scope for each in contenders.values()))
        except asyncio.CancelledError:
            self._mark_cancelled(key)
            raise
        winner: tuple[str, Any] = self._open(known, lambda text: winner_of(text, contenders))
        return winner

    async def _stop(self, key: str) -> None:
        """Raise what ends a step's code, as `check_goes_on`; a task that goes on whatever is raised stands still."""
        branch = current_branch()
        if branch is not None and branch.is_deaf and (self.is_over or self.races.has_withdrawn(key)):
            # To raise once more would be to hold up the whole process: its loop would never end.
            await self.settling.block(self._loop.create_future())
        self.check_goes_on(key)

    def check_goes_on(self, key: str) -> None:
        """Raise what ends a step's code where nothing may come of it any more."""
        if self.is_over:
            raise self.unwinding()
        if self.races.withdrawn:
            self.races.check(key)

    def _look_up(self, key: str) -> StoredStep | None:
        """What is known of a step that is awaited now."""
        # It may have been called before the run's end.
        self.check_goes_on(key)
        known = self.journal.find(key)
        if self._order is not None:
            self._compare_order(self._order, key, None if known is None else known.seq)
        return known

    def _compare_order(self, order: CallOrder, key: str, seq: int | None) -> None:
        branch = current_branch()
        if branch is None or branch.scope + branch.path != branch_of(key):
            return  # another task's call: when it was made is not known
        missing = order.missing_before(seq, branch.scope + branch.path)
        if missing is not None:
            raise self.mismatch(
                f"the code awaits step {key!r} and has not called step {missing!r}, which was called before it when "
                "its outcome was stored: a step was added, removed, renamed or moved there (strict_replay)"
            )

    def _mark_cancelled(self, key: str) -> None:
        if self.is_over or self.races.has_withdrawn(key):
            return
        now = self.now()
        self.journal.note_mark()
        mark = StoredAttempt(f"{CANCELLED}{key}", 1, "{}", now, now)
        self.submit(RecordAttempt(self.run_key, mark))

    def _re_enter(self) -> None:
        """A new outcome is committed: where every step is to be replayed, leave memory and begin from the top."""
        if self.host.replay_every_step and not self.bodies:
            self.decide(Drained())
            raise self.unwinding()

    async def _replay(self, known: StoredStep, kind: str) -> None:
        self.check_kind(known.key, known.kind, kind)
        await self.settling.turn(known.seq or 0)
        self.journal.delivered()

    def begin_step(self, key: str, *, is_new: bool = True) -> None:
        """A step that has no outcome starts; over the limit the run fails."""
        try:
            self.journal.begin_step(key, is_new=is_new)
        except LimitExceeded as error:
            self.decide(Raised(error))
            raise self.unwinding() from error

    def check_kind(self, key: str, stored: str, called: str) -> None:
        """The code calls a step as what it was stored as, or it no longer fits the history."""
        if stored != called:
            raise self.mismatch(f"step {key!r} is stored as '{stored}', and the code calls it as '{called}'")

    def mismatch(self, message: str) -> Suspend:
        """Note that the code does not fit the history; gives what to raise."""
        self.decide(Mismatched(ReplayMismatch(f"run {self.run_id}: {message}")))
        return self.unwinding()

    def _open(self, step: StoredStep, decode: Callable[[Json], Any]) -> Any:
        """What a stored outcome means to user code: a value, or an exception."""
        if not step.ok:
            raise stored_error(step)
        try:
            return decode(step.output or "null")
        except (InvalidInput, ValueError) as error:
            raise self.mismatch(
                f"the stored output of step {step.key!r} does not fit its type: {error}"
            ) from error

    # ---------------------------------------------------------------------------------- other runs, events

    async def resolve_target(self, target: Target) -> Function[Any, Any] | FunctionRef:
        resolved = self.host.registry.resolve(target)
        if isinstance(resolved, Function):
            return resolved
        known = RegisteredRef.find(resolved, await self.host.list_functions(), app=self.app)
        if known is None:
            raise NotFound(
                f"no app {resolved.app!r} with a function {resolved.id!r} has registered in this database"
            )
        return known

    async def cancel_child(self, run_id: str) -> None:
        await self.commit(CancelRun(run_id, f"run {self.run_id} waited too long for it", self.now()))

    async def new_events(self, events: Sequence[Event], *, source_key: str) -> list[NewEvent]:
        """The events as they are stored; sent again after a crash they are the same ones."""
        functions = await self.host.list_functions()
        now = self.now()
        try:
            return [
                new_event(
                    event,
                    now=now,
                    functions=functions,
                    settings=self.settings,
                    event_id=stable_id("evt", self.run_id, source_key, str(position)),
                    source_run=self.run_id,
                )
                for position, event in enumerate(events)
            ]
        except LimitExceeded as error:
            raise LimitExceeded(f"step {source_key!r}: {error}") from None

    # ------------------------------------------------------------------------------------------ writing

    async def commit(self, operation: Operation) -> Outcome:
        """Write for this run; notice when it was lost or cancelled. What comes back is durable."""
        if self.races.withdrawn:
            self.races.check_operation(operation)
        self._uncommitted += 1
        try:
            answer: Outcome = await self.host.store.submit(operation)
        except asyncio.CancelledError:
            if self.is_over:
                raise self.unwinding() from None
            raise
        finally:
            self._uncommitted -= 1
            self.settling.poke()
        if type(answer) is Done:
            if type(operation) in _COMMITS_OF_STEPS:
                self.has_new_step = True
        elif isinstance(answer, Fenced):
            raise self.lost(answer.why)
        elif isinstance(answer, Exists):
            self.has_new_step = True  # delivered meanwhile
        if self.is_over:
            raise self.unwinding()
        if getattr(answer, "cancel", False):
            self.decide(Cancelled())
            raise self.unwinding()
        if self.waits and getattr(answer, "mail", self.waits.mail) != self.waits.mail:
            self.waits.look_into_mail()
        self.host.on_written(self.run_id)
        return answer

    def submit(self, operation: Operation) -> Future[Outcome]:
        """Write for this run without waiting; until it is written the run does not count as idle."""
        self._uncommitted += 1
        future: Future[Outcome] = self.host.store.submit(operation)
        future.add_done_callback(self._submitted)
        return future

    def _submitted(self, future: Future[Outcome]) -> None:
        self._uncommitted -= 1
        if not future.cancelled():
            future.exception()
        self.settling.poke()


def _escape(step_id: str) -> str:
    """A user's step id as it stands in a key. Raises `InvalidInput`."""
    return escape(validate_id(step_id, "step id"))


_escaped = lru_cache(4096)(_escape)


def stable_id(prefix: str, *parts: str) -> str:
    """An id that follows from where in a run it was made."""
    return f"{prefix}_{blake2b('|'.join(parts).encode(), digest_size=16).hexdigest()}"
