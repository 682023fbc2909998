"""Workers in processes of their own share a budget, and are killed; the provider counts what it would bill."""

from __future__ import annotations

import asyncio
import os
import signal
from decimal import Decimal
from pathlib import Path

import pytest

from agentflow.errors import RunFailed
from agentflow.handles import RunHandle
from agentflow.models.ledger import CallState
from agentflow.models.response import ModelResponse
from agentflow.store.charges import read_charges
from agentflow.testing import Stall, fake_provider
from tests.crash.budgeted_flow import BUDGET, COST, USAGE, make_app
from tests.crash.processes import lines
from tests.forked import Forked

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]

RUNS = 60


async def worker(url: str, log: Path, environment: dict[str, str]) -> Forked:
    process = Forked(["-m", "tests.crash.budgeted_flow", url, log], env=os.environ | environment)
    while f"started {process.pid}" not in lines(log):
        assert process.poll() is None
        await asyncio.sleep(0.01)
    return process


async def outcome(run: RunHandle[str]) -> str:
    try:
        return await run.result(60)
    except RunFailed as failed:
        return failed.error.name


async def test_two_workers_that_are_killed_together_never_spend_more_than_the_budget(
    database_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    app = make_app(database_url)
    await app.migrate()
    answer = Stall(0.03, reply=ModelResponse(text="yes", usage=USAGE))
    async with fake_provider(lambda _: answer) as provider:
        url, environment = database_url, provider.environment()
        with await worker(url, log, environment) as first, await worker(url, log, environment) as second:
            async with app:
                runs = [await app.start("ask", f"{n}") for n in range(RUNS)]
                await provider.wait_for_generations(8)
                first.send_signal(signal.SIGKILL)
                await provider.wait_for_generations(14)
                second.send_signal(signal.SIGKILL)
                with await worker(url, log, environment):
                    outcomes = await asyncio.gather(*map(outcome, runs))
                calls = [call for _, call in await app.client.store.queries.list_model_calls()]
                [budget] = await app.budgets()
    limit = BUDGET.cost_usd
    assert isinstance(limit, Decimal)
    # Each request sets max_tokens and holds all its input: there is nothing by which the budget may be passed.
    assert provider.generations * COST <= limit
    assert provider.generations * COST > limit * Decimal("0.6")
    answered = outcomes.count("yes")
    assert outcomes.count("BudgetExceeded") == RUNS - answered > 0
    done = [call for call in calls if call.state == CallState.DONE]
    assert len(done) == answered
    assert all(call.ended_at is not None for call in calls), "what was lost is in doubt"
    assert provider.generations <= len(calls)
    charged = [charge.cost for call in calls for charge in read_charges(call.charges)]
    assert budget.spent_usd == Decimal(sum(charged)) / 10**9 <= limit
    assert budget.reserved_usd == 0
    lost = [
        charge.cost for call in calls if call.state != CallState.DONE for charge in read_charges(call.charges)
    ]
    assert budget.spent_usd == answered * COST + Decimal(sum(lost)) / 10**9
