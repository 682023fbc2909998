"""What is written of a run when its code has ended here: completed, failed, cancelled, or to be tried again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from agentflow.crashpoints import point
from agentflow.engine.failures import failure_run
from agentflow.engine.outcomes import error_for_parent, error_of_run, is_memoized, only_cause
from agentflow.engine.policy import NEVER_RETRIED, after_failure
from agentflow.engine.verdicts import (
    Cancelled,
    Drained,
    Lost,
    Mismatched,
    Raised,
    Returned,
    Suspended,
    Verdict,
)
from agentflow.errors import LimitExceeded, Poisoned, ReplayMismatch, RunCancelled, Unserialisable
from agentflow.retry import Stop
from agentflow.runs import End, RunStatus
from agentflow.store.operation_types import Adopt, Finish, RecordAttempt, Release, Suspend
from agentflow.store.outcome_types import Adopted, Fenced, MailChanged
from agentflow.store.stored_types import Json, Micros, NewRun, Status, StoredAttempt
from agentflow.stored_errors import encode_error

if TYPE_CHECKING:
    from agentflow.engine.runner import Runner

SHORTEST_MISMATCH_PAUSE = 10_000_000
LONGEST_MISMATCH_PAUSE = 600_000_000
"""Microseconds until a run whose code does not fit its history is tried again."""

logger = logging.getLogger("agentflow.engine")


class Conclusion:
    """Writes what becomes of a run."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._store = runner.host.store

    async def write(self, verdict: Verdict) -> Verdict:
        """See to it that the database knows; gives the verdict that holds in the end."""
        runner = self._runner
        match verdict:
            case Returned(value=value):
                try:
                    output = runner.function.output_codec.encode(
                        value, f"the output of {runner.function.id!r}"
                    )
                    runner.journal.check_size(None, output)
                except (Unserialisable, LimitExceeded) as error:
                    return await self._fail(error)
                return await self._finish(verdict, Status.COMPLETED, output=output)
            case Raised(error=error):
                return await self._after_error(only_cause(error))
            case Cancelled(reason=given):
                reason = given or runner.claimed.reason
                stored = encode_error(RunCancelled(runner.run_id, reason), traceback=False)
                return await self._finish(
                    verdict, Status.CANCELLED, reason=reason, parent_error=error_for_parent(stored)
                )
            case Mismatched(error=mismatch):
                if runner.host.replay_every_step:
                    return await self._fail(mismatch)
                pause = self._mismatch_pause()
                logger.warning("%s; it is tried again in %d s", mismatch, pause // 1_000_000)
                return await self._pause(runner.now() + pause, reason=f"ReplayMismatch: {mismatch}")
            case Drained():
                await self._store.submit(Release(runner.run_key, runner.now(), runner.claimed.slots))
                return verdict
            case Suspended() | Lost():
                return verdict

    def _mismatch_pause(self) -> Micros:
        """As long as the run has stood still, so that the pauses double."""
        claimed = self._runner.claimed
        stood_since = max((step.ended_at for step in claimed.steps), default=claimed.created_at)
        stands_for = self._runner.now() - stood_since
        return min(max(stands_for, SHORTEST_MISMATCH_PAUSE), LONGEST_MISMATCH_PAUSE)

    async def _after_error(self, error: BaseException) -> Verdict:
        """The function raised: fail, or try the code between the steps once more."""
        runner = self._runner
        if is_memoized(error) or isinstance(error, NEVER_RETRIED):
            return await self._fail(error)
        key = runner.journal.code_key
        failures = runner.journal.attempts.get(key, [])
        now = runner.now()
        answer = after_failure(
            runner.function.config.policy, error, failures, started_at=now, now=now, rng=runner.host.rng
        )
        if isinstance(answer, Stop):
            return await self._fail(error)
        due = now + int(answer.seconds * 1e6)
        logger.warning(
            "run %s of %s failed between its steps, attempt %d: %s: %s; the next one in %.1f s",
            runner.run_id,
            runner.function.id,
            len(failures) + 1,
            type(error).__name__,
            error,
            answer.seconds,
            exc_info=error if not failures else None,
        )
        failure = StoredAttempt(key, len(failures) + 1, encode_error(error), due, now)
        recorded = await self._store.submit(RecordAttempt(runner.run_key, failure))
        return Lost(recorded.why) if isinstance(recorded, Fenced) else await self._pause(due, reason=None)

    async def _pause(self, due: Micros, *, reason: str | None) -> Verdict:
        """Leave the run to be claimed again at `due`; what was delivered meanwhile is read by that claim."""
        runner = self._runner
        runner.journal.note_mark()
        mail = runner.waits.mail
        due = min(due, runner.time_limit.deadline)
        while True:
            answer = await self._store.submit(
                Suspend(
                    runner.run_key, mail, Status.SLEEPING, due, reason, runner.claimed.slots, runner.now()
                )
            )
            match answer:
                case MailChanged(cancel=True):
                    return await self.write(Cancelled())
                case MailChanged():
                    first, room = runner.journal.take_seqs_for_mail()
                    adopted = await self._store.submit(Adopt(runner.run_key, first, runner.now(), room))
                    mail = adopted.mail if isinstance(adopted, Adopted) else mail
                case Fenced(why=why):
                    return Lost(why)
                case _:
                    return Suspended(due)

    async def _fail(self, error: BaseException) -> Verdict:
        runner = self._runner
        logger.error(
            "run %s of %s failed: %s: %s",
            runner.run_id,
            runner.function.id,
            type(error).__name__,
            error,
            exc_info=error,
        )
        stored = error_of_run(error)
        return await self._finish(
            Raised(error),
            Status.FAILED,
            error=stored,
            reason=f"{type(error).__name__}: {error}"
            if isinstance(error, Poisoned | ReplayMismatch)
            else None,
            parent_error=error_for_parent(stored),
            follow_up=failure_run(runner.function, runner.claimed, stored, now=runner.now()),
        )

    async def _finish(
        self,
        verdict: Verdict,
        status: Status,
        *,
        output: Json | None = None,
        error: Json | None = None,
        reason: str | None = None,
        parent_error: Json | None = None,
        follow_up: NewRun | None = None,
    ) -> Verdict:
        runner = self._runner
        point("before_finish")
        answer = await self._store.submit(
            Finish(
                runner.run_key,
                status,
                output,
                error,
                reason,
                runner.now(),
                parent_error,
                follow_up,
                runner.claimed.slots,
                has_parent=runner.claimed.parent_key is not None,
            )
        )
        point("after_finish")
        if isinstance(answer, Fenced):
            return Lost(answer.why)
        if status is not Status.CANCELLED:  # why it was cancelled is in the database alone
            runner.host.on_ended(End(runner.run_id, RunStatus(status.name.lower()), output, error, reason))
        return verdict
