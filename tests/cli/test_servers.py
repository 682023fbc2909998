"""`agentflow worker` and `agentflow dev`: real processes that drain when they are told to stop."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Project

SECONDS = 40.0
SLOW = """
import asyncio
from pathlib import Path

from agentflow import App, Context, Step

app = App("slow", database_url="sqlite:///slow.db")


async def body():
    Path("began").touch()
    await asyncio.sleep(0.5)
    return "done"


@app.function
async def slow(ctx: Context[dict], step: Step) -> str:
    return await step.run("body", body)
"""

TALKATIVE = """
import logging

from agentflow import App, Context, Step

app = App("talkative", database_url="sqlite:///talkative.db")


@app.function
async def talk(ctx: Context[dict], step: Step) -> None:
    ctx.logger.info("a word from the run")
    logging.getLogger(__name__).warning("a word from its module")
"""

Launch = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def launch(empty_folder: Path) -> Iterator[Launch]:
    """Start the command line in the background; what is left at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "agentflow", *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def read_until(process: subprocess.Popen[bytes], words: str) -> str:
    """What the process says up to and with these words."""
    assert process.stdout is not None
    told, deadline = b"", time.monotonic() + SECONDS
    while words.encode() not in told:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        block = os.read(process.stdout.fileno(), 65536) if ready else b""
        assert block, f"{words!r} does not come; it said:\n{told.decode()}"
        told += block
    return told.decode()


def end(process: subprocess.Popen[bytes], number: int) -> tuple[int, str]:
    process.send_signal(number)
    rest, _ = process.communicate(timeout=SECONDS)
    return process.returncode, rest.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_stop_lets_the_body_end(
    empty_folder: Path, launch: Launch, number: signal.Signals
) -> None:
    (empty_folder / "app.py").write_text(SLOW)
    project = Project(empty_folder, "app:app")
    run_id = project.run("start", "slow", "--data", "{}").stdout.strip()
    worker = launch("worker")
    read_until(worker, "works on slow")
    deadline = time.monotonic() + SECONDS
    while not Path("began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    code, told = end(worker, number)
    assert (code, "draining" in told) == (0, True), told
    assert "Traceback" not in told
    shown = project.run("runs", "show", run_id).stdout
    assert "body\trun\tcompleted" in shown


def test_ctrl_c_while_following_a_run_says_which_run_goes_on(empty_folder: Path, launch: Launch) -> None:
    (empty_folder / "app.py").write_text(SLOW)
    follower = launch("start", "slow", "--data", "{}", "--stream", "--wait", "60s")
    run_id = read_until(follower, "queued").split()[0]
    code, told = end(follower, signal.SIGINT)
    assert (code, f"run {run_id} goes on; agentflow runs watch {run_id}" in told) == (130, True), told
    assert "Traceback" not in told


def test_a_worker_logs_readable_lines_and_nothing_of_how_the_tables_are_made(
    empty_folder: Path, launch: Launch
) -> None:
    (empty_folder / "app.py").write_text(TALKATIVE)
    worker = launch("worker")
    told = read_until(worker, "works on talk")
    Project(empty_folder, "app:app").run("start", "talk", "--data", "{}")
    told += read_until(worker, "from its module")
    code, rest = end(worker, signal.SIGTERM)
    lines = (told + rest).splitlines()
    assert code == 0
    assert [line for line in lines if "alembic" in line or "upgrade" in line] == []
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert [line for line in lines if re.fullmatch(rf"{moment} INFO     a word from the run", line)] != []
    assert [line for line in lines if re.fullmatch(rf"{moment} WARNING  app: a word from its module", line)]


def test_a_worker_without_functions_says_so(empty_folder: Path) -> None:
    (empty_folder / "app.py").write_text("from agentflow import App\napp = App('empty')\n")
    refused = Project(empty_folder, "app:app").run("worker")
    assert (refused.exit_code, "app 'empty' has no functions" in refused.stderr) == (1, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.test"])
def test_dev_refuses_an_address_that_others_can_reach(project: Project, host: str) -> None:
    refused = project.run("dev", "--host", host)
    assert (refused.exit_code, "asks for no key" in refused.stderr) == (2, True)


def test_dev_says_which_port_is_taken_and_how_to_take_another(project: Project) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        refused = project.run("dev", "--port", str(port))
    assert refused.exit_code == 1
    [line] = refused.stderr.splitlines()
    assert f"port {port} on 127.0.0.1" in line
    assert "--port" in line


def test_dev_serves_the_api_and_starts_again_when_a_file_changes(empty_folder: Path, launch: Launch) -> None:
    (empty_folder / "app.py").write_text(SLOW)
    server = launch("dev", "--port", "0")
    told = read_until(server, "Application startup complete")
    urls = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", told)
    port = int(urls[0][0])
    assert [path for _, path in urls] == ["/docs", "/functions"]
    assert b"swagger" in _read(port, "/docs").lower()
    assert _get(port, "/functions")["data"][0]["id"] == "slow"
    (empty_folder / "app.py").write_text(SLOW.replace("async def slow", "async def fresh"))
    read_until(server, "Reloading")
    read_until(server, "Application startup complete")
    assert _get(port, "/functions")["data"][0]["id"] == "fresh"
    code, told = end(server, signal.SIGTERM)
    assert (code, "Traceback" in told) == (0, False), told


def _get(port: int, path: str) -> Any:
    return json.loads(_read(port, path))


def _read(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=SECONDS) as answer:
        found: bytes = answer.read()
    return found
