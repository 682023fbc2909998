"""The documentation as a program: the Python blocks of a page, in their order, are one module."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(r"^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block; `line` is that of its first line of text."""

    language: str
    text: str
    line: int


def blocks_of(page: Path, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(match["language"], match["text"], text.count("\n", 0, match.start("text")) + 1)
        for match in _BLOCK.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def load(name: str) -> ModuleType:
    """Run the Python blocks of `docs/<name>`; a traceback names the page and its line."""
    page = ROOT / "docs" / name
    module = ModuleType(f"docs_{re.sub(r'[^a-z]', '_', name.removesuffix('.md'))}")
    sys.modules[module.__name__] = module  # pydantic looks there for what an annotation means
    for block in blocks_of(page, "python"):
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), vars(module))
    return module


def table_rows(page: Path) -> list[list[str]]:
    """The cells of every row of the page's tables, without the headings."""
    rows: list[list[str]] = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if set("".join(cells)) <= set("-:"):
            rows.pop()  # the line before it was the heading
        else:
            rows.append(cells)
    return rows
