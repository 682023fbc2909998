"""Seeded worlds of crashes, and engines with one protection less that they must see through.

A failure names its seed; played again it is the same history, commit by commit. `AGENTFLOW_SIMULATION_SEEDS` sets how
many are played (in CI the full form, 500, which takes less than a minute), `AGENTFLOW_SIMULATION_FIRST` where they
begin.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.oracle import Violation
from tests.simulation.world import Simulation

SEEDS = int(os.environ.get("AGENTFLOW_SIMULATION_SEEDS") or ("500" if os.environ.get("CI") else "120"))
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
def test_whatever_crashes_every_run_ends_as_if_nothing_had(simulation: Simulation) -> None:
    stories = [simulation.play(seed) for seed in range(FIRST, FIRST + SEEDS)]
    if SEEDS >= 20:
        assert sum(story.kills for story in stories) > SEEDS // 4, "the seeds kill nobody"
        assert sum(story.stops for story in stories) > SEEDS // 4, "the seeds stop nobody"
        assert sum(story.bodies for story in stories) > SEEDS * 3, "the seeds do no work"


def test_without_faults_every_run_ends_as_its_plan_says(simulation: Simulation) -> None:
    for seed in range(FIRST, FIRST + 15):
        story = simulation.play(seed, is_calm=True)
        assert (story.kills, story.stops) == (0, 0)


def test_the_same_seed_gives_the_same_history(simulation: Simulation) -> None:
    for seed in range(FIRST, FIRST + 10):
        assert simulation.play(seed) == simulation.play(seed)
    assert simulation.play(FIRST).digest != simulation.play(FIRST + 1).digest


def test_the_same_seed_gives_the_same_history_in_another_process(simulation: Simulation) -> None:
    here = simulation.play(FIRST)
    code = (
        "import logging, pathlib, sys, tempfile\n"
        "from tests.simulation.world import Simulation\n"
        "logging.disable(logging.CRITICAL)\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    print(Simulation(pathlib.Path(folder)).play(int(sys.argv[1])).digest)\n"
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


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", MUTANTS)
def test_an_engine_without_this_protection_is_caught(simulation: Simulation, name: str) -> None:
    for seed in range(FIRST, FIRST + SEEDS_FOR_A_MUTANT):
        try:
            simulation.play(seed, mutant=MUTANTS[name])
        except Violation:
            simulation.play(seed)  # what is seen there is the mutant
            return
    pytest.fail(f"{SEEDS_FOR_A_MUTANT} seeds do not see that the engine has: {name}")
