"""Where the demo's agent is: `examples/agents/refund.py`, which the wheel carries beside this module."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from agentflow.cli.exits import Stop
from agentflow.cli.find_app import import_file

NAME = "refund"


def find_source() -> Path:
    """The example's file: beside this module where agentflow is installed, else of the checkout."""
    here = Path(__file__).resolve()
    for place in (here.with_name(f"{NAME}.py"), here.parents[3] / "examples" / "agents" / f"{NAME}.py"):
        if place.is_file():
            return place
    raise Stop(
        "the demo's agent examples/agents/refund.py is missing from this installation: install agentflow again"
    )


def load_agent() -> ModuleType:
    """Import it, under the name it would have in its own folder."""
    return import_file(find_source(), NAME)
