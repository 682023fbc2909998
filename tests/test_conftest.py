"""The promises of conftest.py, each broken by a test of its own in a pytest of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ALLOWED_SKIPS

ROOT = Path(__file__).parent.parent

BROKEN_PROMISES = f"""
import asyncio, threading, time, warnings, pytest

STOP = threading.Event()

async def test_keeps_its_promises():
    await asyncio.to_thread(time.sleep, 0)

async def test_leaves_a_task():
    asyncio.create_task(asyncio.sleep(60), name="forgotten")

def test_leaves_a_thread():
    threading.Thread(target=STOP.wait, name="forgotten").start()

@pytest.mark.timeout(1)
async def test_hangs():
    await asyncio.sleep(60)

def test_is_warned():
    warnings.warn("careful")

def test_is_skipped():
    pytest.skip("no time today")

@pytest.mark.skip(reason="marked")
def test_is_marked_as_skipped():
    pass

def test_is_skipped_for_an_allowed_reason():
    pytest.skip({ALLOWED_SKIPS[0]!r} + ": recordings/")

def test_comes_last():
    STOP.set()
"""

HANGS_AT_ITS_END = """
import asyncio, pytest

@pytest.fixture
async def never_ends():
    yield
    await asyncio.sleep(3600)

@pytest.mark.timeout(1)
async def test_hangs_at_its_end(never_ends):
    pass

def test_is_never_reached():
    pass
"""


def pytest_on(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a test file outside the checkout under the checkout's configuration and conftest."""
    file = folder / "test_sample.py"
    file.write_text(text)
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, file],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "400"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> str:
    done = pytest_on(tmp_path_factory.mktemp("sample"), BROKEN_PROMISES, "--no-skips", "-rA")
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("test", "ends"),
    [
        ("test_keeps_its_promises", "PASSED"),
        ("test_leaves_a_task", "ERROR AssertionError: this test left asyncio tasks running"),
        ("test_leaves_a_thread", "ERROR AssertionError: this test left threads running: forgotten"),
        ("test_hangs", "FAILED TimeoutError"),
        ("test_is_warned", "FAILED UserWarning: careful"),
        ("test_is_skipped", "FAILED skipped, and with --no-skips this reason is not allowed: no time today"),
        (
            "test_is_marked_as_skipped",
            "ERROR skipped, and with --no-skips this reason is not allowed: marked",
        ),
        ("test_comes_last", "PASSED"),
    ],
)
def test_a_broken_promise_fails_that_test_alone(outcome: str, test: str, ends: str) -> None:
    word, _, reason = ends.partition(" ")
    assert f"{word} test_sample.py::{test}{reason and ' - ' + reason}" in outcome


def test_an_allowed_reason_may_skip_in_ci(outcome: str) -> None:
    assert "1 skipped" in outcome.splitlines()[-1]


def test_a_run_that_cannot_be_ended_says_where_it_hangs(tmp_path: Path) -> None:
    done = pytest_on(tmp_path, HANGS_AT_ITS_END)
    assert done.returncode == 1
    assert "test_hangs_at_its_end hangs and cannot be ended" in done.stderr
    assert re.search(r"test_sample\.py:7 never_ends\n.*tasks\.py:\d+ sleep\n", done.stderr)
