"""What a docstring tells of a function and its parameters, in Google's, numpy's or Sphinx's way of writing."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_PARAMETERS = ("args:", "arguments:", "params:", "parameters:")
_OTHER_SECTIONS = ("returns:", "yields:", "raises:", "example:", "examples:", "note:", "notes:", "see also:")
_SPHINX = re.compile(r":(?:param|parameter|arg|argument)\s+(?:[^:]*\s)?\*{0,2}(\w+)\s*:\s*(.*)")
_SPHINX_FIELD = re.compile(r":[a-z]+(?:\s+[^:]*)?:")
_GOOGLE = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_NUMPY = re.compile(r"\*{0,2}(\w+(?:\s*,\s*\*{0,2}\w+)*)\s*(?::.*)?$")


@dataclass(frozen=True)
class Told:
    """The description, without what is said about parameters, results and errors."""

    description: str = ""
    parameters: dict[str, str] = field(default_factory=dict)


def read_docstring(text: str | None) -> Told:
    """The parts of a docstring that a model is told."""
    lines = inspect.cleandoc(text or "").splitlines()
    description: list[str] = []
    parameters: dict[str, str] = {}
    position = 0
    while position < len(lines):
        line = lines[position]
        word = line.strip().lower()
        end = _end_of_section(lines, position + 1)
        if _is_underlined(lines, position):
            if f"{word}:" in _PARAMETERS:
                parameters |= _numpy_parameters(lines[position + 2 : end])
            position = end
        elif word in _PARAMETERS:
            parameters |= _google_parameters(lines[position + 1 : end])
            position = end
        elif word in _OTHER_SECTIONS:
            position = end
        elif _SPHINX_FIELD.match(line):
            end = _end_of_item(lines, position)
            if found := _SPHINX.match(line):
                parameters[found[1]] = _joined([found[2], *lines[position + 1 : end]])
            position = end
        else:
            description.append(line)
            position += 1
    return Told("\n".join(description).strip(), parameters)


def _is_underlined(lines: Sequence[str], position: int) -> bool:
    """A heading of numpy's, over a line of dashes."""
    follows = lines[position + 1].strip() if position + 1 < len(lines) else ""
    return len(follows) >= 3 and set(follows) == {"-"} and bool(lines[position].strip())


def _end_of_section(lines: Sequence[str], position: int) -> int:
    """Where the next heading stands."""
    while position < len(lines):
        word = lines[position].strip().lower()
        is_heading = word in _PARAMETERS or word in _OTHER_SECTIONS
        if lines[position][:1].strip() and (is_heading or _is_underlined(lines, position)):
            break
        # Google's sections end where the text is flush left again; numpy's entries are flush left themselves.
        if lines[position][:1].strip() and not _in_numpy(lines, position):
            break
        position += 1
    return position


def _in_numpy(lines: Sequence[str], position: int) -> bool:
    for start in range(position, -1, -1):
        if _is_underlined(lines, start):
            return True
        if lines[start].strip().lower() in (*_PARAMETERS, *_OTHER_SECTIONS):
            return False
    return False


def _end_of_item(lines: Sequence[str], position: int) -> int:
    position += 1
    while position < len(lines) and lines[position].strip() and lines[position][:1].isspace():
        position += 1
    return position


def _google_parameters(lines: Sequence[str]) -> dict[str, str]:
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    parameters: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in lines:
        found = _GOOGLE.fullmatch(line.strip()) if len(line) - len(line.lstrip()) == indent else None
        if found:
            current = parameters.setdefault(found[1], [found[2]])
        elif current is not None:
            current.append(line)
    return {name: _joined(texts) for name, texts in parameters.items()}


def _numpy_parameters(lines: Sequence[str]) -> dict[str, str]:
    parameters: dict[str, list[str]] = {}
    names: list[str] = []
    for line in lines:
        if line[:1].strip() and (found := _NUMPY.match(line)):
            names = [name.strip(" *") for name in found[1].split(",")]
            parameters |= {name: [] for name in names}
        else:
            for name in names:
                parameters[name].append(line)
    return {name: _joined(texts) for name, texts in parameters.items()}


def _joined(lines: Sequence[str]) -> str:
    return " ".join(line.strip() for line in lines if line.strip())
