"""An agent's process is killed at every point around its calls: nothing paid for is lost from the ledger."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Where the process dies, and how many answers the model may then have generated: two are needed.
POINTS = [
    ("before_request:1", 2),
    ("after_request:1", 3),
    ("before_request:2", 2),
    ("after_request:2", 3),
    ("after_commit:1", 2),
    ("after_commit:3", 3),
    ("before_commit:4", 3),
    ("after_commit:5", 3),
    ("before_finish:1", 2),
]


@pytest.mark.crash
@pytest.mark.parametrize(("point", "most_generations"), POINTS)
def test_after_a_kill_no_answer_that_was_stored_is_asked_for_again(
    sqlite_url: str, tmp_path: Path, point: str, most_generations: int
) -> None:
    log, generations = tmp_path / "paid", tmp_path / "generations"
    environment = os.environ | {"AGENTFLOW_SCRIPTED_GENERATIONS": str(generations)}
    command = [sys.executable, "-m", "tests.agents.killed_flow", sqlite_url, str(log)]

    killed = subprocess.run(
        command, cwd=ROOT, env=environment | {"AGENTFLOW_CRASH_AT": point}, capture_output=True, timeout=50
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=50)
    assert finished.stdout.decode() == "done\n", finished.stderr.decode()

    generated = len(generations.read_text().splitlines())
    assert 2 <= generated <= most_generations
    database = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))
    rows = database.execute(
        "SELECT state, billed FROM agentflow_model_call ORDER BY started_at, attempt"
    ).fetchall()
    database.close()
    assert len(rows) >= generated
    assert sum(state == "done" for state, _ in rows) == 2
    assert all((state, billed) in (("done", "yes"), ("in_doubt", "possible")) for state, billed in rows)
    # A tool may run twice when its process dies inside it; it can be told by its key.
    paid = {line.split()[0]: line.split()[1] for line in log.read_text().splitlines()}
    assert {key.rpartition(":cashier")[2]: order for key, order in paid.items()} == {
        "#0/turn0/0:pay": "1",
        "#0/turn0/1:pay": "2",
    }
