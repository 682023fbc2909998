"""What a seed breaks: commits, answers, notices, heartbeats, and processes."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.simulation.loop import SimulatedLoop
from tests.simulation.process import Process

CALM_AFTER = 14.0
"""From then on nothing is broken any more: what has not ended has to."""


@dataclass
class Faults:
    """What the seed breaks."""

    rng: random.Random
    loop: SimulatedLoop
    is_calm: bool = False
    refused: float = 0.0
    lost_answers: float = 0.0
    lost_beats: float = 0.0
    lost_notices: float = 0.0
    slowness: float = 0.0
    kills_left: int = 0
    stops_left: int = 0
    kills: int = 0
    stops: int = 0
    kill_at_commit: float = 0.0

    @classmethod
    def drawn(cls, rng: random.Random, loop: SimulatedLoop) -> Faults:
        return cls(
            rng,
            loop,
            refused=rng.choice([0, 0, 0.02, 0.1]),
            lost_answers=rng.choice([0, 0.03, 0.15]),
            lost_beats=rng.choice([0, 0, 0.2, 0.7]),
            lost_notices=rng.choice([0, 0.3, 1]),
            slowness=rng.choice([0, 0.05, 0.3]),
            # Five crashes with nothing between them are poison.
            kills_left=rng.choice([0, 1, 2]),
            stops_left=rng.choice([0, 1, 2]),
            kill_at_commit=rng.choice([0, 0.02, 0.08]),
        )

    @property
    def _are_over(self) -> bool:
        return self.is_calm or self.loop.time() > CALM_AFTER

    def of_commit(self, process: Process) -> str | None:
        if self._are_over:
            return None
        drawn = self.rng.random()
        if drawn < self.refused:
            return "refused"
        if drawn > 1 - self.lost_answers:
            return "answer lost"
        if process.worker is not None and self.kills_left and self.rng.random() < self.kill_at_commit:
            self.note_kill()
            return self.rng.choice(["killed before", "killed after"])
        return None

    def note_kill(self) -> None:
        self.kills_left -= 1
        self.kills += 1

    def pause(self) -> float:
        """Of a commit, an answer, a thread."""
        if self.slowness and not self._are_over and self.rng.random() < self.slowness:
            return self.rng.choice([0.05, 0.4, 2.0])
        return self.rng.choice([0.0, 0.0, 0.0005, 0.003])

    def outage(self) -> float:
        return self.rng.choice([0.001, 0.02, 0.5, 3.0])

    def is_beat_lost(self) -> bool:
        return not self._are_over and self.rng.random() < self.lost_beats

    def notice(self) -> float | None:
        """When another process sees a write, if it does."""
        if not self._are_over and self.rng.random() < self.lost_notices:
            return None
        return self.rng.choice([0.001, 0.05, 0.2])
