"""What a test marked `fault` says of its full form, and how the tests of one fault are chosen."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from tests.faults.catalogue import FAULTS, Seen, keep
from tests.faults.support import IS_FULL

Report = Callable[[str], None]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """`report("500 kills in 90 s, nothing lost")`: printed; of a full form also kept for the page."""
    marker = request.node.get_closest_marker("fault")
    assert marker, f"{request.node.nodeid} reports, and is not marked with its fault"
    database = _database_of(request)

    def say(said: str) -> None:
        print(f"\nfault {marker.args[0]}, {database or 'no database'}: {said}")
        if IS_FULL:
            today = datetime.now(UTC).date().isoformat()
            keep(marker.args[0], request.node.name, Seen(date=today, database=database, said=said))

    return say


def choose(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what `--fault N` names; without it, check only that each marker names a fault that there is."""
    wanted = set(config.getoption("--fault"))
    if unknown := wanted - set(FAULTS):
        raise pytest.UsageError(f"--fault: there is no fault {min(unknown)}; there are 1 to {max(FAULTS)}")
    chosen, left = [], []
    for item in items:
        marker = item.get_closest_marker("fault")
        if marker and marker.args[0] not in FAULTS:
            raise pytest.UsageError(f"{item.nodeid}: there is no fault {marker.args[0]}")
        (chosen if not wanted or (marker and marker.args[0] in wanted) else left).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = chosen


def _database_of(request: pytest.FixtureRequest) -> str:
    names = request.fixturenames
    callspec = getattr(request.node, "callspec", None)
    kind = callspec.params.get("database_url", "") if callspec else ""
    if kind == "sqlite" or "sqlite_url" in names:
        return "SQLite"
    return "PostgreSQL" if kind == "postgres" or "postgres_url" in names or "own_postgres" in names else ""
