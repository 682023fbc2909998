"""Steps that execute something: try the body under its policy until it has an outcome, and commit that."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from agentflow.durations import parse_duration
from agentflow.engine.attempts import BodyAttempt
from agentflow.engine.policy import NEVER_RETRIED, after_failure, check_result
from agentflow.engine.verdicts import Drained, Raised
from agentflow.info import StepInfo, current_body
from agentflow.retry import RetryPolicy, Stop, retry_policy
from agentflow.runs import StepKind
from agentflow.step_runner import Body, NotYet
from agentflow.store.operation_types import CommitStep, EndTurn, RecordAttempt
from agentflow.store.outcome_types import Exists
from agentflow.store.stored_types import Json, Micros, StoredAttempt, StoredStep
from agentflow.stored_errors import encode_error

if TYPE_CHECKING:
    from agentflow.engine.runner import Runner

logger = logging.getLogger("agentflow.engine")

NOT_HERE = object()
"""Stands for a value that has to be decoded from what is stored."""


class Bodies:
    """The bodies of one run."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        given = runner.function.config.step_timeout
        self._default_timeout = None if given is None else parse_duration(given)
        self._running: dict[str, asyncio.Task[Any]] = {}
        self.held_back: dict[asyncio.Future[None], None] = {}
        """What does not begin because the worker stops."""

    def __bool__(self) -> bool:
        """Whether a body runs now."""
        return bool(self._running)

    def cancel(self) -> None:
        for task in self._running.values():
            task.cancel()

    async def execute(self, key: str, body: Body) -> tuple[StoredStep, Any]:
        """The outcome of a step that has none yet, committed; with its value, if it is one we have made."""
        runner = self._runner
        runner.begin_step(key)
        policy = retry_policy(body.retry, default=runner.function.config.policy)
        failures = runner.journal.attempts.setdefault(key, [])
        if failures and failures[-1].next_at > runner.now():
            await runner.waits.nap(failures[-1].next_at)
        timeout = self._default_timeout if body.timeout is None else body.timeout
        while True:
            if runner.host.is_draining():
                await self._hold_back()
            if runner.waits.is_looking:
                await runner.waits.looked()
            runner.check_goes_on(key)
            attempt = BodyAttempt(runner, key, len(failures), threads=runner.host.threads, timeout=timeout)
            started_at = runner.now()
            try:
                output, value = await self._run(attempt, body, policy, failures, started_at)
            except NotYet as wait:
                if runner.is_over:
                    raise runner.unwinding() from None
                runner.stream.flush()  # the run may leave memory now
                await runner.waits.nap(wait.until, reason=wait.reason, is_woken=wait.is_woken)
            except (Exception, SystemExit) as error:  # asyncio would end the worker by a SystemExit
                failed = await self._take_failure(attempt, body, policy, failures, error, started_at)
                if failed is not None:
                    return failed, NOT_HERE
                await runner.waits.nap(failures[-1].next_at)
            else:
                step = self._step(attempt, body, started_at, output=output)
                stored = await self._commit(step, attempt)
                return stored, value if stored is step else NOT_HERE

    async def _hold_back(self) -> None:
        """The worker stops: begin nothing. The run is given back when the bodies that run have ended."""
        runner = self._runner
        if not self:
            runner.decide(Drained())
            raise runner.unwinding()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.held_back[future] = None
        try:
            await runner.settling.block(future)
        finally:
            del self.held_back[future]

    async def _run(
        self,
        attempt: BodyAttempt,
        body: Body,
        policy: RetryPolicy,
        failures: list[StoredAttempt],
        started_at: Micros,
    ) -> tuple[Json, Any]:
        """Call the body once; give its output as JSON, and as it comes back from that."""
        runner = self._runner
        timeout = attempt.timeout
        task = asyncio.current_task()
        assert task is not None
        self._running[attempt.key] = task
        token = current_body.set(StepInfo(runner.run_id, attempt.key, attempt.number))
        try:
            value = await (body.call(attempt) if timeout is None else _call_in_time(attempt, body, timeout))
        except asyncio.CancelledError:
            if runner.is_over:
                raise runner.unwinding() from None
            raise
        finally:
            current_body.reset(token)
            del self._running[attempt.key]
            runner.settling.poke()
        runner.check_goes_on(attempt.key)
        if policy.tenacity is not None:
            check_result(policy, value, failures, started_at=started_at, now=runner.now())
        output, value = body.codec.round_trip(value, f"step {attempt.key!r}")
        # A model's answer is paid for: it may be as large as the run.
        limit = runner.settings.max_run_bytes if body.kind is StepKind.INFER else None
        runner.journal.check_size(attempt.key, output, limit=limit)
        return output, value

    async def _take_failure(
        self,
        attempt: BodyAttempt,
        body: Body,
        policy: RetryPolicy,
        failures: list[StoredAttempt],
        error: Exception | SystemExit,
        started_at: Micros,
    ) -> StoredStep | None:
        """Store a failed attempt; give the step's outcome if it was the last one."""
        runner = self._runner
        runner.check_goes_on(attempt.key)
        if isinstance(error, NEVER_RETRIED):
            runner.decide(Raised(error))
            raise runner.unwinding() from error
        now = runner.now()
        answer = after_failure(policy, error, failures, started_at=started_at, now=now, rng=runner.host.rng)
        if isinstance(answer, Stop):
            return await self._commit(self._step(attempt, body, started_at, error=error), attempt)
        failure = StoredAttempt(
            attempt.key, attempt.number + 1, encode_error(error), now + int(answer.seconds * 1e6), started_at
        )
        logger.warning(
            "step %r of run %s failed, attempt %d: %s: %s; the next one in %.1f s",
            attempt.key,
            runner.run_id,
            attempt.number + 1,
            type(error).__name__,
            error,
            answer.seconds,
            exc_info=error if attempt.number == 0 else None,
        )
        runner.stream.append("attempt.reset", None, step_key=attempt.key, attempt=attempt.number)
        runner.stream.flush()
        await runner.commit(RecordAttempt(runner.run_key, failure, attempt.model_call))
        failures.append(failure)
        return None

    def _step(
        self,
        attempt: BodyAttempt,
        body: Body,
        started_at: Micros,
        *,
        output: Json | None = None,
        error: Exception | SystemExit | None = None,
    ) -> StoredStep:
        # The stream's numbers come before its step's: a reader sees the text, then the outcome.
        self._runner.stream.flush()
        return StoredStep(
            key=attempt.key,
            seq=self._runner.journal.take_seq(),
            kind=body.kind,
            name=body.name,
            ok=error is None,
            output=output,
            error=None if error is None else encode_error(error),
            attempt=attempt.number + 1,
            started_at=started_at,
            ended_at=self._runner.now(),
        )

    async def _commit(self, step: StoredStep, attempt: BodyAttempt) -> StoredStep:
        runner = self._runner
        answer = await runner.commit(
            CommitStep(runner.run_key, step, attempt.model_call, runner.waits.mail)
            if attempt.turn is None or not step.ok
            else EndTurn(runner.run_key, step, attempt.turn)
        )
        if isinstance(answer, Exists):
            step = answer.step
        runner.journal.add(step)
        if not runner.settling.is_alone:
            await runner.settling.turn(step.seq or 0)
        return step


async def _call_in_time(attempt: BodyAttempt, body: Body, timeout: timedelta) -> Any:
    limit = asyncio.timeout(timeout.total_seconds())
    try:
        async with limit:
            return await body.call(attempt)
    except TimeoutError as error:
        if not limit.expired():
            raise
        # A thread cannot be stopped: the next attempt must not run beside it.
        await attempt.thread_ended()
        raise TimeoutError(f"attempt {attempt.number + 1} took longer than timeout={timeout}") from error
