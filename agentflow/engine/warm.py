"""Warm runs: of those that have just left memory here the journal is kept, so that going on costs no reading.

A run that is woken soon, by a signal, a decision or the end of its sub-run, is then taken up again by one statement. It
goes by the run's epoch: if anybody else had the run meanwhile, what is kept here is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from agentflow.runs import StepKind
from agentflow.store.claim_types import ClaimedRun, Reclaimed
from agentflow.store.stored_types import RunKey

if TYPE_CHECKING:
    from agentflow.engine.journal import Journal
    from agentflow.engine.runner import Runner

MOST_RUNS = 128
MOST_STEPS = 64
MOST_BYTES = 32 * 1024
"""For each run: its input and the outputs of its steps."""


class WarmRun(NamedTuple):
    """A run as it left memory."""

    claimed: ClaimedRun
    journal: Journal
    mail: int

    def taken_up(self, worker_id: str, found: Reclaimed) -> ClaimedRun:
        """The run as it goes on, with what was delivered."""
        delivered = {step.key for step in found.steps}
        return replace(
            self.claimed,
            key=RunKey(self.claimed.key.run_id, worker_id, found.epoch),
            mail=self.mail + len(found.steps),  # as far as it is read
            crash_count=0,
            reason=None,
            next_seq=self.journal.next_seq + len(found.steps),
            steps=(*self.journal.steps, *found.steps),
            attempts=(),
            waits=tuple(wait for wait in self.journal.waits.values() if wait.key not in delivered),
            model_calls=(),
        )


class WarmRuns:
    """The latest of them: so few that they count for nothing."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, WarmRun] = OrderedDict()

    def keep(self, runner: Runner) -> None:
        """Keep what is known of a run that has been suspended, if that is all there is to know."""
        claimed, journal = runner.claimed, runner.journal
        is_plain = not (claimed.slots or claimed.batch or runner.races.withdrawn)
        # What only sleeps is woken by the clock, and claimed.
        is_woken = any(wait.kind != StepKind.SLEEP for wait in journal.waits.values())
        if (
            is_plain
            and is_woken
            and journal.is_whole
            and journal.fits(MOST_STEPS, MOST_BYTES - len(claimed.input))
        ):
            self._runs[claimed.key.run_id] = WarmRun(claimed, journal, runner.waits.mail)
            if len(self._runs) > MOST_RUNS:
                self._runs.popitem(last=False)

    def take(self, run_id: str) -> WarmRun | None:
        """What is kept of the run; it is kept no longer."""
        return self._runs.pop(run_id, None)
