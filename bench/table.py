"""One table a database: each contestant's figure, how often the raw limit's time it takes, and how often ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.contest import OURS, RAW, Contestant, Results, median_of
from bench.plan import TITLES, Row, rows_on


def table(
    results: Results, database: str, contestants: Sequence[Contestant], sizes: Mapping[str, int]
) -> list[str]:
    """Lines of text; a dash where a contestant has no such figure. Who does only a few rows has no column, but a line
    for each."""
    peers = [
        contestant for contestant in contestants if contestant.is_peer and _does_any(contestant, database)
    ]
    columns = [peer for peer in peers if peer.workloads is None]
    heading = f"{'':<40}{RAW.name:>10}{OURS.name:>11}{'x raw':>8}"
    heading += "".join(f"{peer.name:>11}{'x raw':>8}{'x ours':>8}" for peer in columns)
    lines, asides = [TITLES[database], heading], []
    for row in rows_on(database):
        raw = _figure(results, database, row, RAW)
        ours = _figure(results, database, row, OURS)
        title = _title(row, sizes)
        line = f"{title:<40}{_shown(row, raw):>10}{_shown(row, ours):>11}{_times(ours, raw):>8}"
        for peer in peers:
            theirs = _figure(results, database, row, peer)
            if peer in columns:
                line += f"{_shown(row, theirs):>11}{_times(theirs, raw):>8}{_times(theirs, ours):>8}"
            elif theirs is not None:
                asides.append(f"{title}: {peer.name} {_shown(row, theirs)}, {_times(theirs, ours)} x ours")
        lines.append(line.rstrip())
    return lines + asides


def _does_any(contestant: Contestant, database: str) -> bool:
    return any(contestant.does(row.workload, database) for row in rows_on(database))


def _figure(results: Results, database: str, row: Row, contestant: Contestant) -> float | None:
    return median_of(results, database, row.workload, contestant.name, row.figure)


def _title(row: Row, sizes: Mapping[str, int]) -> str:
    title = row.title.format_map({name: f"{size:,}" for name, size in sizes.items()})
    return f"{title} ({'steps/s' if row.shown_as == '/s' else row.shown_as})"


def _shown(row: Row, figure: float | None) -> str:
    match row.shown_as:
        case _ if figure is None:
            return "-"
        case "/s":
            return f"{1 / figure:,.0f}"
        case "%":
            return f"{figure * 100:.1f}"
        case "MB":
            return f"{figure:.1f}"
        case "s":
            return f"{figure:.2f}"
        case "ms":
            return f"{figure * 1e3:,.1f}"
        case _:
            return f"{figure * 1e6:,.0f}"


def _times(figure: float | None, other: float | None) -> str:
    return "-" if figure is None or not other else f"{figure / other:.1f}"
