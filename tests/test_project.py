"""The repository as a whole: what it pins, what it imports, what must not be written in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tokenize
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()
TRACKED = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    if name and (ROOT / name).is_file()
]
PYTHON_FILES = [path for path in TRACKED if path.suffix == ".py"]


def texts() -> list[tuple[str, str]]:
    """Every text of the repository but the recorded traffic, which holds what a provider wrote."""
    found = []
    for path in TRACKED:
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("tests/cassettes/"):
            try:
                found.append((name, path.read_text(encoding="utf-8")))
            except UnicodeDecodeError:
                continue
    return found


def needed_packages(python_version: str) -> set[str]:
    """Everything that [dev] brings on that Python, by the metadata of what is installed."""
    seen: set[tuple[str, str]] = set()
    todo = [Requirement(line) for line in PROJECT["dependencies"]]
    todo += [Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines]
    while todo:
        requirement = todo.pop()
        for extra in ["", *requirement.extras]:
            name = canonicalize_name(requirement.name)
            environment = {
                "extra": extra,
                "python_version": python_version,
                "python_full_version": f"{python_version}.0",
            }
            if (name, extra) in seen or name == PROJECT["name"]:
                continue
            seen.add((name, extra))
            try:
                lines = requires(name) or []
            except PackageNotFoundError:  # needed on another Python only
                continue
            todo += [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate(environment)]
    return {name for name, _ in seen}


def test_constraints_are_names_and_versions_in_order() -> None:
    assert [line for line in CONSTRAINTS if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", line)] == []
    assert sorted(CONSTRAINTS, key=str.lower) == CONSTRAINTS


@pytest.mark.parametrize("python_version", ["3.11", "3.12", "3.13"])
def test_every_package_that_is_installed_is_pinned(python_version: str) -> None:
    pinned = {canonicalize_name(line.split("==")[0]) for line in CONSTRAINTS}
    assert needed_packages(python_version) - pinned == set()


def test_every_pin_fits_what_the_project_asks_for() -> None:
    pinned = dict(line.split("==") for line in CONSTRAINTS)
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        requirement = Requirement(line)
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), line


@pytest.mark.parametrize("module", ["agentflow", "agentflow.app", "agentflow.cli", "agentflow.mcp"])
def test_an_import_loads_no_sdk_no_database_library_and_no_web_framework(module: str) -> None:
    databases = ["sqlalchemy", "sqlmodel", "asyncpg", "aiosqlite", "alembic"]
    heavy = [
        "openai",
        "anthropic",
        "mcp",
        "jsonschema",
        "httpx2",
        *databases,
        "fastapi",
        "starlette",
        "uvicorn",
        "pytest",
        "vcr",
    ]
    program = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd=os.sep)
    assert (done.stdout.split(), done.stderr) == ([], "")


# Put together here, so that this file itself stays clean.
FORBIDDEN = {
    "a package registry's host": re.compile(
        "|".join([r"\bpypi\." + "org", "python" + "hosted", r"npmjs\." + "(org|com)"])
    ),
    "a path of one machine": re.compile(r"(?<![\w.~-])/(?:root|Users|work|home)/\w"),
    "something left open": re.compile(r"\b(?:TO" + "DO|FIX" + r"ME|XX" + r"X)\b"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_repository_does_not_hold(what: str) -> None:
    found = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if FORBIDDEN[what].search(line)
    ]
    assert found == []


def test_every_source_file_says_what_it_is() -> None:
    silent = []
    for path in PYTHON_FILES:
        with path.open("rb") as file:
            first = next(
                token
                for token in tokenize.tokenize(file.readline)
                if token.type not in (tokenize.ENCODING, tokenize.COMMENT, tokenize.NL)
            )
        if first.type != tokenize.ENDMARKER and not first.string.startswith(('"""', 'r"""')):
            silent.append(path.relative_to(ROOT).as_posix())
    assert silent == []


def test_ci_runs_every_test_and_every_check() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    assert "set -euo pipefail" in script.read_text()
