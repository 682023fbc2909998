"""Steps that wait: register the wait, leave memory when nothing else is to be done, take in what was delivered."""

from __future__ import annotations

import asyncio
import inspect
from asyncio import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentflow.crashpoints import point
from agentflow.engine.host import TimerHandle
from agentflow.engine.verdicts import Cancelled, Lost, Raised, Suspended
from agentflow.errors import (
    ConfigurationError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    SignalConflict,
    Unserialisable,
)
from agentflow.runs import StepKind
from agentflow.step_runner import Wait, WaitPlan
from agentflow.store.operation_types import Adopt, RegisterWait, ResolveWait, Suspend, WithdrawWait
from agentflow.store.outcome_types import (
    Adopted,
    Done,
    Exists,
    Fenced,
    MailChanged,
    Outcome,
    SignalTaken,
    Waits,
)
from agentflow.store.stored_types import Json, Micros, Status, StoredStep, StoredWait
from agentflow.stored_errors import encode_error

if TYPE_CHECKING:
    from agentflow.engine.runner import Runner


SHORT_WAIT = 1_000_000
"""Microseconds for which a run that may not call a model yet stays in memory."""


@dataclass(slots=True)
class _Outstanding:
    """A wait that user code is blocked on: who gets its outcome, and when it is due."""

    future: Future[StoredStep]
    deadline: Micros
    is_timer: bool


class RunWaits:
    """The waits of one run."""

    def __init__(self, runner: Runner, *, mail: int) -> None:
        self._runner = runner
        self._loop = asyncio.get_running_loop()
        self.outstanding: dict[str, _Outstanding] = {}
        self.naps: dict[Future[None], Micros] = {}
        self._reasons: dict[Future[None], str] = {}
        """Why some of the naps are taken: the others are retries."""
        self._woken_by_mail: dict[Future[None], None] = {}
        """Naps of bodies that may go on when there is mail."""
        self._timer: TimerHandle | None = None
        self._look: Future[Outcome] | None = None
        self.mail = mail
        """The run's mail as far as it was read."""

    def __bool__(self) -> bool:
        """Whether user code is blocked on a wait now."""
        return bool(self.outstanding or self.naps)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def resolve(self, key: str, wait: Wait) -> StoredStep:
        """The outcome of a wait that has none yet, handed out in its turn."""
        runner = self._runner
        registered = runner.journal.waits.get(key)
        if registered is not None:
            runner.check_kind(key, registered.kind, wait.kind)
        # A detached invoke that is registered and has no outcome: the crash came between the two.
        if registered is None or wait.resolves_at_once:
            runner.begin_step(key)
            known = await self._register(key, wait)
            if isinstance(known, StoredStep):
                await runner.settling.turn(known.seq or 0)
                return known
            deadline = known
        else:
            deadline = registered.deadline
        return await self._outcome_of(key, deadline, is_timer=wait.kind is StepKind.SLEEP)

    async def nap(self, until: Micros, *, reason: str | None = None, is_woken: bool = False) -> None:
        """Wait to call a body again: for its next attempt, whose time the database has already, or for the `reason`
        that it may not begin yet, which is asked about again when the run is taken up."""
        future: Future[None] = self._loop.create_future()
        self.naps[future] = until
        if reason is not None:
            self._reasons[future] = reason
        if is_woken:
            self._woken_by_mail[future] = None
        self._runner.settling.poke()
        try:
            await self._runner.settling.block(future)
        except asyncio.CancelledError:
            if self._runner.is_over:
                raise self._runner.unwinding() from None
            raise
        finally:
            self.naps.pop(future, None)
            self._reasons.pop(future, None)
            self._woken_by_mail.pop(future, None)

    # ------------------------------------------------------------------------------------- registering

    async def _register(self, key: str, wait: Wait) -> StoredStep | Micros:
        """Register a wait: its deadline, or the outcome it has already."""
        runner = self._runner
        now = runner.now()
        try:
            plan = wait.plan(key)
            if inspect.isawaitable(plan):
                plan = await plan
        except (ConfigurationError, InvalidInput, NotFound, Unserialisable) as error:
            return await self._end(key, wait, None, None, error, now)
        except LimitExceeded as error:
            runner.decide(Raised(error))
            raise runner.unwinding() from error
        is_over = plan.deadline <= now and not plan.child and not plan.approval
        if is_over and not _takes_what_is_there(wait, plan):
            return await self._end(key, wait, plan, plan.timeout_output, plan.timeout_error, now)
        stored = _stored_wait(key, wait, plan, now)
        registration = RegisterWait(
            runner.run_key,
            stored,
            runner.journal.take_seq(),
            now,
            child=plan.child,
            approval=plan.approval,
            replace=plan.replace,
            lookback_from=plan.lookback_from,
        )
        try:
            answer = await runner.commit(registration)
        except asyncio.CancelledError:
            self._withdraw(key)  # it is registered all the same
            raise
        match answer:
            case Waits(deadline=deadline):
                if is_over or wait.resolves_at_once:
                    return await self._end(key, wait, plan, plan.timeout_output, plan.timeout_error, now)
                runner.journal.waits[key] = stored
                return deadline
            case Exists(step=step):
                runner.journal.add(step)
                return step
            case SignalTaken(run_id=other):
                conflict = SignalConflict(
                    f"step {key!r} of run {runner.run_id}: run {other} waits for signal {plan.topic!r} already; "
                    'use another name, or on_conflict="replace"'
                )
                return await self._end(key, wait, plan, None, conflict, now)
        raise AssertionError(f"unexpected answer to a wait: {answer!r}")

    async def _end(
        self,
        key: str,
        wait: Wait,
        plan: WaitPlan | None,
        output: Json | None,
        error: Exception | None,
        started_at: Micros,
    ) -> StoredStep:
        """Give a wait an outcome of our own; one that somebody else delivered first stands."""
        runner = self._runner
        step = StoredStep(
            key=key,
            seq=runner.journal.take_seq(),
            kind=wait.kind,
            name=None if plan is None else plan.name,
            ok=error is None,
            output=output if error is None else None,
            error=None if error is None else encode_error(error),
            attempt=1,
            started_at=started_at,
            ended_at=runner.now(),
        )
        answer = await runner.commit(ResolveWait(runner.run_key, step))
        if isinstance(answer, Exists):
            step = answer.step
        runner.journal.add(step)
        return step

    async def _outcome_of(self, key: str, deadline: Micros, *, is_timer: bool) -> StoredStep:
        runner = self._runner
        future: Future[StoredStep] = self._loop.create_future()
        self.outstanding[key] = _Outstanding(future, deadline, is_timer)
        runner.settling.poke()
        try:
            step = await runner.settling.block(future)
        except asyncio.CancelledError:
            self.outstanding.pop(key, None)
            if runner.is_over:
                raise runner.unwinding() from None
            self._withdraw(key)
            raise
        await runner.settling.turn(step.seq or 0)
        return step

    def _withdraw(self, key: str) -> None:
        """Nothing is memoized: replay makes the call again. The withdrawal goes before anything that follows."""
        self._runner.journal.waits.pop(key, None)
        if self._runner.races.has_withdrawn(key):
            return  # by the transaction that decides the race
        self._runner.submit(WithdrawWait(self._runner.run_key, key, self._runner.now()))

    # ---------------------------------------------------------------------------- suspending and waking

    def suspend(self) -> None:
        """Everything waits: leave memory, unless something was delivered meanwhile."""
        runner = self._runner
        if runner.is_over:
            return
        if self._is_over_soon():
            self.watch_deadlines()
            return
        only_timers = all(wait.is_timer for wait in self.outstanding.values())
        status = Status.SLEEPING if only_timers else Status.WAITING
        ready_at = min(self._earliest(), runner.time_limit.deadline)
        point("before_suspend")
        submitted = runner.submit(
            Suspend(
                runner.run_key,
                self.mail,
                status,
                ready_at,
                self._reason(),
                runner.claimed.slots,
                runner.now(),
            )
        )
        submitted.add_done_callback(lambda future: self._suspended(future, ready_at))

    def _suspended(self, future: Future[Outcome], ready_at: Micros) -> None:
        point("after_suspend")
        match answer_of(future):
            case Done():
                self._runner.decide(Suspended(ready_at))
            case MailChanged():
                self.look_into_mail()
            case Fenced(why=why):
                self._runner.decide(Lost(why))
            case error:
                self._runner.decide(Lost(f"the run could not be suspended: {error!r}"))

    def look_into_mail(self) -> None:
        """Take in what was delivered, and what is due."""
        runner = self._runner
        if runner.is_over:
            return
        first, room = runner.journal.take_seqs_for_mail()
        self._look = runner.submit(Adopt(runner.run_key, first, runner.now(), room))
        self._look.add_done_callback(self._adopted)

    @property
    def is_looking(self) -> bool:
        """Whether the answer to a look is under way: it may say that the run was cancelled."""
        return self._look is not None and not self._look.done()

    async def looked(self) -> None:
        """Wait for that answer."""
        if self._look is not None and not self._look.done():
            await asyncio.wait([self._look])

    def _adopted(self, future: Future[Outcome]) -> None:
        runner = self._runner
        answer = answer_of(future)
        if runner.is_over:
            return
        if not isinstance(answer, Adopted):
            runner.decide(Lost(answer.why if isinstance(answer, Fenced) else repr(answer)))
            return
        has_mail, self.mail = answer.mail != self.mail, answer.mail
        for step in answer.steps:
            runner.has_new_step = True
            runner.journal.add(step)
            outstanding = self.outstanding.pop(step.key, None)
            if outstanding is not None and not outstanding.future.done():
                outstanding.future.set_result(step)
        now = runner.now()
        for nap, until in list(self.naps.items()):
            if (until <= now or (has_mail and nap in self._woken_by_mail)) and not nap.done():
                nap.set_result(None)
        if answer.cancel:
            runner.decide(Cancelled())
        runner.settling.poke()

    def watch_deadlines(self) -> None:
        """The run stays in memory although it waits: its deadlines have to be watched here."""
        self.close()
        self._timer = self._runner.host.timers.at(self._earliest(), self.look_into_mail)

    def _is_over_soon(self) -> bool:
        """Whether a body may begin in a moment: leaving memory for that costs more than it frees."""
        host = self._runner.host
        if not self._reasons or host.is_draining() or host.timers.are_moved_by_hand:
            return False
        return min(self.naps[nap] for nap in self._reasons) <= self._runner.now() + SHORT_WAIT

    def _reason(self) -> str | None:
        """Why the body that is called again first does not begin yet."""
        first = min(self._reasons, key=self.naps.__getitem__, default=None)
        return None if first is None else self._reasons[first]

    def _earliest(self) -> Micros:
        return min([*(wait.deadline for wait in self.outstanding.values()), *self.naps.values()])


def _takes_what_is_there(wait: Wait, plan: WaitPlan) -> bool:
    """Whether something may have come before the wait: it is looked for even by who does not wait at all."""
    return wait.kind is StepKind.SIGNAL or plan.lookback_from is not None


def _stored_wait(key: str, wait: Wait, plan: WaitPlan, now: Micros) -> StoredWait:
    error = plan.timeout_error
    return StoredWait(
        key=key,
        kind=wait.kind,
        name=plan.name,
        topic=plan.topic,
        correlation=plan.correlation,
        deadline=plan.deadline,
        since=now,
        timeout_ok=error is None,
        timeout_output=plan.timeout_output if error is None else None,
        timeout_error=None if error is None else encode_error(error, traceback=False),
        condition=plan.condition,
    )


def answer_of(future: Future[Outcome]) -> Any:
    """The answer, or the error that came instead."""
    if future.cancelled():
        return None
    with suppress(Exception):
        return future.result()
    return future.exception()
