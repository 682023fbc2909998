#!/usr/bin/env python3
"""Run agentflow from this checkout: makes `.venv` beside this file when needed, installs into it, and goes.

    python3 dev.py demo [ARGS]     an agent that stops for a person; offline, no key
    python3 dev.py test [ARGS]     the tests; ARGS go to pytest
    python3 dev.py check           ruff, mypy and the layers contract
    python3 dev.py bench [ARGS]    what agentflow claims about speed, measured here
    python3 dev.py faults [N ...]  what agentflow claims to stand, in full, or some of it by number; hours

Standard library only, and it parses on Python 3.7: who starts it with an old Python is helped on.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Iterator

try:
    import fcntl
except ImportError:  # Windows: two installs at once are not kept apart there
    fcntl = None  # type: ignore[assignment]

OLDEST = (3, 11)
ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
PYTHON = (
    os.path.join(VENV, "Scripts", "python.exe") if os.name == "nt" else os.path.join(VENV, "bin", "python")
)
STAMP = os.path.join(VENV, "agentflow-installed.json")
UNFINISHED = os.path.join(VENV, "agentflow-install-unfinished")
LOG = os.path.join(VENV, "agentflow-install.log")
UV = shutil.which("uv")

SIGNS_OF_NO_NETWORK = (
    "NewConnectionError",
    "NameResolutionError",
    "name resolution",
    "ConnectTimeoutError",
    "ProxyError",
    "Network is unreachable",
    "Connection refused",
    "dns error",
)

SIDE_BY_SIDE = ["-n", "auto", "--maxprocesses=4"]
CHECKS = [
    ("ruff check", ["-m", "ruff", "check", "."]),
    ("ruff format", ["-m", "ruff", "format", "--check", "."]),
    ("mypy", ["-m", "mypy"]),
    ("import layers", ["-c", "from importlinter.cli import lint_imports_command as run; run(['--no-logo'])"]),
]


class Problem(Exception):
    """What went wrong, and what to do about it; shown as it is."""


def main(argv: list[str]) -> int:
    commands = {"demo": demo, "test": test, "check": check, "bench": bench, "faults": faults}
    if not argv or argv[0] not in commands:
        asked_for_help = bool(argv) and argv[0] in ("help", "-h", "--help")
        if argv and not asked_for_help:
            say(f"dev.py has no command '{argv[0]}'\n")
        print(__doc__.split("\n\n")[1].rstrip(), file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    try:
        return commands[argv[0]](argv[1:])
    except Problem as problem:
        say(f"dev.py: {problem}")
        return 1
    except KeyboardInterrupt:
        say("\ndev.py: interrupted; the next start repairs what is half done")
        return 130


# --- commands ---------------------------------------------------------------------------------------


def demo(args: list[str]) -> int:
    install("")
    # -P: the current folder is the user's, and a module of theirs must not shadow ours.
    return become([PYTHON, "-P", "-m", "agentflow", "demo"] + args)


def test(args: list[str]) -> int:
    install("dev")
    os.chdir(ROOT)
    # The tests start hundreds of processes, and each would compile all of agentflow for itself.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    names_tests = any(not arg.startswith("-") for arg in args)
    # Many tests wait for processes: side by side the whole suite takes half the time.
    return become([PYTHON, "-m", "pytest"] + ([] if names_tests else SIDE_BY_SIDE) + args)


def check(args: list[str]) -> int:
    if args:
        raise Problem("check takes no arguments")
    install("dev")
    failed = []
    for name, command in CHECKS:
        say(f"--- {name}")
        if subprocess.call([PYTHON] + command, cwd=ROOT) != 0:
            failed.append(name)
    say(f"--- failed: {', '.join(failed)}" if failed else "--- all checks passed")
    return 1 if failed else 0


def bench(args: list[str]) -> int:
    file = os.path.join("bench", "__main__.py")
    if not os.path.exists(os.path.join(ROOT, file)):
        raise Problem(f"this checkout has no {file}")
    install("dev")
    os.chdir(ROOT)
    return become([PYTHON, "-m", "bench"] + args)


def faults(args: list[str]) -> int:
    """The full form of the tests whose short one is part of an ordinary run; what is no number goes to pytest."""
    install("dev")
    os.chdir(ROOT)
    os.environ["AGENTFLOW_TEST_FULL"] = "1"
    chosen = [word for arg in args if arg.isdecimal() for word in ("--fault", arg)]
    others = [arg for arg in args if not arg.isdecimal()]
    # One after the other, as some measure time; -s, as they print their figures.
    return become([PYTHON, "-m", "pytest", "-s", "-m", "fault"] + chosen + others)


def become(command: list[str]) -> int:
    """Replace this process, so that the terminal, the signals and the exit code are the command's own."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":
        return subprocess.call(command)
    return os.execv(command[0], command)


# --- installing -------------------------------------------------------------------------------------


def install(extra: str) -> None:
    """Bring `.venv` up to date with pyproject.toml and constraints.txt; at once when it is."""
    if is_installed(extra):
        return
    with only_one_at_a_time() as lock:
        if is_installed(extra):
            return
        extra = extra or last_extra()
        what = "agentflow's core" if not extra else f"agentflow with the extra [{extra}]"
        say(f"installing {what} into .venv, about a minute ...")
        started = time.time()
        try:
            install_into_venv(extra, lock)
        except PermissionError as error:
            raise Problem(
                f"{VENV} may not be written ({error}). If another user made it, remove it as that "
                "user, then run this again."
            ) from None
        say(f"installed in {time.time() - started:.0f} seconds")


def install_into_venv(extra: str, lock: int | None) -> None:
    if os.path.exists(UNFINISHED) or (os.path.isdir(VENV) and not venv_is_usable()):
        # An install was killed half-way: which of its files are whole nobody can say.
        shutil.rmtree(VENV)
    remove(STAMP)
    is_new = not os.path.isdir(VENV)
    os.makedirs(VENV, exist_ok=True)
    open(UNFINISHED, "w").close()
    open(LOG, "w").close()
    target = f".[{extra}]" if extra else "."
    arguments = ["-c", "constraints.txt", "-e", target]
    installers = new_installers() if is_new else installers_for_present_venv()
    for make, command in installers:
        if (not make or run(make, lock)) and run(command + arguments, lock):
            remember(extra)
            remove(UNFINISHED)
            return
        if command[0] != UV and is_offline(read_log()):
            break  # the next way would wait in vain for the same network
        if is_new:
            remove(os.path.join(VENV, "pyvenv.cfg"))
    if not is_new:
        remove(UNFINISHED)  # pip gave up in good order: what was there before still works
    raise Problem(explain_failure(bool(installers)))


def new_installers() -> list[tuple[list[str], list[str]]]:
    """Every way this machine has to make a `.venv` and to install into it, the best first."""
    python = find_python()
    ways: list[tuple[list[str], list[str]]] = []
    if UV:
        make = [UV, "venv", "--quiet", "--allow-existing", "--python", python, VENV]
        ways.append((make, [UV, "pip", "install", "--python", PYTHON]))
    if can_import(python, "venv, ensurepip"):
        ways.append(([python, "-m", "venv", VENV], [PYTHON, "-m", "pip", "install"]))
    for pip in pips_that_install_elsewhere(python):
        # Debian without python3-venv: there is no ensurepip, but a pip outside can install into a bare venv.
        if can_import(python, "venv"):
            ways.append(
                ([python, "-m", "venv", "--without-pip", VENV], pip + ["--python", PYTHON, "install"])
            )
    if can_import(python, "virtualenv"):
        ways.append(([python, "-m", "virtualenv", VENV], [PYTHON, "-m", "pip", "install"]))
    return ways


def installers_for_present_venv() -> list[tuple[list[str], list[str]]]:
    ways: list[tuple[list[str], list[str]]] = []
    if can_import(PYTHON, "pip"):
        ways.append(([], [PYTHON, "-m", "pip", "install"]))
    if UV:
        ways.append(([], [UV, "pip", "install", "--python", PYTHON]))
    for pip in pips_that_install_elsewhere(os.path.realpath(PYTHON)) + pips_that_install_elsewhere(
        sys.executable
    ):
        ways.append(([], pip + ["--python", PYTHON, "install"]))
    return ways


def pips_that_install_elsewhere(python: str) -> list[list[str]]:
    """The pips of this machine that know `--python` (22.3 and later)."""
    commands = [[python, "-m", "pip"]]
    commands += [
        [python, os.path.join(wheel, "pip")] for wheel in glob.glob("/usr/share/python-wheels/pip-*.whl")
    ]
    return [command for command in commands if output_of(command + ["--python", python, "--version"])]


def explain_failure(had_a_way: bool) -> str:
    if not had_a_way:
        fix = "install Python's venv and pip"
        if os.path.exists("/etc/debian_version"):
            fix = "apt-get install python3-venv"
        return f"this Python can neither make a virtual environment nor install packages. The fix: {fix}"
    text = read_log()
    tail = "\n".join("    " + line for line in text.rstrip().splitlines()[-25:])
    if is_offline(text):
        return (
            "the packages could not be fetched: no package index can be reached from here.\n"
            f"(What was tried is in {LOG}.)\n"
            "Connect this machine, or let pip find the packages in a folder (PIP_NO_INDEX=1 "
            "PIP_FIND_LINKS=/that/folder), then run this again."
        )
    return f"installing failed; the end of the log:\n{tail}\nThe next start tries again."


def read_log() -> str:
    with open(LOG, errors="replace") as log:
        return log.read()


def is_offline(log: str) -> bool:
    return any(words in log for words in SIGNS_OF_NO_NETWORK)


# --- Python and the virtual environment -------------------------------------------------------------


def find_python() -> str:
    """This Python, or the newest one on the machine that agentflow runs on."""
    if sys.version_info >= OLDEST:
        return sys.executable
    for minor in (13, 12, 11, 14):  # the tested ones first
        for folder in places_of_pythons():
            candidate = os.path.join(folder, f"python3.{minor}")
            # Asked, not believed: a pyenv shim exists for every version and fails for most.
            if os.access(candidate, os.X_OK) and output_of([candidate, "-c", "print('yes')"]) == "yes":
                say(f"this is Python {sys.version.split()[0]}; going on with {candidate}")
                return candidate
    raise Problem(no_python_message())


def places_of_pythons() -> list[str]:
    folders = os.environ.get("PATH", "").split(os.pathsep) + ["/usr/local/bin", "/opt/homebrew/bin"]
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    folders += glob.glob(os.path.join(pyenv, "versions", "*", "bin"))
    folders += glob.glob(os.path.expanduser("~/.local/share/uv/python/*/bin"))
    return folders


def no_python_message() -> str:
    return (
        f"agentflow needs Python 3.11 or newer. This is Python {sys.version.split()[0]} ({sys.executable}), "
        "and there is no newer one on the PATH or under pyenv.\nInstall one, for example\n"
        "    Debian 12, Ubuntu 24.04 or newer:  apt-get install python3 python3-venv\n"
        "    Ubuntu 22.04:                      apt-get install python3.11 python3.11-venv\n"
        "    Fedora:                            dnf install python3.12\n"
        "    macOS:                             brew install python@3.12\n"
        "    with pyenv:                        pyenv install 3.12\n"
        "then run the same command again."
    )


def venv_is_usable() -> bool:
    """Whether `.venv` is a virtual environment, in its own place, whose Python starts."""
    if not os.path.exists(os.path.join(VENV, "pyvenv.cfg")):
        if os.listdir(VENV):
            raise Problem(
                f"{VENV} is there and is no virtual environment. Move it away, then run this again."
            )
        return False
    version = output_of([PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
    if version and tuple(map(int, version.split("."))) < OLDEST:
        raise Problem(f".venv has Python {version}; 3.11 is the oldest. Remove .venv, then run this again.")
    stamp = read_stamp()
    moved = stamp is not None and stamp.get("root") != ROOT  # its scripts name the old place
    return bool(version) and not moved


# --- what is remembered between two starts ----------------------------------------------------------


def is_installed(extra: str) -> bool:
    stamp = read_stamp()
    return (
        stamp is not None
        and stamp.get("digest") == digest()
        and stamp.get("root") == ROOT
        and (not extra or stamp.get("extra") == extra)
        and not os.path.exists(UNFINISHED)
        and os.path.exists(PYTHON)
    )


def digest() -> str:
    """What an install depends on, as one string: the two files and the Python of `.venv`."""
    content = hashlib.sha256()
    for name in (os.path.join(ROOT, "pyproject.toml"), os.path.join(ROOT, "constraints.txt"), venv_config()):
        with contextlib.suppress(OSError), open(name, "rb") as file:
            content.update(file.read())
        content.update(b"\0")
    return content.hexdigest()


def venv_config() -> str:
    return os.path.join(VENV, "pyvenv.cfg")


def read_stamp() -> dict[str, str] | None:
    try:
        with open(STAMP) as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) else None


def last_extra() -> str:
    """What was installed last: with [dev] once, the demo after a change must not take it away from the tests."""
    stamp = read_stamp()
    return str(stamp.get("extra") or "") if stamp is not None else ""


def remember(extra: str) -> None:
    with open(STAMP + ".new", "w") as file:
        json.dump({"digest": digest(), "extra": extra, "root": ROOT}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(STAMP + ".new", STAMP)


@contextlib.contextmanager
def only_one_at_a_time() -> Iterator[int | None]:
    """Holds a lock on this very file, which outlasts every `.venv`. The installing child holds it too: where
    this process is killed and the child is not, the next start waits for it."""
    if fcntl is None:
        yield None
        return
    with open(os.path.abspath(__file__)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another dev.py is installing here; waiting for it ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


# --- small things -----------------------------------------------------------------------------------


def run(command: list[str], lock: int | None) -> bool:
    """Run a step of the install, its words going to the log."""
    environment = dict(os.environ, PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    environment.pop("PYTHONHOME", None)
    environment.pop("PYTHONPATH", None)
    with open(LOG, "ab") as log:
        log.write(f"$ {' '.join(command)}\n".encode())
        log.flush()
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock] if lock is not None else [],
        )
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            return child.wait() == 0
        finally:
            signal.signal(signal.SIGTERM, before)
            if child.poll() is None:
                child.terminate()
                child.wait()


def can_import(python: str, modules: str) -> bool:
    return output_of([python, "-c", f"import {modules}; print('yes')"]) == "yes"


def output_of(command: list[str]) -> str | None:
    """What a command prints, or None when it fails or is not there."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
        )
    except OSError:
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
