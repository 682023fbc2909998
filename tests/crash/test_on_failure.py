"""`on_failure` is started once, wherever the worker dies that writes the failure."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentflow.errors import RunFailed
from tests.crash.flow import make_app
from tests.crash.processes import end_leases, lines, workers

pytestmark = [pytest.mark.crash, pytest.mark.timeout(60)]


@pytest.mark.parametrize("point", ["before_finish", "after_finish"])
async def test_on_failure_is_started_once_whatever_crashes(
    database_url: str, tmp_path: Path, point: str
) -> None:
    log = tmp_path / "log"
    app = make_app(database_url, str(log))
    await app.migrate()
    with workers(database_url, log) as processes:
        dying = await processes.start(crash_at=point)
        async with app:
            run = await app.start("fail")
            # Not in this thread: the app has yet to tell the worker of the run.
            assert await asyncio.to_thread(dying.process.wait, 20) < 0
            await end_leases(database_url)
            await processes.start()
            with pytest.raises(RunFailed, match="it broke"):
                await run.result(20)
            [after] = (await app.runs.list(function="fail-failure")).data
            await app.runs.handle(after.id).result(20)
    told = [line.split()[0] for line in lines(log) if not line.startswith("started")]
    assert told == [f"{after.id}:tell"]
