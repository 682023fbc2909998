"""Seeded worlds of crashes, and engines with one protection less that they must see through.

A failure names its seed; played again it is the same history, commit by commit. `AGENTFLOW_SIMULATION_SEEDS` sets how
many are played, `AGENTFLOW_SIMULATION_FIRST` where they begin. An ordinary run plays enough to see through each of the
engines below.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.reporting import Report
from tests.faults.support import IS_FULL
from tests.simulation.flow_mutants import FLOW_MUTANTS
from tests.simulation.mutants import MUTANTS
from tests.simulation.oracle import Violation
from tests.simulation.world import Simulation

SEEDS = int(os.environ.get("AGENTFLOW_SIMULATION_SEEDS") or (3000 if IS_FULL else 60))
FIRST = int(os.environ.get("AGENTFLOW_SIMULATION_FIRST", "1"))
SEEDS_FOR_A_MUTANT = 500
_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def simulation() -> Iterator[Simulation]:
    # In memory where there is such a place: nothing here cuts the power.
    with tempfile.TemporaryDirectory(
        prefix="agentflow-simulation-", dir=_MEMORY if _MEMORY.is_dir() else None
    ) as folder:
        yield Simulation(Path(folder))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Failing steps and lost leases are the subject here, and their log is long."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(60 + SEEDS)
@pytest.mark.fault(23)
def test_whatever_crashes_every_run_ends_as_if_nothing_had(simulation: Simulation, report: Report) -> None:
    began = time.perf_counter()
    stories = [simulation.play(seed) for seed in range(FIRST, FIRST + SEEDS)]
    report(
        f"{SEEDS:,} seeds in {time.perf_counter() - began:.0f} s: {sum(story.commits for story in stories):,} commits, "
        f"{sum(story.kills for story in stories):,} kills, {sum(story.stops for story in stories):,} stops; 0 bad"
    )
    if SEEDS >= 20:
        assert sum(story.kills for story in stories) > SEEDS // 4, "the seeds kill nobody"
        assert sum(story.stops for story in stories) > SEEDS // 4, "the seeds stop nobody"
        assert sum(story.bodies for story in stories) > SEEDS * 3, "the seeds do no work"


def test_without_faults_every_run_ends_as_its_plan_says(simulation: Simulation) -> None:
    for seed in range(FIRST, FIRST + 15):
        story = simulation.play(seed, is_calm=True)
        assert (story.kills, story.stops) == (0, 0)


def test_the_same_seed_gives_the_same_history(simulation: Simulation) -> None:
    for seed in range(FIRST, FIRST + (30 if IS_FULL else 3)):
        assert simulation.play(seed, is_told=True) == simulation.play(seed, is_told=True)
    assert simulation.play(FIRST, is_told=True).digest != simulation.play(FIRST + 1, is_told=True).digest


def test_the_same_seed_gives_the_same_history_in_another_process(simulation: Simulation) -> None:
    here = simulation.play(FIRST, is_told=True)
    code = (
        "import logging, pathlib, sys, tempfile\n"
        "from tests.simulation.world import Simulation\n"
        "logging.disable(logging.CRITICAL)\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    print(Simulation(pathlib.Path(folder)).play(int(sys.argv[1]), is_told=True).digest)\n"
    )
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "providers"), os.environ.get("PYTHONPATH", "")])
    there = subprocess.run(
        [sys.executable, "-c", code, str(FIRST)],
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": path},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert there.stdout.strip() == here.digest


SEEN_SOON = {
    "no mailbox check": 9,
    "a full batch goes on collecting": 14,
    "an adoption is forgotten": 15,
    "a registration is forgotten": 19,
    "a paused function is claimed": 20,
    "signals are not known again": 29,
    "taken up whoever had it": 40,
    "a tick is not known again": 46,
}
"""Seeds that are tried first: of what is rarely seen, the first that saw it. In full every world has to be tried."""
ALL_MUTANTS = {name: (mutant, tuple[str, ...]()) for name, mutant in MUTANTS.items()} | FLOW_MUTANTS


@pytest.mark.timeout(180)
@pytest.mark.fault(23)
@pytest.mark.parametrize("name", ALL_MUTANTS)
def test_an_engine_without_this_protection_is_caught(
    simulation: Simulation, name: str, report: Report
) -> None:
    mutant, kinds = ALL_MUTANTS[name]
    # In full any world has to do, as it comes; else those that have what this one is about.
    about = None if IS_FULL else kinds
    first = [SEEN_SOON[name]] if name in SEEN_SOON and not IS_FULL else []
    for seed in [*first, *range(FIRST, FIRST + SEEDS_FOR_A_MUTANT)]:
        try:
            simulation.play(seed, mutant=mutant, about=about)
        except Violation:
            simulation.play(seed, about=about)  # what is seen there is the mutant
            report(f"an engine where {name!r}: caught by seed {seed} of {SEEDS_FOR_A_MUTANT}")
            return
    pytest.fail(f"{SEEDS_FOR_A_MUTANT} seeds do not see that the engine has: {name}")
