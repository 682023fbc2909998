"""The peers' own environment, outside of the project's: made when it is asked for, left out when it cannot be."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.contest import ROOT, Contestant

FOLDER = ROOT / ".venv-peers"


class Peer(NamedTuple):
    """A peer: its module here, the line with which its user begins, and what is installed for it."""

    module: str
    imports: str
    packages: list[str]
    workloads: frozenset[str] | None = None


PEERS = {
    "DBOS": Peer("bench.peers.dbos_work", "from dbos import DBOS", ["dbos", "psycopg[binary]"]),
    "LangGraph": Peer(
        "bench.peers.langgraph_work",
        "from langgraph.func import entrypoint, task",
        ["langgraph", "langgraph-checkpoint-sqlite", "langgraph-checkpoint-postgres", "psycopg[binary]"],
    ),
    "pydantic-ai": Peer(
        "bench.peers.pydantic_ai_work",
        "from pydantic_ai import Agent",
        ["pydantic-ai-slim"],
        frozenset({"agent", "load"}),
    ),
}


def peers(tell: Callable[[str], None]) -> list[Contestant]:
    """Those that are there or can be installed; why another is left out is told."""
    python = FOLDER / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        venv.create(FOLDER, with_pip=True)
    found = []
    for name, (module, imports, packages, workloads) in PEERS.items():
        problem = (_import(python, imports) and _install(python, packages)) or _import(python, imports)
        if problem:
            tell(f"{name} is left out, it cannot be installed: {problem}")
        else:
            found.append(Contestant(name, python, module, imports, is_peer=True, workloads=workloads))
    versions = _output([python, "-m", "pip", "freeze"])[1].splitlines()
    named = {package.partition("[")[0] for peer in PEERS.values() for package in peer.packages}
    tell("peers: " + ", ".join(line for line in versions if line.partition("==")[0] in named))
    return found


def _import(python: Path, line: str) -> str:
    code, said = _output([python, "-c", line])
    return said.strip()[-300:] if code else ""


def _install(python: Path, packages: list[str]) -> str:
    code, said = _output([python, "-m", "pip", "install", "--quiet", *packages])
    return said.strip()[-300:] if code else ""


def _output(command: list[str | Path]) -> tuple[int, str]:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    return done.returncode, done.stdout
