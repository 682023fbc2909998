"""A forked process is one of its own: only what it imports is there before it begins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import pytest

from agentflow.store.opening import open_store
from tests import forked_streams
from tests.crash.zone_ticking import make_app
from tests.forked import KILLED, ROOT, Forked, Starter, run, the_starter
from tests.forking import READ_AT_THE_START

Script = Callable[[str], Path]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    def write(code: str) -> Path:
        file = tmp_path / "script.py"
        file.write_text(code)
        return file

    return write


def is_there(pid: int) -> bool:
    """Whether it still does something: where nobody looks after orphans, a dead one keeps its number."""
    told = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout.strip()
    return bool(told) and not told.startswith("Z")


@pytest.mark.parametrize(
    ("code", "ends_with"),
    [
        ("", 0),
        ("raise SystemExit(7)", 7),
        ("raise ValueError('it broke')", 1),
        ("import os; os._exit(3)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", KILLED),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
    ],
)
def test_its_return_code_is_that_of_a_process(script: Script, code: str, ends_with: int) -> None:
    done = run([script(code)])
    real = subprocess.run([sys.executable, script(code)], stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == ends_with == real.returncode
    assert ("ValueError: it broke" in done.stderr) == ("it broke" in code)


LOOK = """
import asyncio, json, os, random, sys, threading
from agentflow.ids import new_id
try:
    asyncio.get_running_loop()
    loops = 1
except RuntimeError:
    loops = 0
print(json.dumps({
    "pid": os.getpid(), "session": os.getsid(0), "group": os.getpgid(0), "threads": len(os.listdir("/proc/self/task")),
    "loops": loops, "files": sorted(map(int, os.listdir("/proc/self/fd"))), "random": random.random(),
    "id": new_id("run", 1), "argv": sys.argv, "cwd": os.getcwd(), "name": __name__, "first": sys.path[0],
    "given": sys.stdin.read(), "variable": os.environ.get("AGENTFLOW_SAID"), "path": "PATH" in os.environ,
}))
"""


def look(script: Script, *words: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run([script(LOOK), *words], check=True, **options).stdout)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_it_has_nothing_of_its_starter_but_the_imports(script: Script, tmp_path: Path) -> None:
    environment = {name: os.environ[name] for name in READ_AT_THE_START if name in os.environ}
    environment["AGENTFLOW_SAID"] = "yes"
    one = look(script, "a", "b", input="hello", cwd=tmp_path, env=environment)
    other = look(script)
    assert one["pid"] == one["session"] == one["group"] not in (os.getpid(), other["pid"])
    assert (one["threads"], one["loops"]) == (1, 0)
    # The three, and the one with which it lists them.
    assert one["files"] == other["files"] == [0, 1, 2, 3]
    assert one["random"] != other["random"]
    assert one["id"] != other["id"]
    assert one["argv"] == [str(tmp_path / "script.py"), "a", "b"]
    assert (one["cwd"], one["first"], one["name"]) == (str(tmp_path), str(tmp_path), "__main__")
    assert (one["given"], one["variable"], one["path"]) == ("hello", "yes", False)
    assert (other["cwd"], other["given"], other["variable"]) == (str(ROOT), "", None)


def test_a_module_is_run_as_by_python(tmp_path: Path) -> None:
    (tmp_path / "said.py").write_text("import sys; print(__name__, sys.argv, sys.path[0], end='')")
    told = run(["-m", "said", "x"], cwd=tmp_path).stdout
    real = subprocess.run([sys.executable, "-m", "said", "x"], cwd=tmp_path, capture_output=True, text=True)
    assert told == real.stdout != ""
    safe = run(["-P", "-m", "said"], cwd=tmp_path)
    assert (safe.returncode, "No module named said" in safe.stderr) == (1, True)


def test_it_dies_at_the_crash_point_that_its_environment_names(script: Script) -> None:
    code = "from agentflow.crashpoints import point\nfor n in range(3): print(n, flush=True); point('after_claim')"
    done = run([script(code)], env={**os.environ, "AGENTFLOW_CRASH_AT": "after_claim:2"})
    assert (done.returncode, done.stdout) == (KILLED, "0\n1\n")
    assert run([script(code)]).returncode == 0


def test_a_stopped_one_stands_until_it_goes_on(script: Script, tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    code = f"import time\nwhile True:\n  open({str(beats)!r}, 'a').write('.'); time.sleep(0.001)"
    with Forked([script(code)]) as process:
        while not beats.exists():
            time.sleep(0.001)
        process.stop()
        before = beats.stat().st_size
        time.sleep(0.1)
        assert beats.stat().st_size == before
        process.go_on()
        while beats.stat().st_size == before:
            time.sleep(0.001)
        process.stop()
        assert process.poll() is None
        process.kill()
        assert process.wait(10) == KILLED


def test_what_it_says_comes_by_its_pipe_and_one_that_goes_on_is_waited_for_in_vain(script: Script) -> None:
    code = "import sys, time; print('out', flush=True); print('err', file=sys.stderr); time.sleep(60)"
    with Forked([script(code)], stdout=PIPE, stderr=STDOUT) as process:
        assert process.stdout is not None
        told = b""
        while told != b"out\nerr\n":
            told += os.read(process.stdout.fileno(), 100)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
        process.terminate()
        assert process.communicate(10) == (b"", None)
        assert process.returncode == -signal.SIGTERM


async def test_in_a_loop_its_pipes_are_streams(script: Script) -> None:
    code = (
        "import sys\n"
        "for line in sys.stdin: print(line.strip().upper(), flush=True)\n"
        "print('bye', file=sys.stderr)\n"
        "raise SystemExit(3)"
    )
    process = await forked_streams.start(sys.executable, script(code), stdin=PIPE, stderr=PIPE)
    assert process.stdin
    assert process.stdout
    assert process.stderr
    for word in (b"one", b"two"):
        process.stdin.write(word + b"\n")
        assert await process.stdout.readline() == word.upper() + b"\n"
    assert process.returncode is None
    process.stdin.close()
    assert await process.wait() == process.returncode == 3
    assert (await process.stdout.read(), await process.stderr.read()) == (b"", b"bye\n")


def test_what_only_an_interpreters_start_can_give_is_refused(script: Script) -> None:
    with Starter("tests.engine.ticking") as starter:  # the common one stays
        process = Forked(["x"], starter=starter, env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert process.wait(10) == 1
        process.close()


async def test_a_starter_of_a_module_runs_its_main_warmed_up_or_not(sqlite_url: str) -> None:
    app = make_app("UTC", ["0 * * * *"], change=0)
    await open_store(sqlite_url, settings=app.settings).migrate()
    words = ("UTC", "0 * * * *", "0", "0", "7200")
    with Starter("tests.crash.zone_ticking") as starter:
        assert await starter.run(sqlite_url, *words, "") == 0
        await starter.warm_up(sqlite_url, *words, "")
        assert await starter.run(sqlite_url, *words, "before_commit:1") == KILLED
        assert await starter.run("sqlite:////no/such/folder/x.db", *words, "") == 1


def test_when_its_test_is_killed_it_dies_too(tmp_path: Path) -> None:
    """The test's process, the common starter, and one of a module of its own."""
    code = (
        "import sys, time\n"
        "from tests.forked import Forked, Starter, the_starter\n"
        "sleep = [sys.argv[1]]\n"
        "own = Starter('tests.crash.zone_ticking')\n"
        "print(the_starter().process.pid, own.process.pid, Forked(sleep).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    sleep = tmp_path / "sleep.py"
    sleep.write_text("import time; time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code, sleep], cwd=ROOT, stdout=PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert len(pids) == 3
        assert all(map(is_there, pids))
        owner.kill()
    deadline = time.monotonic() + 20
    while left := [pid for pid in pids if is_there(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def test_the_starter_outlives_its_children() -> None:
    before = the_starter().process.pid
    assert run(["-m", "no.such.module"]).returncode == 1
    assert the_starter().process.pid == before
    assert is_there(before)
