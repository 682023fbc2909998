"""What `killed_flow` has logged, read back and held against what is stored."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tests.crash.processes import lines
from tests.faults.killed_flow import complaints_of, facts_of


class Began(NamedTuple):
    """A body began."""

    at: int
    pid: int
    token: str


@dataclass
class Facts:
    """What bodies and runs said, by run and key."""

    began: dict[tuple[str, str], list[Began]] = field(default_factory=lambda: defaultdict(list))
    """By key and attempt."""
    saw: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    held: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    lost_leases: set[int] = field(default_factory=set)
    """Processes that found out by themselves that their lease was over."""

    @property
    def tokens(self) -> set[str]:
        return {one.token for began in self.began.values() for one in began}

    @property
    def repeated(self) -> int:
        """How many bodies began once more."""
        return sum(len(began) - 1 for began in self.began.values())

    def in_flight(self, killed: Collection[int], stored: Collection[str]) -> int:
        """How many bodies had begun in processes that were killed, and never came to a stored result or another
        attempt there."""
        last_attempts: dict[tuple[str, int], Began] = {}
        for (key, _), began in sorted(self.began.items()):
            last_attempts |= {(key, one.pid): one for one in began}
        return sum(one.pid in killed and one.token not in stored for one in last_attempts.values())


def read_facts(log: Path) -> Facts:
    facts = Facts()
    for line in lines(Path(facts_of(log))):
        kind, *words = line.split()
        *words, pid, at = words
        if kind == "began":
            key, attempt, token = words
            facts.began[key, attempt].append(Began(int(at), int(pid), token))
        elif kind == "saw":
            key, token = words
            facts.saw[key].add(token)
        elif kind == "held":
            key, began_at = words
            facts.held[key].append((int(began_at), int(at)))
    for line in lines(Path(complaints_of(log))):
        if "has lost its lease" in line:
            facts.lost_leases.add(int(line.split()[2]))
    return facts


def check_bodies(facts: Facts, killed: Mapping[int, int], stored: Collection[str]) -> None:
    """A body runs again only when the process that it ran in was killed before it had a result; `killed` says when."""
    for key, began in facts.began.items():
        for earlier, later in pairwise(sorted(began)):
            is_dead = killed.get(earlier.pid, later.at) < later.at
            assert is_dead or earlier.pid in facts.lost_leases, (
                f"body {key} began in {later} although it had begun in {earlier}, which lives"
            )
            assert earlier.token not in stored, (
                f"body {key} began in {later} although {earlier} is its result"
            )


def check_results(facts: Facts, stored: Mapping[str, Mapping[str, str | None]]) -> None:
    """What code saw of a step is one value, made by a body, and is what is stored. `stored` is by run and key."""
    tokens = facts.tokens
    for place, values in facts.saw.items():
        assert len(values) == 1, f"the result of {place} has changed: {values}"
        run_id, key = place.split(":", 1)
        output = stored.get(run_id, {}).get(key)
        if output is not None and isinstance(kept := json.loads(output), str):
            assert values == {kept}, f"{place}: the code saw {values}, stored is {output}"
            assert kept in tokens or kept.startswith("evt_"), f"{place}: {kept} was made by no body"


def check_held_apart(facts: Facts) -> None:
    """Nobody held a key of `concurrency` while somebody else did."""
    for key, spans in facts.held.items():
        for (_, ended), (began, _) in pairwise(sorted(spans)):
            assert ended <= began, f"two runs of key {key} were at work at once"
