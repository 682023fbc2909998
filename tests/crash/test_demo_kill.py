"""The demo is killed where it hurts most, and started again: `python -m bench.kill_demo` does it at random moments."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.kill_demo import Demo, check

PAUSE = 0.3

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A demo that nobody kills."""
    demo = Demo(tmp_path_factory.mktemp("reference"), PAUSE)
    demo.sit()
    return demo


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    return Demo(tmp_path, PAUSE)


def test_killed_in_a_call_after_an_answer_and_after_the_payment_it_ends_the_same(
    demo: Demo, reference: Demo
) -> None:
    moments = [
        lambda demo: demo.generations == 1,  # the first answer exists, and its step may not know it
        lambda demo: demo.generations == 3 + demo.kills_in_flight,  # the sub-agent's
        lambda demo: len(demo.refunds) == 1,  # paid, and the step does not know it
    ]
    for moment in moments:
        assert demo.sit(kill_when=moment).was_killed, "\n".join(demo.sittings[-1].lines)
    demo.sit()
    assert demo.kills == len(moments)
    check(demo, reference)
    assert "done before, not run again" in demo.sittings[-1].lines[0]


def test_killed_while_it_starts_it_starts_again(demo: Demo, reference: Demo) -> None:
    assert demo.sit(kill_when=lambda demo: (demo.folder / ".agentflow" / "demo.db").exists()).was_killed
    assert demo.sit(kill_when=lambda demo: (demo.folder / ".agentflow" / "demo.json").exists()).was_killed
    demo.sit()
    check(demo, reference)
    assert demo.generations == reference.generations


def test_no_answer_is_generated_twice_when_the_kill_comes_between_two_calls(
    demo: Demo, reference: Demo
) -> None:
    demo.sit(kill_when=lambda demo: len(demo.refunds) == 1)
    demo.sit()
    check(demo, reference)
    assert demo.kills_in_flight == 0
    assert demo.generations == reference.generations
