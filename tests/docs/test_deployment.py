"""The commands of the deployment page, in its order, against a real PostgreSQL."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked
from tests.docs.pages import ROOT, blocks_of

PAGE = ROOT / "docs" / "how-to" / "deploy-with-postgresql.md"


@pytest.mark.crash
@pytest.mark.timeout(180)
def test_a_database_is_made_a_worker_works_and_drains(postgres_url: str, tmp_path: Path) -> None:
    commands = [line.split("#")[0].split()[1:] for line in _commands() if line.startswith("agentflow ")]
    assert [command[0] for command in commands] == ["db", "db", "worker"]
    upgrade, current, work = commands
    code = "\n".join(block.text for block in blocks_of(PAGE, "python"))
    (tmp_path / "main.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "AGENTFLOW_DATABASE_URL": postgres_url}

    def agentflow(*arguments: str) -> subprocess.CompletedProcess[str]:
        return forked.run(["-m", "agentflow", *arguments], cwd=tmp_path, env=environment)

    refused = agentflow(*current)
    assert (refused.returncode, "agentflow db upgrade" in refused.stderr) == (1, True), refused.stderr
    assert agentflow(*upgrade).returncode == 0
    assert agentflow(*current).returncode == 0

    worker = subprocess.Popen(
        [sys.executable, "-m", "agentflow", *work],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert worker.stderr is not None
        assert any("works on confirm" in line for line in worker.stderr)
        data = ["--data", '{"order_id": "a-1"}']
        started = agentflow("start", "confirm", "-a", "main:app", *data, "--wait", "20s")
        assert (started.returncode, started.stdout) == (0, "A-1\n"), started.stderr
        worker.send_signal(signal.SIGTERM)
        said = worker.communicate(timeout=20)[1]
        assert (worker.returncode, "draining" in said) == (0, True), said
    finally:
        worker.kill()
        worker.communicate()


def _commands() -> list[str]:
    return [line for block in blocks_of(PAGE, "sh") for line in re.split(r"\n", block.text) if line]
