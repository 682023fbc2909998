"""The command line starts fast, and says what it can do."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

import pytest

HEAVY = (
    "sqlalchemy",
    "sqlmodel",
    "pydantic",
    "openai",
    "anthropic",
    "fastapi",
    "uvicorn",
    "rich",
    "asyncio",
    "alembic",
)
COMMANDS = ("demo", "dev", "worker", "send", "start", "signal", "runs", "approvals", "usage", "db")

Shell = Callable[..., subprocess.CompletedProcess[str]]


def test_help_imports_neither_the_store_nor_an_sdk() -> None:
    program = (
        "import sys; sys.argv = ['agentflow', '--help']\n"
        "from agentflow.cli import main\n"
        "try: main()\n"
        f"except SystemExit: print('heavy:', *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "heavy:\n" in done.stdout, done.stdout


def test_help_takes_less_than_300_ms(real_shell: Shell) -> None:
    # The processor's time: what other processes take from a busy machine does not count. The best of a few tries.
    assert any(_processor_seconds(real_shell) < 0.3 for _ in range(5))


def _processor_seconds(real_shell: Shell) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert real_shell("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_help_names_every_command(real_shell: Shell) -> None:
    told = real_shell("--help").stdout
    assert [name for name in COMMANDS if f"  {name} " not in told] == []


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("runs", "nonsense"), ("runs", "list", "--nonsense"), ("start",), ()]
)
def test_a_wrong_call_exits_2(real_shell: Shell, arguments: tuple[str, ...]) -> None:
    done = real_shell(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_script_is_the_module(real_shell: Shell) -> None:
    from pathlib import Path

    script = Path(sys.executable).with_name("agentflow")
    told = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert told == real_shell("--version").stdout != ""
