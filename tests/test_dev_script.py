"""dev.py: what it tells an old Python, what it remembers, and how it mends what was left half done."""

from __future__ import annotations

import ast
import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
MAKE_VENV = (
    "import os; os.makedirs('.venv/bin'); open('.venv/bin/python', 'w'); open('.venv/pyvenv.cfg', 'w')"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder, with a space in its name, that holds what dev.py looks at."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("dev.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def dev(checkout: Path) -> ModuleType:
    """dev.py of that folder, as a module."""
    spec = importlib.util.spec_from_file_location("dev_of_a_test", checkout / "dev.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installs_by(dev: ModuleType, monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    """Make `.venv` and install by these programs, each a way of its own, instead of by pip."""
    ways = [([], [sys.executable, "-c", program]) for program in programs]
    monkeypatch.setattr(dev, "new_installers", lambda: ways)


def test_parses_on_python_3_7() -> None:
    ast.parse((ROOT / "dev.py").read_text(), feature_version=(3, 7))


def test_imports_nothing_but_the_standard_library() -> None:
    for node in ast.walk(ast.parse((ROOT / "dev.py").read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            )
            assert {(name or "").split(".")[0] for name in names} <= sys.stdlib_module_names


def test_says_what_to_install_where_no_python_is_new_enough(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dev, "OLDEST", (99, 0))
    monkeypatch.setattr(dev, "places_of_pythons", lambda: [str(tmp_path)])
    with pytest.raises(
        dev.Problem, match=r"Python 3\.11 or newer.*\n(.*\n)*.*apt-get install python3 python3-venv"
    ):
        dev.find_python()


def test_takes_a_newer_python_that_works_and_passes_over_one_that_does_not(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in (("python3.13", "#!/bin/sh\nexit 127\n"), ("python3.12", "#!/bin/sh\necho yes\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(dev, "OLDEST", (99, 0))
    monkeypatch.setattr(dev, "places_of_pythons", lambda: [str(tmp_path)])
    assert dev.find_python() == str(tmp_path / "python3.12")


def test_a_second_start_installs_nothing(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    installs_by(dev, monkeypatch, MAKE_VENV)
    dev.install("dev")
    installs_by(dev, monkeypatch)
    dev.install("dev")
    dev.install("")  # the core is part of [dev]


def test_the_core_alone_does_not_count_as_dev(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    installs_by(dev, monkeypatch, MAKE_VENV)
    dev.install("")
    assert dev.is_installed("")
    assert not dev.is_installed("dev")


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", ".venv/pyvenv.cfg"])
def test_a_change_of_what_is_needed_installs_again(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, checkout: Path, name: str
) -> None:
    installs_by(dev, monkeypatch, MAKE_VENV)
    dev.install("dev")
    with (checkout / name).open("a") as file:
        file.write("# changed\n")
    assert not dev.is_installed("dev")


def test_the_demo_after_a_change_leaves_the_tests_what_they_need(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, checkout: Path
) -> None:
    installs_by(dev, monkeypatch, MAKE_VENV)
    dev.install("dev")
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    monkeypatch.setattr(dev, "venv_is_usable", lambda: True)
    monkeypatch.setattr(dev, "installers_for_present_venv", lambda: [([], [sys.executable, "-c", ""])])
    dev.install("")
    assert dev.is_installed("dev")
    assert ".[dev]" in Path(dev.LOG).read_text()


def test_an_install_killed_half_way_begins_anew(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, checkout: Path
) -> None:
    half_done = checkout / ".venv" / "lib" / "half-a-package"
    half_done.parent.mkdir(parents=True)
    half_done.touch()
    Path(dev.UNFINISHED).touch()
    installs_by(dev, monkeypatch, MAKE_VENV)
    dev.install("dev")
    assert not half_done.exists()
    assert dev.is_installed("dev")


def test_a_checkout_that_was_moved_installs_again(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, checkout: Path
) -> None:
    installs_by(dev, monkeypatch, MAKE_VENV)
    dev.install("dev")
    monkeypatch.setattr(dev, "ROOT", str(checkout) + " of old")
    assert not dev.is_installed("dev")


def test_what_fails_one_way_is_tried_the_next(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    installs_by(dev, monkeypatch, "raise SystemExit('no')", MAKE_VENV)
    dev.install("dev")
    assert dev.is_installed("dev")


def test_a_failed_install_shows_the_end_of_the_log_and_is_not_remembered(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    installs_by(dev, monkeypatch, "raise SystemExit('the wheel is square')")
    with pytest.raises(dev.Problem, match="the wheel is square"):
        dev.install("dev")
    assert not dev.is_installed("dev")


def test_without_a_network_it_says_so(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    installs_by(
        dev, monkeypatch, "raise SystemExit('NewConnectionError: Temporary failure in name resolution')"
    )
    with pytest.raises(dev.Problem, match="no package index can be reached"):
        dev.install("dev")


def test_a_folder_of_that_name_that_is_no_environment_is_left_alone(dev: ModuleType, checkout: Path) -> None:
    theirs = checkout / ".venv" / "notes.txt"
    theirs.parent.mkdir()
    theirs.touch()
    with pytest.raises(dev.Problem, match="no virtual environment"):
        dev.install("dev")
    assert theirs.exists()


def test_the_second_of_two_waits_for_the_first(checkout: Path) -> None:
    program = "import dev\nwith dev.only_one_at_a_time(): print('my turn')"
    with (checkout / "dev.py").open() as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=checkout,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as second:
            assert second.stderr is not None
            assert second.stdout is not None
            assert "waiting" in second.stderr.readline()
            fcntl.flock(first, fcntl.LOCK_UN)
            assert second.stdout.readline() == "my turn\n"


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["dance"], 2), (["--help"], 0)])
def test_shows_its_commands(checkout: Path, arguments: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, checkout / "dev.py", *arguments], capture_output=True, text=True)
    assert done.returncode == code
    shown = done.stdout + done.stderr
    assert re.findall(r"dev\.py (\w+)", shown.partition("python3")[2]) == [
        "demo",
        "test",
        "check",
        "bench",
        "faults",
    ]


def test_says_when_the_benchmarks_are_not_there(checkout: Path) -> None:
    done = subprocess.run([sys.executable, checkout / "dev.py", "bench"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        f"dev.py: this checkout has no {os.path.join('bench', '__main__.py')}\n",
    )
