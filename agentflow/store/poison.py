"""Poison: who is to blame when a worker dies.

`crash_count` counts the crashes of a process while the run's code was executing in it; every new committed step resets
it. The first two raise all that were there. A run that has two is a suspect, and a worker executes one suspect at a
time: the next crashes are that one's, its neighbours are not raised. The last one is counted only for a run that was
alone in its process, so no run ever fails for what its neighbour does.
"""

from __future__ import annotations

from collections.abc import Mapping

SUSPECT = 2
"""From so many crashes on a worker executes no other suspect beside the run."""
ALONE = 4
"""From so many on it executes nothing else at all."""
POISONED = 5
"""With so many the run fails."""


def is_suspect(crash_count: int) -> bool:
    """Whether a worker must not execute this run beside another one of its kind."""
    return SUSPECT <= crash_count < POISONED


def must_be_alone(crash_count: int) -> bool:
    """Whether a worker must not execute anything beside this run."""
    return ALONE <= crash_count < POISONED


def to_be_raised(crash_counts: Mapping[str, int]) -> set[str]:
    """Which of the runs that a dead worker owned have crashed once more, given what they had."""
    if len(crash_counts) == 1:
        return {run_id for run_id, count in crash_counts.items() if count < POISONED}
    # Beside others it was not begun yet: it waits until it is alone.
    executing = {run_id: count for run_id, count in crash_counts.items() if count < ALONE}
    suspects = {run_id for run_id, count in executing.items() if is_suspect(count)}
    if not suspects:
        return set(executing)
    return suspects if len(suspects) == 1 else set()
