"""`--data`: JSON, `@file` or `-` for stdin; and the instants and durations of other options."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from agentflow.cli.exits import usage


def read_data(given: str | None, *, option: str = "--data") -> Any:
    """The JSON value that the option gives; None when it was not given."""
    if given is None:
        return None
    where, text = option, given
    try:
        if given == "-":
            where = f"{option} - (stdin)"
            text = sys.stdin.read()
        elif given.startswith("@"):
            where = f"{option} {given}"
            text = Path(given[1:]).read_text(encoding="utf-8")
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1] if text.strip() else ""
        shown = f": {line.strip()[:80]!r}" if line else ""
        usage(f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}{shown}")
    except (OSError, UnicodeDecodeError) as error:
        usage(f"{where} cannot be read: {error}")
    except (ValueError, RecursionError) as error:
        usage(f"{where} is not JSON: {error or 'nested too deep'}")


def read_seconds(given: str | None, *, option: str) -> float | None:
    """A duration as "60s" or a plain number of seconds."""
    if given is None:
        return None
    from agentflow.durations import parse_duration
    from agentflow.errors import InvalidInput

    try:
        return parse_duration(_number(given)).total_seconds()
    except InvalidInput as error:
        usage(f"{option}: {error}")


def read_since(given: str | None, *, option: str = "--since") -> datetime | None:
    """How long ago ("7d"), or an ISO date; a date without a time zone is local."""
    if given is None:
        return None
    from agentflow.durations import parse_duration
    from agentflow.errors import InvalidInput

    try:
        return datetime.fromisoformat(given).astimezone()
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.now(UTC) - parse_duration(_number(given))
    except (InvalidInput, OverflowError) as error:
        usage(f"{option} {given!r} is neither a duration such as 7d nor an ISO date: {error}")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")
