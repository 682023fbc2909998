"""What goes to stdout: tables on a terminal, tab-separated text elsewhere, JSON alone with `--json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

SHORTEST_ID = 17
"""`run_` and the millisecond: what is shorter belongs to more than one run soon."""
STATUS_STYLES = {
    "completed": "green",
    "approved": "green",
    "responded": "green",
    "failed": "red",
    "denied": "red",
    "expired": "red",
    "cancelled": "yellow",
    "skipped": "yellow",
    "running": "cyan",
    "waiting": "magenta",
    "pending": "magenta",
    "sleeping": "blue",
}


def console(*, stderr: bool = False) -> Console:
    """A terminal's own width and colours; `NO_COLOR` and dumb terminals are respected."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def is_terminal() -> bool:
    """Whether stdout is one."""
    return sys.stdout.isatty()


def show_json(value: Any) -> None:
    """The value as JSON; on a terminal indented, else in one line."""
    from pydantic_core import to_jsonable_python

    indent = 2 if is_terminal() else None
    print(json.dumps(to_jsonable_python(value), ensure_ascii=False, indent=indent), flush=True)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """A table; `empty` is said (to stderr) when there are no rows."""
    found = [[as_text(cell) for cell in row] for row in rows]
    if not found:
        print(empty, file=sys.stderr)
        return
    if not is_terminal():
        for row in [[column.upper() for column in columns], *found]:
            print("\t".join(row))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    widths = [max(map(len, cells)) for cells in zip(*found, strict=True)]
    for column, width in zip(columns, widths, strict=True):
        # Where there is too little room, the one that takes most of it is folded, and none is cut.
        table.add_column(column, no_wrap=width < max(widths), overflow="fold")
    for row in found:
        table.add_row(*(Text(cell, style=STATUS_STYLES.get(cell, "")) for cell in row))
    console().print(table)


def show_fields(fields: Sequence[tuple[str, Any]]) -> None:
    """One thing: a line for each field that has a value."""
    width = max(len(name) for name, _ in fields)
    out = console() if is_terminal() else None
    for name, value in fields:
        if value is None or value in ("", [], (), {}):
            continue
        text = as_text(value)
        if out is None:
            print(f"{name}\t{text}")
            continue
        from rich.text import Text

        label = Text(f"{name:<{width}}  ", style="dim")
        out.print(label.append(Text(text, style=STATUS_STYLES.get(text, "not dim"))), soft_wrap=True)


def say(text: str) -> None:
    """For the person, not for a pipe: to stderr."""
    print(text, file=sys.stderr, flush=True)


def shortened(ids: Sequence[str]) -> list[str]:
    """Ids as far as a person has to type them, on a terminal; whole elsewhere."""
    if not is_terminal():
        return list(ids)
    length = next(
        (length for length in range(SHORTEST_ID, max(map(len, ids), default=0)) if _tells_apart(ids, length)),
        None,
    )
    return [id[:length] for id in ids]


def _tells_apart(ids: Sequence[str], length: int) -> bool:
    return len({id[:length] for id in ids}) == len(set(ids))


def as_text(value: Any) -> str:
    """A cell: nothing in it can move the cursor, hide, or pass for something else."""
    match value:
        case None:
            return ""
        case str():
            return visible(value)
        case datetime():
            return _local(value)
        case timedelta():
            return duration(value.total_seconds())
        case Decimal() | int() | float():
            return str(value)
        case _:
            return visible(one_line(value))


def _local(instant: datetime) -> str:
    """In the reader's own time; on a terminal without the date where that is today's."""
    local = instant.astimezone()
    if is_terminal() and local.date() == datetime.now().astimezone().date():
        return local.strftime("%H:%M:%S")
    return local.strftime("%Y-%m-%d %H:%M:%S")


def one_line(value: Any) -> str:
    """A JSON value in one line."""
    from pydantic_core import to_jsonable_python

    return json.dumps(to_jsonable_python(value), ensure_ascii=False)


def visible(text: str) -> str:
    """Control characters, and those that take no room or turn the direction of the text, as escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def duration(seconds: float) -> str:
    """`0.31 s`, `2 m 05 s`, `3 h 12 m`, `4 d 01 h`."""
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} m"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02} h"


def money(cost: Decimal | None) -> str:
    """US dollars; a price nobody knows is not nothing."""
    if cost is None:
        return "unknown"
    return "$0" if not cost else f"${cost.normalize():f}" if cost >= Decimal("0.01") else f"${cost:.6f}"
