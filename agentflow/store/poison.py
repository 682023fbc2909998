"""Poison: who is to blame when a worker dies.

`crash_count` counts the crashes of a process while the run's code was executing in it; every new step of the run resets
it. The first two raise all that were there. A run that has two is a suspect, and a worker executes one suspect at a
time: the next crashes are that one's, its neighbours are not raised. The last one is counted only for a run that was
alone in its process, so no run ever fails for what its neighbour does.

To be owned is not to be executed: between a claim and the first line of a run's code a process may die too. So before
a run that has crashed is called again that is written down; a crash that finds nothing written was not the run's. Only
the first one is taken on trust, or every run would have to be written once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SUSPECT = 2
"""From so many crashes on a worker executes no other suspect beside the run."""
ALONE = 4
"""From so many on it executes nothing else at all."""
POISONED = 5
"""With so many the run fails."""


class Owned(NamedTuple):
    """A run that a dead worker owned."""

    crash_count: int
    has_begun: bool
    """Whether that worker wrote down that it was about to call the run's code."""

    @property
    def was_executed(self) -> bool:
        """Whether its code was called there, as far as can be known."""
        return self.crash_count < POISONED and (self.has_begun or self.crash_count == 0)


def is_suspect(crash_count: int) -> bool:
    """Whether a worker must not execute this run beside another one of its kind."""
    return SUSPECT <= crash_count < POISONED


def must_be_alone(crash_count: int) -> bool:
    """Whether a worker must not execute anything beside this run."""
    return ALONE <= crash_count < POISONED


def to_be_raised(owned: Mapping[str, Owned]) -> set[str]:
    """Which of the runs that a dead worker owned have crashed once more."""
    executed = {run_id: each.crash_count for run_id, each in owned.items() if each.was_executed}
    alone = {run_id for run_id, count in executed.items() if must_be_alone(count)}
    if alone:
        return alone  # begun after all others had gone: what was owned besides was on its way
    suspects = {run_id for run_id, count in executed.items() if is_suspect(count)}
    if not suspects:
        return set(executed)
    return suspects if len(suspects) == 1 else set()
