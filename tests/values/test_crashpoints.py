"""Crash points do nothing until they are armed, and then act at one pass."""

import os
import signal
import subprocess
import sys
import timeit
from collections.abc import Iterator

import pytest

from agentflow import crashpoints
from agentflow.crashpoints import CRASH_POINTS, arm, arm_from, disarm, point
from agentflow.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    disarm()
    yield
    disarm()


def test_an_armed_point_acts_at_its_nth_pass_and_only_once() -> None:
    passes: list[int] = []
    arm("after_commit", 3, lambda: passes.append(1))
    for expected in (0, 0, 1, 1, 1):
        point("after_commit")
        point("before_commit")
        assert len(passes) == expected


def test_a_disarmed_point_does_nothing() -> None:
    arm("after_commit", 1, lambda: pytest.fail("it acted"))
    disarm()
    point("after_commit")


def test_arming_again_replaces_the_point() -> None:
    seen: list[str] = []
    arm("after_commit", 1, lambda: seen.append("after_commit"))
    arm("after_claim", 1, lambda: seen.append("after_claim"))
    point("after_commit")
    point("after_claim")
    assert seen == ["after_claim"]


def test_an_unknown_point_is_a_configuration_error_that_lists_them() -> None:
    with pytest.raises(ConfigurationError) as refused:
        arm("after_lunch", 1, lambda: None)
    assert all(name in str(refused.value) for name in ("after_lunch", *CRASH_POINTS))


@pytest.mark.parametrize(
    "setting", ["after_lunch:1", "after_commit:0", "after_commit:x", "after_commit:-1", ":1"]
)
def test_a_wrong_variable_is_a_configuration_error(setting: str) -> None:
    with pytest.raises(ConfigurationError):
        arm_from(setting)
    assert crashpoints._armed is None


def test_the_names_are_distinct() -> None:
    assert len(set(CRASH_POINTS)) == len(CRASH_POINTS)


def test_a_point_that_is_not_armed_costs_next_to_nothing() -> None:
    def passing() -> float:
        return min(timeit.repeat(lambda: point("after_commit"), number=20_000, repeat=10))

    def doing_nothing() -> float:
        return min(timeit.repeat(lambda: bool("after_commit"), number=20_000, repeat=10))

    assert (passing() - doing_nothing()) / 20_000 < 500e-9


@pytest.mark.crash
@pytest.mark.parametrize(("setting", "printed"), [("after_commit:2", "1\n"), ("after_commit", "")])
def test_the_variable_kills_the_process_at_that_pass(setting: str, printed: str) -> None:
    code = (
        "from agentflow.crashpoints import point\n"
        "for n in (1, 2, 3):\n"
        "    point('before_commit')\n"
        "    point('after_commit')\n"
        "    print(n, flush=True)\n"
    )
    died = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"AGENTFLOW_CRASH_AT": setting},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL
    assert died.stdout == printed
    assert died.stderr == ""


@pytest.mark.crash
def test_a_process_with_a_wrong_variable_does_not_start() -> None:
    died = subprocess.run(
        [sys.executable, "-c", "import agentflow.crashpoints"],
        env=os.environ | {"AGENTFLOW_CRASH_AT": "after_lunch:1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert died.returncode == 1
    assert "there is no crash point 'after_lunch'; there are before_claim" in died.stderr
