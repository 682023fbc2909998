"""A worker lets Python look for garbage less often, where nobody has said how often."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentflow.app import App


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("before", "at_work"),
    [
        ((700, 10, 10), (5_000, 10, 10)),
        ((2_000, 10, 0), (5_000, 10, 0)),
        ((50_000, 20, 20), (50_000, 20, 20)),
        ((0, 10, 10), (0, 10, 10)),
    ],
)
async def test_a_threshold_that_somebody_chose_stays(
    before: tuple[int, int, int], at_work: tuple[int, int, int], tmp_path: Path
) -> None:
    gc.set_threshold(*before)
    app = App("shop", database_url=f"sqlite:///{tmp_path}/agentflow.db")
    await app.migrate()
    async with app.running():
        assert gc.get_threshold() == at_work
