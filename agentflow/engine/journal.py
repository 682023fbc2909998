"""What a run has done before, and where it stands: outcomes, failed attempts and waits by step key."""

from __future__ import annotations

from agentflow.codec import size_of
from agentflow.errors import LimitExceeded
from agentflow.settings import Settings
from agentflow.store.claim_types import ClaimedRun
from agentflow.store.stored_types import Json, ModelCall, StoredAttempt, StoredStep, StoredWait


class Journal:
    """The memory of one run. Every new thing gets the next `seq`, so history has one order."""

    def __init__(self, claimed: ClaimedRun, settings: Settings) -> None:
        self._settings = settings
        self._outcomes = {step.key: step for step in claimed.steps}
        self._undelivered = len(claimed.steps)
        self._last_step_seq = max((step.seq or 0 for step in claimed.steps), default=0)
        self._next_seq = claimed.next_seq
        self._size = sum(_size(step.output) for step in claimed.steps)
        self._begun: set[str] = {*self._outcomes, *(wait.key for wait in claimed.waits)}
        self.attempts: dict[str, list[StoredAttempt]] = {}
        for attempt in claimed.attempts:
            self.attempts.setdefault(attempt.key, []).append(attempt)
        self._begun.update(key for key in self.attempts if not key.startswith("@"))
        self.waits: dict[str, StoredWait] = {wait.key: wait for wait in claimed.waits}
        self.open_calls: dict[str, ModelCall] = {call.key: call for call in claimed.model_calls}
        self._has_marks = False

    def find(self, key: str) -> StoredStep | None:
        return self._outcomes.get(key)

    def add(self, step: StoredStep) -> None:
        """Take in a new outcome."""
        self._outcomes[step.key] = step
        self._begun.add(step.key)
        self.attempts.pop(step.key, None)
        self.waits.pop(step.key, None)
        self._size += _size(step.output)
        if step.seq is not None and step.seq > self._last_step_seq:
            self._last_step_seq = step.seq

    def note_mark(self) -> None:
        """Something about a step was stored that is in no outcome."""
        self._has_marks = True

    @property
    def is_whole(self) -> bool:
        """Whether outcomes and waits are all that is stored of the run."""
        return not (self._has_marks or self.open_calls or any(self.attempts.values()))

    def fits(self, steps: int, size: int) -> bool:
        """Whether it has at most so many steps, and bytes of outputs."""
        return len(self._outcomes) <= steps and self._size <= size

    @property
    def steps(self) -> list[StoredStep]:
        """All outcomes, in their order."""
        return sorted(self._outcomes.values(), key=lambda step: step.seq or 0)

    @property
    def next_seq(self) -> int:
        """The number that comes next."""
        return self._next_seq

    def delivered(self) -> None:
        """User code has got one of the outcomes that were there at the beginning."""
        self._undelivered -= 1

    def delivered_within(self, scopes: tuple[str, ...]) -> None:
        """User code will not ask for these any more: they were done in a race that is decided."""
        self._undelivered -= sum(key.startswith(scopes) for key in self._outcomes)

    def forget_within(self, scopes: tuple[str, ...]) -> None:
        """Forget what the branches of a decided race have begun and not ended."""
        for begun in (self.waits, self.attempts):
            for key in [key for key in begun if key.startswith(scopes)]:
                del begun[key]

    def note_model_call(self, call: ModelCall) -> None:
        """A row of the ledger was written: the body that is called again has to know of one without an end."""
        if call.ended_at is None:
            self.open_calls[call.key] = call
        elif (known := self.open_calls.get(call.key)) is not None and known.attempt == call.attempt:
            del self.open_calls[call.key]

    @property
    def is_replaying(self) -> bool:
        return self._undelivered > 0

    def begin_step(self, key: str, *, is_new: bool = True) -> None:
        """A step that has no outcome starts: from here on the run does something new, unless that is left to the steps
        in it. Raises `LimitExceeded`."""
        if is_new:
            self._undelivered = 0
        if key in self._begun:
            return
        if len(self._begun) >= self._settings.max_steps:
            raise LimitExceeded(
                f"step {key!r} would be the run's {self._settings.max_steps + 1}th: the limit is "
                f"{self._settings.max_steps} steps a run (Settings.max_steps)"
            )
        self._begun.add(key)

    def check_size(self, key: str | None, output: Json, *, limit: int | None = None) -> None:
        """Raise `LimitExceeded` if a step's output (no key: the function's), or with it the run, is too large."""
        most = limit or self._settings.max_step_bytes
        size = _size(output)
        whose = "the function" if key is None else f"step {key!r}"
        if size > most:
            raise LimitExceeded(
                f"the output of {whose} has {size} bytes, over the limit of {most} (Settings.max_step_bytes)"
            )
        if self._size + size > self._settings.max_run_bytes:
            raise LimitExceeded(
                f"with the output of {whose} the run has {self._size + size} bytes, over the limit of "
                f"{self._settings.max_run_bytes} (Settings.max_run_bytes)"
            )

    def take_seq(self, count: int = 1) -> int:
        """The next number; with `count` the first of so many that are taken."""
        first = self._next_seq
        self._next_seq += count
        return first

    def take_seqs_for_mail(self) -> tuple[int, int]:
        """The first of as many numbers as there may be deliveries, one for each step begun that has no outcome; and how
        many they are."""
        # Also for waits whose registration is on its way: it is written before what asks for the mail.
        room = len(self._begun) - len(self._outcomes) + 1
        return self.take_seq(room), room

    @property
    def code_key(self) -> str:
        """The key under which failures of the code since the last new step are counted."""
        return f"@{self._last_step_seq}"


def _size(output: Json | None) -> int:
    return 0 if output is None else size_of(output)
