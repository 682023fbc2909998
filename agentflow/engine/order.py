"""Strict replay: whether the code calls its steps in the order in which its history has them.

No step stores where it was called. What the `seq` of outcomes tells is enough where a task awaits its own steps itself:
it stood there until it had the outcome, so every step of that task with a lower `seq` was called before. A task that
awaits a step while its history has an earlier one that was not called is not the code that made the history. Nothing is
said of steps that are awaited elsewhere (`gather`, `create_task`): there the order of outcomes is not that of calls.

A step whose await was cancelled leaves a mark: the next time it may have an outcome, and the code go another way. From
there on nothing is compared.
"""

from __future__ import annotations

from collections.abc import Iterable

from agentflow.keys import CANCELLED, branch_of
from agentflow.store.stored_types import StoredAttempt, StoredStep


class CallOrder:
    """The steps of a run's history that its code has not called yet, branch by branch."""

    def __init__(self, steps: Iterable[StoredStep], attempts: Iterable[StoredAttempt]) -> None:
        self._uncalled: dict[str, dict[str, int]] = {}
        for step in steps:  # in the order of seq
            self._uncalled.setdefault(branch_of(step.key), {})[step.key] = step.seq or 0
        self._cancelled = {
            attempt.key.removeprefix(CANCELLED) for attempt in attempts if attempt.key.startswith(CANCELLED)
        }
        self._is_comparable = True

    def called(self, key: str, branch: str) -> None:
        """The code has taken this key."""
        if key in self._cancelled:
            self._is_comparable = False
        uncalled = self._uncalled.get(branch)
        if uncalled is not None:
            uncalled.pop(key, None)

    def missing_before(self, seq: int | None, branch: str) -> str | None:
        """The step that must have been called before the branch awaits an outcome with this seq, or a new one."""
        if not self._is_comparable:
            return None
        for key, earlier in self._uncalled.get(branch, {}).items():
            return key if seq is None or earlier < seq else None
        return None
