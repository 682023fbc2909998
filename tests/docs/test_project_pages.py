"""Pages that show the files of a project: the files are written, and the commands run, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentflow.testing import fake_provider
from tests.docs.pages import ROOT, blocks_of

_FILE = re.compile(r"# (?P<name>[\w.]+)\n")


def write_files(page: str, folder: Path) -> list[str]:
    """Write every block that begins with a file's name into it; give the names."""
    names = []
    for block in blocks_of(ROOT / "docs" / page):
        if found := _FILE.match(block.text):
            (folder / found["name"]).write_text(block.text, encoding="utf-8")
            names.append(found["name"])
    return names


def pytest_in(folder: Path, *arguments: str, **environment: str) -> str:
    """Run the tests there; give what was said. Fails when they do."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("ANTHROPIC_", "OPENAI_"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_the_project_of_test_your_agents_passes_records_and_plays(tmp_path: Path) -> None:
    names = write_files("how-to/test-your-agents.md", tmp_path)
    assert {"main.py", "pyproject.toml", "conftest.py", "test_refund.py", "test_recorded.py"} <= set(names)

    # What is played is played beside the other tests, which speak to this machine alone.
    async with fake_provider(["Hello."]) as provider:
        said = pytest_in(tmp_path, "--record-mode=rewrite", "test_recorded.py", **provider.environment())
    assert "1 passed" in said
    assert "api.anthropic.com" in next((tmp_path / "cassettes").rglob("*.yaml")).read_text()
    here = "--allowed-hosts=127.0.0.1"
    assert "7 passed" in pytest_in(tmp_path, "--block-network", here)
