"""Workers in processes of their own share a provider's limit; the provider itself counts what comes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from agentflow.models.ledger import CallState
from agentflow.models.response import ModelRequest
from agentflow.testing import HttpError, fake_provider
from tests.crash.limited_flow import make_app
from tests.crash.processes import lines
from tests.forked import Forked

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]


def worker(url: str, log: Path, environment: dict[str, str]) -> Forked:
    return Forked(["-m", "tests.crash.limited_flow", url, log], env=os.environ | environment)


async def started(log: Path, *processes: Forked) -> None:
    while not all(f"started {process.pid}" in lines(log) for process in processes):
        assert all(process.poll() is None for process in processes)
        await asyncio.sleep(0.01)


async def test_two_workers_together_keep_to_the_limit_and_a_killed_one_changes_nothing(
    database_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    app = make_app(database_url)
    await app.migrate()
    async with fake_provider(lambda _: "yes") as provider:
        url, environment = database_url, provider.environment()
        with worker(url, log, environment) as first, worker(url, log, environment) as second:
            await started(log, first, second)
            async with app:
                runs = [await app.start("ask", f"{n}") for n in range(30)]
                await provider.wait_for_generations(10)
                first.send_signal(signal.SIGKILL)
                assert [await run.result(60) for run in runs] == ["yes"] * 30
                calls = await app.client.store.queries.list_model_calls()
    asked_again = [call for _, call in calls if call.state != CallState.DONE]
    assert len(calls) == 30 + len(asked_again)
    assert provider.generations <= len(calls), "what was under way at the kill is asked again, nothing else"
    begun = [call.started_at for _, call in calls]
    assert len(begun) >= provider.generations
    # A bit less than the period of four seconds: the clocks of two processes are not the same to the millisecond.
    most = max(sum(start <= at < start + 3_500_000 for at in begun) for start in begun)
    assert most <= 20
    assert max(begun) - min(begun) > 4_000_000


async def test_a_429_that_one_worker_sees_slows_the_other_one(postgres_url: str, tmp_path: Path) -> None:
    log, came = tmp_path / "log", []

    def reply(request: ModelRequest) -> str | HttpError:
        came.append(time.monotonic())
        return HttpError(429, retry_after=3) if len(came) == 1 else "yes"

    app = make_app(postgres_url)
    await app.migrate()
    async with fake_provider(reply) as provider:
        environment = provider.environment()
        with worker(postgres_url, log, environment) as first:
            await started(log, first)
            async with app:
                refused = await app.start("ask", "first")
                while not came:
                    await asyncio.sleep(0.01)
                while (await app.runs.get(refused.id)).status != "sleeping":
                    await asyncio.sleep(0.01)
                with worker(postgres_url, log, environment) as second:
                    await started(log, second)
                    first.send_signal(signal.SIGKILL)
                    runs = [refused, *[await app.start("ask", f"{n}") for n in range(3)]]
                    assert [await run.result(60) for run in runs] == ["yes"] * 4
    assert min(came[1:]) - came[0] >= 2.9
    assert len(came) == 5
