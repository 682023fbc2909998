"""One run in memory: its function is called, its steps are executed or replayed, until it ends or only waits.

A step comes through one door (`perform` and `wait`), on the first run and on replay: known outcome? hand it out in its
turn : do it, commit it, hand it out. What becomes of the run is its **verdict**; the first one stands.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from asyncio import Future
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypedDict

from agentflow.context import Context, RunLogger
from agentflow.crashpoints import point
from agentflow.engine.attempts import BodyAttempt
from agentflow.engine.host import Host, TimerHandle
from agentflow.engine.journal import Journal
from agentflow.engine.settle import Settling
from agentflow.engine.streams import RunStream
from agentflow.engine.tasks import Branch, current_branch, start_task
from agentflow.engine.unwinding import LeaseLost, Suspend, unwind
from agentflow.errors import (
    AgentflowError,
    ConfigurationError,
    InvalidInput,
    LimitExceeded,
    NestedStep,
    NotFound,
    ReplayMismatch,
    RunCancelled,
    SignalConflict,
    StepError,
    Unserialisable,
)
from agentflow.events import Event
from agentflow.functions import Function, FunctionRef, Target
from agentflow.ids import validate_id
from agentflow.keys import escape, make_key
from agentflow.info import StepInfo, current_body
from agentflow.retry import Accept, RetryIn, RetryPolicy, Stop, retry_policy
from agentflow.durations import parse_duration
from agentflow.runs import End, RunStatus, StepKind
from agentflow.starts import new_event, trigger_event
from agentflow.step import Body, RawId, Step, TakenKey, Wait
from agentflow.store.protocol import (
    Adopt,
    Adopted,
    CancelRun,
    ClaimedRun,
    CommitStep,
    Done,
    Exists,
    Fenced,
    Finish,
    Json,
    MailChanged,
    Micros,
    NewEvent,
    Operation,
    Outcome,
    RecordAttempt,
    RegisterWait,
    Release,
    ResolveWait,
    SignalTaken,
    Status,
    StoredAttempt,
    StoredStep,
    StoredWait,
    Waits,
    WithdrawWait,
)
from agentflow.store.protocol import Suspend as SuspendRun
from agentflow.stored_errors import decode_error, encode_error, error_from

MISMATCH_PAUSE = 10_000_000
"""Microseconds until a run whose code does not fit its history is tried again."""
NEVER_RETRIED = (NestedStep, LimitExceeded)

_NOT_HERE = object()

logger = logging.getLogger("agentflow.engine")


# ------------------------------------------------------------------------------------------------ verdicts


@dataclass(frozen=True, slots=True)
class Returned:
    value: Any


@dataclass(frozen=True, slots=True)
class Raised:
    error: BaseException


@dataclass(frozen=True, slots=True)
class Suspended:
    """It left memory; the database knows."""

    ready_at: Micros


@dataclass(frozen=True, slots=True)
class Cancelled:
    pass


@dataclass(frozen=True, slots=True)
class Lost:
    """Somebody else owns it: nothing is written."""

    why: str


@dataclass(frozen=True, slots=True)
class Mismatched:
    """The code does not fit the history."""

    error: ReplayMismatch


@dataclass(frozen=True, slots=True)
class Drained:
    """The worker stops: the run is given back."""


Verdict = Returned | Raised | Suspended | Cancelled | Lost | Mismatched | Drained


@dataclass(slots=True)
class _Outstanding:
    """A wait of this process's: who gets its outcome, and when it is due."""

    future: Future[StoredStep]
    deadline: Micros
    is_timer: bool


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
        self.journal = Journal(claimed, host.settings)
        self.stream = RunStream(host.store, claimed.key, self.journal.take_seq)
        self._loop = asyncio.get_running_loop()
        self._mail = claimed.mail
        self._branches: dict[Branch, None] = {}
        self._bodies: dict[str, asyncio.Task[Any]] = {}
        self._uncommitted = 0
        self._waits: dict[str, _Outstanding] = {}
        self._naps: dict[Future[None], Micros] = {}
        self._timer: TimerHandle | None = None
        self._verdict: Future[Verdict] = self._loop.create_future()
        self._is_over = False
        self._settling = Settling(
            self._loop,
            self._branches,
            is_waiting=lambda: bool(self._waits or self._naps),
            is_idle=lambda: not (self._bodies or self._uncommitted),
            on_quiescent=self._suspend,
            on_staying=self._arm_timer,
        )

    # ------------------------------------------------------------------------------------------ the run

    async def execute(self) -> Verdict:
        """Call the function, and see to it that what becomes of the run is written before its code is forgotten."""
        if self.claimed.cancel_at is not None:
            self._decide(Cancelled())
        else:
            self._begin()
        verdict = await self._verdict
        self._is_over = True
        self._settling.close()
        self.stream.flush() if isinstance(verdict, Returned | Raised) else self.stream.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._branches:
            await unwind(
                self._branches, self._settling.futures, reason=self._unwinding, cancel_bodies=self._cancel_bodies
            )
        return await self._conclude(verdict)

    def cancel(self) -> None:
        """Somebody cancelled the run."""
        self._decide(Cancelled())

    def lose(self, why: str) -> None:
        """The worker has lost its lease: nothing of this run may be written any more."""
        self._decide(Lost(why))

    def drain(self) -> None:
        """Give the run back as soon as no body runs."""
        if not self._bodies:
            self._decide(Drained())

    @property
    def mail(self) -> int:
        """The run's mail as far as it was read."""
        return self._mail

    @property
    def has_running_body(self) -> bool:
        return bool(self._bodies)

    def look_into_mail(self) -> None:
        """Something may have been delivered to the run, or asked of it."""
        if not self._is_over:
            self._adopt()

    def _begin(self) -> None:
        try:
            event, self.trigger_event = trigger_event(self.claimed.trigger, self.claimed.input)
            data = self.function.input_codec.decode(self.claimed.input)
        except InvalidInput as error:
            self.trigger_event = {}
            self._decide(Raised(InvalidInput(f"the input of {self.function.id!r} is not valid: {error}")))
            return
        context: Context[Any] = Context(
            data=data,
            run_id=self.run_id,
            function_id=self.function.id,
            attempt=len(self.journal.attempts.get(self.journal.code_key, ())),
            event=event,
            events=() if event is None else (event,),
            logger=RunLogger(
                logging.getLogger("agentflow.run"),
                run_id=self.run_id,
                function=self.function.id,
                is_replaying=lambda: self.journal.is_replaying,
            ),
        )
        self.context = context
        task = start_task(
            self._loop, _call(self.function, context, Step(self)), branch=Branch(self), name=self.run_id
        )
        task.add_done_callback(self._function_ended)

    def _function_ended(self, task: asyncio.Task[Any]) -> None:
        if self._is_over or self._verdict.done():
            if not task.cancelled():
                task.exception()
            return
        if task.cancelled():
            self._decide(Raised(asyncio.CancelledError("the function let a cancellation escape")))
        elif (error := task.exception()) is not None:
            self._decide(Raised(error))
        else:
            self._decide(Returned(task.result()))

    def _decide(self, verdict: Verdict) -> None:
        if not self._verdict.done():
            self._verdict.set_result(verdict)
            self._is_over = True

    def lost(self, why: str) -> LeaseLost:
        """Note that somebody else owns the run; gives what to raise."""
        self._decide(Lost(why))
        return LeaseLost(why)

    def _unwinding(self) -> Suspend:
        return Suspend(f"run {self.run_id} leaves memory")

    def _cancel_bodies(self) -> None:
        for task in self._bodies.values():
            task.cancel()

    # -------------------------------------------------------------------------------------- TaskOwner

    def add_branch(self, branch: Branch) -> None:
        self._branches[branch] = None

    def drop_branch(self, branch: Branch) -> None:
        self._branches.pop(branch, None)
        task = branch.task
        if self._is_over:
            if task is not None and not task.cancelled():
                task.exception()  # what was raised while the run unwound is nobody's business
        else:
            self._settling.poke()

    # ------------------------------------------------------------------------------- StepRunner: keys

    def now(self) -> Micros:
        return self.host.clock.now()

    def take_key(self, scope: str, step_id: str) -> str:
        branch = self._branch(step_id)
        if type(step_id) is TakenKey:
            return str(step_id)
        name = step_id if type(step_id) is RawId else escape(validate_id(step_id, "step id"))
        name = scope + name
        return make_key(name, branch.next_ordinal(name), branch.path)

    def mismatch(self, message: str) -> BaseException:
        return self._mismatch(message)

    def take_ordinal(self, scope: str, name: str) -> int:
        return self._branch(name).next_ordinal(f"{scope}{name}#")

    def _branch(self, step_id: str) -> Branch:
        body = current_body.get()
        if body is not None:
            error = NestedStep(
                f"step {step_id!r} was called inside the body of step {body.step_id!r} of run {self.run_id}: "
                "call it from the function itself, a body is one step"
            )
            self._decide(Raised(error))
            raise error
        branch = current_branch()
        if self._is_over:
            raise self._unwinding()
        if branch is None or branch.owner is not self:
            raise ConfigurationError(
                f"step {step_id!r} of run {self.run_id} was called outside of the run's own tasks "
                "(from a thread, a callback, or another run): call it in the function, or in a task it creates"
            )
        return branch

    # ----------------------------------------------------------------------------- StepRunner: bodies

    async def perform(self, key: str, body: Body) -> Any:
        known = self.journal.find(key)
        if known is None:
            known, value = await self._attempt_until_done(key, body)
            if value is not _NOT_HERE:
                return value
        elif known.kind != body.kind:
            raise self._mismatch(f"step {key!r} is stored as {known.kind!r}, and the code calls it as {body.kind!r}")
        else:
            await self._settling.turn(known.seq or 0)
            self.journal.delivered()
        return self._open(known, body.codec.decode)

    async def _attempt_until_done(self, key: str, body: Body) -> tuple[StoredStep, Any]:
        """Try the body until it has an outcome, and commit that; with the value, if it is one we have made."""
        self._begin_step(key)
        policy = retry_policy(body.retry, default=self.function.config.policy)
        failures = self.journal.attempts.setdefault(key, [])
        if failures and failures[-1].next_at > self.now():
            await self._nap(failures[-1].next_at)
        while True:
            if self.host.is_draining():
                self._decide(Drained())
                raise self._unwinding()
            number = len(failures)
            started_at = self.now()
            attempt = BodyAttempt(self, key, number, threads=self.host.threads)
            try:
                output, value = await self._run_body(attempt, body, policy, failures)
            except Exception as error:
                failed = await self._after_failure(attempt, body, policy, failures, error, started_at)
                if failed is not None:
                    return failed, _NOT_HERE
                await self._nap(failures[-1].next_at)
                continue
            step = StoredStep(
                key, self.journal.take_seq(), body.kind, body.name, True, output, None, number + 1, started_at, self.now()
            )
            stored = await self._commit_step(step, attempt)
            return stored, value if stored is step else _NOT_HERE

    async def _run_body(
        self, attempt: BodyAttempt, body: Body, policy: RetryPolicy, failures: list[StoredAttempt]
    ) -> tuple[Json, Any]:
        """Execute the body once; give its output as JSON, and as it comes back from that."""
        started_at = self.now()
        timeout = body.timeout if body.timeout is not None else self._default_timeout()
        limit = None if timeout is None else asyncio.timeout(timeout.total_seconds())
        task = asyncio.current_task()
        assert task is not None
        self._bodies[attempt.key] = task
        token = current_body.set(StepInfo(self.run_id, attempt.key, attempt.number))
        try:
            if limit is None:
                value = await body.call(attempt)
            else:
                async with limit:
                    value = await body.call(attempt)
        except asyncio.CancelledError:
            if self._is_over:
                raise self._unwinding() from None
            raise
        except TimeoutError as error:
            if limit is not None and limit.expired():
                await attempt.thread_ended()
                raise TimeoutError(f"attempt {attempt.number + 1} took longer than timeout={timeout}") from error
            raise
        finally:
            current_body.reset(token)
            del self._bodies[attempt.key]
            self._settling.poke()
        if self._is_over:
            raise self._unwinding()
        if policy.tenacity is not None:
            answer = policy.after_result(
                value, **_history(attempt.number, failures, started_at=started_at, now=self.now())
            )
            if not isinstance(answer, Accept):
                raise ResultRefused(answer)
        output, value = body.codec.round_trip(value, f"step {attempt.key!r}")
        self._check_size(attempt.key, output, body)
        return output, value

    def _default_timeout(self) -> Any:
        given = self.function.config.step_timeout
        return None if given is None else parse_duration(given)

    async def _after_failure(
        self,
        attempt: BodyAttempt,
        body: Body,
        policy: RetryPolicy,
        failures: list[StoredAttempt],
        error: Exception,
        started_at: Micros,
    ) -> StoredStep | None:
        """Store a failed attempt; give the step's outcome if it was the last one."""
        if self._is_over:
            raise self._unwinding()
        if isinstance(error, NEVER_RETRIED):
            self._decide(Raised(error))
            raise self._unwinding() from error
        now = self.now()
        if isinstance(error, ResultRefused):
            answer = error.answer
        else:
            history = _history(attempt.number, failures, started_at=started_at, now=now)
            answer = policy.after_failure(error, rng=self.host.rng, **history)
        if isinstance(answer, Stop):
            step = StoredStep(
                attempt.key,
                self.journal.take_seq(),
                body.kind,
                body.name,
                False,
                None,
                encode_error(error),
                attempt.number + 1,
                started_at,
                now,
            )
            return await self._commit_step(step, attempt)
        failure = StoredAttempt(
            attempt.key, attempt.number + 1, encode_error(error), now + int(answer.seconds * 1e6), started_at
        )
        self.stream.append("attempt.reset", None, step_key=attempt.key, attempt=attempt.number)
        self.stream.flush()
        await self._commit(RecordAttempt(self.run_key, failure, attempt.model_call))
        failures.append(failure)
        return None

    async def _commit_step(self, step: StoredStep, attempt: BodyAttempt) -> StoredStep:
        self.stream.flush()
        answer = await self._commit(CommitStep(self.run_key, step, attempt.model_call))
        if isinstance(answer, Exists):
            step = answer.step
        self.journal.add(step)
        await self._settling.turn(step.seq or 0)
        return step

    def _check_size(self, key: str, output: Json, body: Body) -> None:
        limit = self.settings.max_run_bytes if body.kind is StepKind.INFER else None
        self.journal.check_size(key, output, limit=limit)

    # ------------------------------------------------------------------------------ StepRunner: waits

    async def wait(self, key: str, wait: Wait) -> Any:
        known = self.journal.find(key)
        if known is None:
            known = await self._wait_until_resolved(key, wait)
        elif known.kind != wait.kind:
            raise self._mismatch(f"step {key!r} is stored as {known.kind!r}, and the code calls it as {wait.kind!r}")
        else:
            await self._settling.turn(known.seq or 0)
            self.journal.delivered()
        if not known.ok and wait.on_timeout is not None and decode_error(known.error or "").own == "InvokeTimeout":
            await wait.on_timeout()
        return self._open(known, wait.decode)

    async def _wait_until_resolved(self, key: str, wait: Wait) -> StoredStep:
        registered = self.journal.waits.get(key)
        if registered is None:
            self._begin_step(key)
            known = await self._register(key, wait)
            if isinstance(known, StoredStep):
                await self._settling.turn(known.seq or 0)
                return known
            deadline = known
        else:
            if registered.kind != wait.kind:
                raise self._mismatch(
                    f"step {key!r} is stored as {registered.kind!r}, and the code calls it as {wait.kind!r}"
                )
            deadline = registered.deadline
        return await self._outcome_of(key, deadline, is_timer=wait.kind is StepKind.SLEEP)

    async def _register(self, key: str, wait: Wait) -> StoredStep | Micros:
        """Register a wait: its deadline, or the outcome it has already."""
        now = self.now()
        try:
            plan = wait.plan(key)
            if inspect.isawaitable(plan):
                plan = await plan
        except (InvalidInput, NotFound, Unserialisable) as error:
            return await self._end_wait(key, wait, None, error, now)
        except LimitExceeded as error:
            self._decide(Raised(error))
            raise self._unwinding() from error
        if plan.deadline <= now and not plan.child and not plan.approval:
            return await self._end_wait(key, wait, plan.timeout_output, plan.timeout_error, now)
        stored = StoredWait(
            key,
            wait.kind,
            plan.name,
            plan.topic,
            plan.correlation,
            plan.deadline,
            now,
            plan.timeout_error is None,
            plan.timeout_output if plan.timeout_error is None else None,
            None if plan.timeout_error is None else encode_error(plan.timeout_error, traceback=False),
        )
        answer = await self._commit(
            RegisterWait(
                self.run_key,
                stored,
                self.journal.take_seq(),
                now,
                child=plan.child,
                approval=plan.approval,
                replace=plan.replace,
                lookback_from=plan.lookback_from,
            )
        )
        match answer:
            case Waits(deadline=deadline):
                if wait.resolves_at_once:
                    return await self._end_wait(key, wait, plan.timeout_output, None, now)
                self.journal.waits[key] = stored
                return deadline
            case Exists(step=step):
                self.journal.add(step)
                return step
            case SignalTaken(run_id=other):
                conflict = SignalConflict(
                    f"step {key!r} of run {self.run_id}: run {other} waits for signal {plan.topic!r} already; "
                    'use another name, or on_conflict="replace"'
                )
                return await self._end_wait(key, wait, None, conflict, now)
        raise AssertionError(f"unexpected answer to a wait: {answer!r}")

    async def _end_wait(
        self, key: str, wait: Wait, output: Json | None, error: Exception | None, started_at: Micros
    ) -> StoredStep:
        """Give a wait an outcome of our own."""
        step = StoredStep(
            key,
            self.journal.take_seq(),
            wait.kind,
            None,
            error is None,
            output if error is None else None,
            None if error is None else encode_error(error),
            1,
            started_at,
            self.now(),
        )
        answer = await self._commit(ResolveWait(self.run_key, step))
        if isinstance(answer, Exists):
            step = answer.step
        self.journal.add(step)
        return step

    async def _outcome_of(self, key: str, deadline: Micros, *, is_timer: bool) -> StoredStep:
        future: Future[StoredStep] = self._loop.create_future()
        self._waits[key] = _Outstanding(future, deadline, is_timer)
        self._settling.poke()
        try:
            step = await self._settling.block(future)
        except asyncio.CancelledError:
            self._waits.pop(key, None)
            if self._is_over:
                raise self._unwinding() from None
            self.journal.waits.pop(key, None)
            # Nothing is memoized: on replay the call is made again. The withdrawal is on its way before anything else.
            self._submit(WithdrawWait(self.run_key, key, self.now()))
            raise
        await self._settling.turn(step.seq or 0)
        return step

    async def _nap(self, until: Micros) -> None:
        """Wait for the next attempt of a step; the database has its time already."""
        future: Future[None] = self._loop.create_future()
        self._naps[future] = until
        self._settling.poke()
        try:
            await self._settling.block(future)
        except asyncio.CancelledError:
            if self._is_over:
                raise self._unwinding() from None
            raise
        finally:
            self._naps.pop(future, None)

    # ----------------------------------------------------------------------------- StepRunner: others

    async def resolve_target(self, target: Target) -> Function[Any, Any] | FunctionRef:
        resolved = self.host.registry.resolve(target)
        if isinstance(resolved, FunctionRef):
            known = await self.host.list_functions()
            if not any(info.app == resolved.app and info.id == resolved.id for info in known):
                raise NotFound(f"no app {resolved.app!r} with a function {resolved.id!r} has registered in this database")
        return resolved

    async def cancel_child(self, run_id: str) -> None:
        await self._commit(CancelRun(run_id, f"run {self.run_id} waited too long for it", self.now()))

    async def new_events(self, events: Sequence[Event], *, source_key: str) -> list[NewEvent]:
        functions = await self.host.list_functions()
        now = self.now()
        return [
            new_event(
                event,
                now=now,
                functions=functions,
                settings=self.settings,
                # The step's own name: sent again after a crash it is the same event.
                event_id=stable_id("evt", self.run_id, source_key, str(position)),
                source_run=self.run_id,
            )
            for position, event in enumerate(events)
        ]

    # ------------------------------------------------------------------------- suspending and waking

    def _suspend(self) -> None:
        """Everything waits: leave memory, unless something was delivered meanwhile."""
        if self._is_over:
            return
        deadlines = [wait.deadline for wait in self._waits.values()]
        ready_at = min([*deadlines, *self._naps.values()])
        only_timers = all(wait.is_timer for wait in self._waits.values())
        status = Status.SLEEPING if only_timers else Status.WAITING
        point("before_suspend")
        self._submit(SuspendRun(self.run_key, self._mail, status, ready_at)).add_done_callback(
            lambda future: self._suspended(future, ready_at)
        )

    def _suspended(self, future: Future[Outcome], ready_at: Micros) -> None:
        point("after_suspend")
        match _outcome(future):
            case Done():
                self._decide(Suspended(ready_at))
            case MailChanged():
                self._adopt()
            case Fenced(why=why):
                self._decide(Lost(why))
            case error:
                self._decide(Lost(f"the run could not be suspended: {error!r}"))

    def _adopt(self) -> None:
        """Take in what was delivered, and what is due."""
        first = self.journal.take_seq(len(self._waits) + len(self.journal.waits) + 1)
        self._submit(Adopt(self.run_key, first, self.now())).add_done_callback(self._adopted)

    def _adopted(self, future: Future[Outcome]) -> None:
        answer = _outcome(future)
        if self._is_over:
            return
        if not isinstance(answer, Adopted):
            self._decide(Lost(answer.why if isinstance(answer, Fenced) else repr(answer)))
            return
        self._mail = answer.mail
        for step in answer.steps:
            self.journal.add(step)
            outstanding = self._waits.pop(step.key, None)
            if outstanding is not None and not outstanding.future.done():
                outstanding.future.set_result(step)
        now = self.now()
        for nap, until in list(self._naps.items()):
            if until <= now and not nap.done():
                nap.set_result(None)
        if answer.cancel:
            self._decide(Cancelled())
        self._settling.poke()

    def _arm_timer(self) -> None:
        """The run stays in memory although it waits: its deadlines have to be watched here."""
        if self._timer is not None:
            self._timer.cancel()
        due = min([*(wait.deadline for wait in self._waits.values()), *self._naps.values()])
        self._timer = self.host.timers.at(due, self.look_into_mail)

    # --------------------------------------------------------------------------------- conclusion

    async def _conclude(self, verdict: Verdict) -> Verdict:
        match verdict:
            case Returned(value=value):
                try:
                    output = self.function.output_codec.encode(value, f"the output of {self.function.id!r}")
                except Unserialisable as error:
                    return await self._fail(error)
                return await self._finish(verdict, Status.COMPLETED, output=output)
            case Raised(error=error):
                return await self._after_error(error)
            case Cancelled():
                reason = self.claimed.reason
                cancelled = encode_error(RunCancelled(self.run_id, reason), traceback=False)
                return await self._finish(verdict, Status.CANCELLED, reason=reason, parent_error=cancelled)
            case Mismatched(error=error):
                return await self._pause(verdict, f"ReplayMismatch: {error}", self.now() + MISMATCH_PAUSE)
            case Drained():
                await self.host.store.submit(Release(self.run_key, self.now()))
                return verdict
            case Suspended() | Lost():
                return verdict

    async def _after_error(self, error: BaseException) -> Verdict:
        """The function raised: fail, or try the code between the steps once more."""
        if isinstance(error, BaseExceptionGroup):
            error = _only_cause(error)
        if is_memoized(error) or isinstance(error, NEVER_RETRIED):
            return await self._fail(error)
        key = self.journal.code_key
        failures = self.journal.attempts.setdefault(key, [])
        now = self.now()
        answer = self.function.config.policy.after_failure(
            error, rng=self.host.rng, **_history(len(failures), failures, started_at=now, now=now)
        )
        if isinstance(answer, Stop):
            return await self._fail(error)
        assert isinstance(answer, RetryIn)
        due = now + int(answer.seconds * 1e6)
        attempt = StoredAttempt(key, len(failures) + 1, encode_error(error), due, now)
        recorded = await self.host.store.submit(RecordAttempt(self.run_key, attempt))
        if isinstance(recorded, Fenced):
            return Lost(recorded.why)
        return await self._pause(Raised(error), None, due)

    async def _pause(self, verdict: Verdict, reason: str | None, due: Micros) -> Verdict:
        """Leave the run to be claimed again at `due`; what was delivered meanwhile is read by that claim."""
        mail = self._mail
        while True:
            answer = await self.host.store.submit(SuspendRun(self.run_key, mail, Status.SLEEPING, due, reason))
            match answer:
                case MailChanged(cancel=True):
                    return await self._conclude(Cancelled())
                case MailChanged(mail=changed) if changed != mail:
                    mail = changed
                case MailChanged():
                    adopted = await self.host.store.submit(
                        Adopt(self.run_key, self.journal.take_seq(len(self.journal.waits) + 1), self.now())
                    )
                    mail = adopted.mail if isinstance(adopted, Adopted) else mail
                case Fenced(why=why):
                    return Lost(why)
                case _:
                    return Suspended(due)

    async def _fail(self, error: BaseException) -> Verdict:
        logger.info("run %s of %s failed: %s: %s", self.run_id, self.function.id, type(error).__name__, error)
        stored, for_parent = _error_of_run(error)
        return await self._finish(Raised(error), Status.FAILED, error=stored, parent_error=for_parent)

    async def _finish(
        self,
        verdict: Verdict,
        status: Status,
        *,
        output: Json | None = None,
        error: Json | None = None,
        reason: str | None = None,
        parent_error: Json | None = None,
    ) -> Verdict:
        point("before_finish")
        answer = await self.host.store.submit(
            Finish(self.run_key, status, output, error, reason, self.now(), _foreign(parent_error))
        )
        point("after_finish")
        if isinstance(answer, Fenced):
            return Lost(answer.why)
        if status is not Status.CANCELLED:  # its reason is in the database alone
            self.host.on_ended(End(self.run_id, RunStatus(status.name.lower()), output, error, reason))
        return verdict

    # ------------------------------------------------------------------------------------- writing

    def _begin_step(self, key: str) -> None:
        try:
            self.journal.begin_step(key)
        except LimitExceeded as error:
            self._decide(Raised(error))
            raise self._unwinding() from error

    async def _commit(self, operation: Operation) -> Outcome:
        """Write for this run; notice when it was lost or cancelled. What comes back is durable."""
        try:
            answer = await self._submit(operation)
        except asyncio.CancelledError:
            if self._is_over:
                raise self._unwinding() from None
            raise
        if isinstance(answer, Fenced):
            raise self.lost(answer.why)
        if self._is_over:
            raise self._unwinding()
        if getattr(answer, "cancel", False):
            self._decide(Cancelled())
            raise self._unwinding()
        if self._waits and getattr(answer, "mail", self._mail) != self._mail:
            self._adopt()
        return answer

    def _submit(self, operation: Operation) -> Future[Outcome]:
        self._uncommitted += 1
        future: Future[Outcome] = self.host.store.submit(operation)
        future.add_done_callback(self._submitted)
        return future

    def _submitted(self, future: Future[Outcome]) -> None:
        self._uncommitted -= 1
        if not future.cancelled():
            future.exception()
        self._settling.poke()

    def _open(self, step: StoredStep, decode: Any) -> Any:
        """What a stored outcome means to user code: a value, or an exception."""
        if step.ok:
            try:
                return decode(step.output or "null")
            except (InvalidInput, ValueError) as error:
                raise self._mismatch(f"the stored output of step {step.key!r} does not fit its type: {error}") from error
        raise memoized(error_from(decode_error(step.error or "{}"), step_id=step.key, attempts=step.attempt))

    def _mismatch(self, message: str) -> Suspend:
        self._decide(Mismatched(ReplayMismatch(f"run {self.run_id}: {message}")))
        return self._unwinding()


class ResultRefused(Exception):
    """A tenacity policy asks for another attempt because of what the body returned."""

    def __init__(self, answer: RetryIn | Stop) -> None:
        super().__init__("the retry policy did not accept what the step returned")
        self.answer = answer


async def _call(function: Function[Any, Any], context: Context[Any], step: Step) -> Any:
    return await function(context, step)


def memoized(error: AgentflowError) -> AgentflowError:
    """Mark an error as a step's stored outcome: raised again and uncaught, it ends the run without a retry."""
    error.__agentflow_memo__ = True  # type: ignore[attr-defined]
    return error


def is_memoized(error: BaseException) -> bool:
    return getattr(error, "__agentflow_memo__", False)


def stable_id(prefix: str, *parts: str) -> str:
    """An id that follows from where in a run it was made."""
    return f"{prefix}_{blake2b('|'.join(parts).encode(), digest_size=16).hexdigest()}"


def _only_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """A group of nothing but stored outcomes is as final as one of them."""
    leaves = list(_leaves(group))
    return leaves[0] if leaves and all(is_memoized(leaf) for leaf in leaves) else group


def _leaves(group: BaseExceptionGroup[BaseException]) -> Any:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _error_of_run(error: BaseException) -> tuple[Json, Json]:
    """The error as the run keeps it, and as the step of a parent that waits for the run gets it."""
    if isinstance(error, StepError):
        stored = {
            "name": error.name,
            "message": error.message,
            "traceback": error.traceback,
            "attributes": error.attributes,
            "own": None,
        }
    else:
        stored = json.loads(encode_error(error))
    for_parent = json.dumps(stored)
    step_id = getattr(error, "step_id", None)
    return json.dumps(stored | {"step_id": step_id}), for_parent


def _foreign(error: Json | None) -> Json | None:
    """A child's error is not the parent's own: the parent's step raises it as `StepError`."""
    return None if error is None else json.dumps(json.loads(error) | {"own": None})


class _History(TypedDict):
    attempt: int
    seconds_since_first: float
    previous_delays: list[float]


def _history(number: int, failures: Sequence[StoredAttempt], *, started_at: Micros, now: Micros) -> _History:
    """What a policy may look at, when the attempt with this number (from 0) has ended."""
    first_at = failures[0].started_at if failures else started_at
    return _History(
        attempt=number + 1,
        seconds_since_first=(now - first_at) / 1e6,
        previous_delays=[max(0.0, (failure.next_at - failure.started_at) / 1e6) for failure in failures],
    )


def _outcome(future: Future[Outcome]) -> Any:
    if future.cancelled():
        return None
    with suppress(Exception):
        return future.result()
    return future.exception()
