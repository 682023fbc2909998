"""Races: branches beside each other, of which the first to succeed decides.

Outcomes are handed to the branches in the order of their `seq`, so a race that was not stored yet is decided again as
it was. Its outcome is stored together with the end of all that its branches wait for; from the moment when it is
decided no step of theirs is begun or stored.
"""

from __future__ import annotations

import asyncio
import json
import logging
from asyncio import Future, Task
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentflow.codec import PLAIN
from agentflow.engine.policy import NEVER_RETRIED
from agentflow.engine.tasks import Branch, current_branch, start_task
from agentflow.engine.unwinding import LONGEST_UNWINDING, Suspend
from agentflow.engine.verdicts import Raised
from agentflow.errors import ConfigurationError, InvalidInput, LimitExceeded, Unserialisable
from agentflow.runs import StepKind
from agentflow.step_runner import Contender, Contenders
from agentflow.store.operation_types import (
    CommitRace,
    CommitStep,
    EndTurn,
    Operation,
    RecordAttempt,
    RegisterWait,
    ResolveWait,
)
from agentflow.store.outcome_types import Exists
from agentflow.store.stored_types import Json, Micros, StoredStep
from agentflow.stored_errors import encode_error

if TYPE_CHECKING:
    from agentflow.engine.runner import Runner

logger = logging.getLogger("agentflow.engine")


@dataclass(frozen=True, slots=True)
class _Won:
    """A branch has returned."""

    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class _Lost:
    """All branches have failed, the last one so."""

    error: BaseException


class Races:
    """The races of one run."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._loop = asyncio.get_running_loop()
        self.withdrawn: tuple[str, ...] = ()
        """What the keys in the branches of decided races begin with."""

    async def decide(self, key: str, contenders: Contenders) -> StoredStep:
        """Run the branches; the outcome of the race, committed and handed out in its turn."""
        runner = self._runner
        # What the branches replay is not new.
        runner.begin_step(key, is_new=False)
        started_at = runner.now()
        scopes = tuple(contender.scope for contender in contenders.values())
        finish = _Finish(runner, len(contenders), on_decided=lambda: self._withdraw(scopes))
        for name, contender in contenders.items():
            finish.start(name, contender)
        try:
            end = await runner.settling.block(finish.future)
            step = self._step(key, end, contenders, started_at)
        except asyncio.CancelledError:
            if runner.is_over:
                raise runner.unwinding() from None
            if finish.end is not None:
                # It was decided in the same turn: the branches are withdrawn already, so that has to be stored.
                step = self._step(key, finish.end, contenders, started_at)
                runner.submit(CommitRace(runner.run_key, step, scopes))
            await self._end_tasks(scopes)
            raise
        answer = await runner.commit(CommitRace(runner.run_key, step, scopes))
        if isinstance(answer, Exists):
            step = answer.step
        runner.journal.add(step)
        runner.journal.forget_within(scopes)
        await self._await_losers(key, scopes)
        await runner.settling.turn(step.seq or 0)
        return step

    # ------------------------------------------------------------------------------ what is decided stays so

    def has_withdrawn(self, key: str) -> bool:
        """Whether the step belongs to a branch of a decided race."""
        return key.startswith(self.withdrawn)

    def check(self, key: str) -> None:
        """Raise what stops a branch of a decided race at its next step."""
        if not key.startswith(self.withdrawn):
            return
        branch = current_branch()
        if branch is not None and branch.scope.startswith(self.withdrawn):
            branch.swallowed += 1
            raise asyncio.CancelledError(f"step {key!r} is withdrawn: its race is decided")
        raise ConfigurationError(
            f"step {key!r} of run {self._runner.run_id} was called with the Step of a race's branch, after the race: "
            "it is that branch's alone, call it with the function's own"
        )

    def check_operation(self, operation: Operation) -> None:
        """Nothing of such a branch is written any more."""
        match operation:
            case CommitStep(step=step) | ResolveWait(step=step) | CommitRace(step=step) | EndTurn(step=step):
                self.check(step.key)
            case RegisterWait(wait=wait):
                self.check(wait.key)
            case RecordAttempt(attempt=attempt):
                self.check(attempt.key)

    # ---------------------------------------------------------------------------------------- its branches

    def _withdraw(self, scopes: tuple[str, ...]) -> None:
        self.withdrawn += scopes
        for task in self._tasks(scopes):
            task.cancel()

    def _tasks(self, scopes: tuple[str, ...]) -> list[Task[Any]]:
        """The tasks of these branches that have not ended; those that they started too."""
        branches = self._runner.branches
        found = [branch.task for branch in branches if branch.scope and branch.scope.startswith(scopes)]
        return [task for task in found if task is not None and not task.done()]

    async def _end_tasks(self, scopes: tuple[str, ...]) -> None:
        """The await of the race was cancelled: so are its branches, and their clean-up is waited for."""
        for task in self._tasks(scopes):
            task.cancel()
        while tasks := self._tasks(scopes):
            await asyncio.wait(tasks)
        if self._runner.is_over:
            raise self._runner.unwinding()

    async def _await_losers(self, key: str, scopes: tuple[str, ...]) -> None:
        """`finally` and `async with` blocks of the losers end before the function goes on, if they do end."""
        give_up_at = self._loop.time() + LONGEST_UNWINDING
        while tasks := self._tasks(scopes):
            left = give_up_at - self._loop.time()
            if left <= 0:
                logger.error("branches of race %r of run %s do not end: %r", key, self._runner.run_id, tasks)
                return
            await asyncio.wait(tasks, timeout=left)
        if self._runner.is_over:
            raise self._runner.unwinding()

    # ---------------------------------------------------------------------------------------- its outcome

    def _step(self, key: str, end: _Won | _Lost, contenders: Contenders, started_at: Micros) -> StoredStep:
        runner = self._runner
        runner.begin_step(key)
        output, error = self._outcome(key, end, contenders)
        return StoredStep(
            key=key,
            seq=runner.journal.take_seq(),
            kind=StepKind.RACE,
            name=end.name if isinstance(end, _Won) else None,
            ok=error is None,
            output=output,
            error=None if error is None else encode_error(error),
            attempt=1,
            started_at=started_at,
            ended_at=runner.now(),
        )

    def _outcome(
        self, key: str, end: _Won | _Lost, contenders: Contenders
    ) -> tuple[Json | None, BaseException | None]:
        if isinstance(end, _Lost):
            return None, end.error
        try:
            codec = contenders[end.name].codec
            value = codec.encode(end.value, f"what branch {end.name!r} of race {key!r} returned")
            output = f'{{"name":{json.dumps(end.name)},"value":{value}}}'
            self._runner.journal.check_size(key, output)
        except Unserialisable as error:
            return None, error
        except LimitExceeded as error:
            self._runner.decide(Raised(error))
            raise self._runner.unwinding() from error
        return output, None


class _Finish:
    """The finish of one race: who is still under way, and what the first to arrive, or the last to fail, has."""

    def __init__(self, runner: Runner, count: int, *, on_decided: Callable[[], None]) -> None:
        self._runner = runner
        self._left = count
        self._on_decided = on_decided
        self._loop = asyncio.get_running_loop()
        self.future: Future[_Won | _Lost] = self._loop.create_future()
        self.end: _Won | _Lost | None = None

    def start(self, name: str, contender: Contender) -> None:
        branch = Branch(self._runner, scope=contender.scope)
        task = start_task(self._loop, self._run(contender), branch=branch, name=contender.scope)
        task.add_done_callback(lambda task: self._ended(name, task))

    async def _run(self, contender: Contender) -> Any:
        try:
            return await contender.call()
        except SystemExit as error:  # asyncio would end the whole worker by it
            self._runner.decide(Raised(error))
            raise self._runner.unwinding() from error

    def _ended(self, name: str, task: Task[Any]) -> None:
        error = (
            asyncio.CancelledError(f"branch {name!r} was cancelled") if task.cancelled() else task.exception()
        )
        if self.future.done() or self._runner.is_over:
            return
        self._left -= 1
        if error is None:
            self._decide(_Won(name, task.result()))
        elif isinstance(error, NEVER_RETRIED):
            self._runner.decide(Raised(error))
        elif self._left == 0 and not isinstance(error, Suspend):
            self._decide(_Lost(error))

    def _decide(self, end: _Won | _Lost) -> None:
        # At once, not when the race's own task gets to it: no loser takes another step.
        self.end = end
        self._on_decided()
        self.future.set_result(end)


def winner_of(text: Json, contenders: Contenders) -> tuple[str, Any]:
    """The stored outcome of a race as the function gets it. Raises `InvalidInput`."""
    stored = PLAIN.decode(text)
    name = stored["name"]
    if name not in contenders:
        raise InvalidInput(f"its winner {name!r} is none of its branches: {', '.join(contenders)}")
    return name, contenders[name].codec.decode(json.dumps(stored["value"]))
