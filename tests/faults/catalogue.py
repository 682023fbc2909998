"""The faults that agentflow claims to stand, by number, and the page that says what was seen when they were tried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

FAULTS = {
    1: "Workers killed again and again",
    2: "Killed at every point of the engine",
    3: "A stopped worker that wakes up after its lease",
    4: "Takeover, and SIGTERM",
    5: "PostgreSQL restarted, its connections cut",
    6: "A network that delays, swallows and resets in the middle of a commit",
    7: "Every notification lost",
    8: "Signals against waits",
    9: "Cancel against finish, retry and resume; parallel branches with crashes",
    10: "Many processes that claim the same runs",
    11: "Workers whose clocks are wrong",
    12: "A great many sleepers, and what others leave undone",
    13: "A very long run",
    14: "A very wide run",
    15: "A pool of two connections",
    16: "Many processes on one SQLite file, a slow reader, copies and power loss",
    17: "A full disk, a file that cannot be written",
    18: "An event loop that hangs",
    19: "Old and new code together",
    20: "Retention while everything else goes on",
    21: "Any value as input and output",
    22: "Schedules in every time zone",
    23: "Deterministic simulation, with mutants",
    24: "A crash at every point of a model call",
}
"""What each is called. A test belongs to one by its marker: `@pytest.mark.fault(5)`."""

FIGURES = Path(__file__).with_name("figures.json")
PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "reliability.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


class Seen(TypedDict):
    """What one test said of its full form."""

    date: str
    database: str
    said: str


def read_figures() -> dict[str, dict[str, Seen]]:
    """By fault, then by test."""
    figures: dict[str, dict[str, Seen]] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    return figures


def keep(fault: int, test: str, seen: Seen) -> None:
    """Put this in the place of what the test said before, and write the page again."""
    figures = read_figures()
    figures.setdefault(str(fault), {})[test] = seen
    ordered = {str(n): dict(sorted(figures[str(n)].items())) for n in FAULTS if str(n) in figures}
    FIGURES.write_text(json.dumps(ordered, indent=2, ensure_ascii=False) + "\n")
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{render()}{END}{after}")


def render() -> str:
    """The part of the page that is made of figures."""
    figures = read_figures()
    parts = []
    for number, name in FAULTS.items():
        lines = [
            f"- {seen['database'] + ', ' if seen['database'] else ''}{seen['date']}: {seen['said']}\n"
            for seen in figures.get(str(number), {}).values()
        ]
        parts.append(f"\n### {number}. {name}\n\n" + "".join(lines or ["Not tried in full yet.\n"]))
    return "".join(parts) + "\n"
