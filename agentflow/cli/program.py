"""What a person types to call this command line, from where they are."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def program() -> str:
    """`agentflow` where the shell finds it; else the script beside this Python, which a checkout's `.venv` has."""
    script = Path(sys.executable).with_name("agentflow")
    found = shutil.which("agentflow")
    if found is not None and Path(found).resolve() == script.resolve():
        return "agentflow"
    if script.is_file():
        return shown_path(script)
    return f"{shown_path(Path(sys.executable))} -m agentflow"


def shown_path(path: Path) -> str:
    """The path as seen from here, where it lies below; else the whole."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
