"""The tutorial as a reader plays it: its files, its commands, and a worker that is killed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import forked
from tests.docs.pages import ROOT, blocks_of
from tests.docs.test_project_pages import pytest_in, write_files

PAGE = ROOT / "docs" / "tutorial" / "first-agent.md"


class Reader:
    """Types the page's commands in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        text = "\n".join(block.text for block in blocks_of(PAGE, "sh"))
        self._commands = [shlex.split(line) for line in text.splitlines() if line.startswith("agentflow ")]

    def types(self, *words: str, id: str = "") -> str:
        """The page's command that begins with these words; `id` stands where the page says ID or RUN."""
        [command] = {tuple(line) for line in self._commands if line[1 : 1 + len(words)] == list(words)}
        arguments = [id if word in ("ID", "RUN") else word for word in command[1:]]
        done = forked.run(["-m", "agentflow", *arguments], cwd=self._folder)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def starts_the_worker(self) -> subprocess.Popen[str]:
        """In another terminal; returns when the worker says that it works."""
        assert ["agentflow", "worker"] in self._commands
        worker = subprocess.Popen(
            [sys.executable, "-m", "agentflow", "worker"],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert worker.stderr is not None
        assert any("works on agents/mailer" in line for line in worker.stderr)
        return worker


@pytest.mark.crash
@pytest.mark.timeout(180)
def test_the_first_agent_is_killed_and_goes_on(tmp_path: Path) -> None:
    assert {"main.py", "test_mailer.py", "pyproject.toml"} <= set(
        write_files("tutorial/first-agent.md", tmp_path)
    )
    reader, sent = Reader(tmp_path), tmp_path / "sent.txt"

    worker = reader.starts_the_worker()
    try:
        run = reader.types("start").strip()
        assert run.startswith("run_")
        waiting = _until(lambda: reader.types("approvals", "list"), "send_mail")
        assert "waiting" in reader.types("runs", "list")
    finally:
        worker.kill()
        worker.communicate()
    assert not sent.exists()
    approval = waiting.splitlines()[1].split("\t")[0]
    reader.types("approvals", "approve", id=approval[:8])

    worker = reader.starts_the_worker()
    try:
        shown = _until(lambda: reader.types("runs", "show", id=run), "Done: sent to ana@example.com.")
    finally:
        worker.kill()
        worker.communicate()
    assert sent.read_text() == "ana@example.com: Your parcel is late. We are sorry.\n"
    steps = [line.split("\t") for line in shown.split("\n\n")[1].splitlines()[1:]]
    assert [(step[0], step[2], step[3]) for step in steps] == _steps_of_the_page()


def _steps_of_the_page() -> list[tuple[str, str, str]]:
    """Key, status and attempts of each line of the table that the page shows."""
    text = PAGE.read_text(encoding="utf-8")
    rows = [re.split(r" {2,}", line.strip()) for line in text.splitlines() if line.startswith(" mailer#0")]
    return [(row[0], row[2], row[3]) for row in rows]


def _until(look: Callable[[], str], words: str) -> str:
    """What it says once these words are in it; each look takes as long as a command does."""
    for _ in range(40):
        said = look()
        if words in said:
            return said
    raise AssertionError(f"{words!r} was never said, at last: {said}")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_test_that_the_tutorial_shows_passes(tmp_path: Path) -> None:
    write_files("tutorial/first-agent.md", tmp_path)
    assert "1 passed" in pytest_in(tmp_path)
