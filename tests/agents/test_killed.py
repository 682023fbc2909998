"""An agent's process is killed at every point around its model calls: what is paid for is in the ledger, and no more
is paid than the way of billing allows.

Nine points, each in the first and in the second call, on three APIs of the fake provider and on both databases, under
each way of billing; an ordinary run does a selection. The server counts the answers that it makes, which is what a real
one would bill.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import NamedTuple

import pytest

from agentflow import ModelRequest, recovering
from agentflow.models.clients import close_clients
from agentflow.models.ledger import Billing
from agentflow.testing.provider_server import FakeProvider, Stall, fake_provider
from tests.agents.killed_flow import GENERATING, POINTS, SHORT_GRACE, make_app, take_to_the_end
from tests.agents.support import call
from tests.crash.processes import end_leases, lines
from tests.faults.reporting import Report
from tests.faults.support import IS_FULL, SECONDS, read_rows
from tests.forked import KILLED, Forked, Starter

MODELS = ("openai:gpt-5-mini", "openai-chat:gpt-4o", "anthropic:claude-sonnet-4-5")
NEEDED = 2

RESPONSES, CHAT, CLAUDE = MODELS
AGAIN = (0, 0, 0, 1, 1, 1, 0)
FOUND = (0,) * 7
JOB = (0, 0, 0, 1, 1, 0, 0, 1, 0)
MODES: dict[tuple[Billing, str], tuple[int, ...]] = {
    **{("at_least_once", model): AGAIN for model in MODELS},
    ("recover", RESPONSES): JOB,
    ("recover", CHAT): FOUND,
    ("recover", CLAUDE): AGAIN,
    ("strict", RESPONSES): JOB,
    ("strict", CHAT): FOUND,
    ("strict", CLAUDE): AGAIN,
}
"""How many answers more than needed a way of billing may pay for when its process dies at each of the points; under
`"strict"` only because the person who is asked lets the call be made again."""


class Case(NamedTuple):
    billing: Billing
    point: str
    turn: int
    model: str
    most: int
    """So many answers may be made."""


def cases(database_url: str) -> list[Case]:
    every = [
        Case(billing, point, turn, model, NEEDED + most)
        for (billing, model), bounds in MODES.items()
        for (point, most), turn in itertools.product(zip(POINTS, bounds, strict=False), (1, 2))
    ]
    if IS_FULL:
        return every
    # A spread over points, turns and ways of billing; on PostgreSQL some of it.
    some = every[::9]
    return some if database_url.startswith("sqlite") else some[1::4]


@pytest.mark.crash
@pytest.mark.fault(24)
@pytest.mark.timeout(SECONDS)
async def test_whenever_its_process_dies_a_model_call_is_paid_for_within_its_bound_and_accounted_for(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    monkeypatch.setattr(recovering, "LOOKUP_GRACE", SHORT_GRACE)
    generated = possible = 0
    done = cases(database_url)
    with Starter("tests.agents.killed_flow") as children:
        for model in MODELS:
            await _take_uncrashed(children, database_url, tmp_path / model, model)
        for number, case in enumerate(done):
            made, doubts = await _try(children, database_url, tmp_path / f"log-{number}", case, monkeypatch)
            generated, possible = generated + made, possible + doubts
    report(
        f"{len(done)} kills ({len({case[:3] for case in done})} of points, modes and turns, "
        f"{len({case.model for case in done})} APIs): {generated} answers made where {NEEDED * len(done)} were "
        f"needed, {possible} calls in the ledger as possibly billed; never over the bound, every tool as decided"
    )


async def _take_uncrashed(children: Starter, database_url: str, log: Path, model: str) -> None:
    async with fake_provider(_reply) as provider:
        environment = json.dumps(provider.environment())
        await children.warm_up(environment, database_url, str(log), model, "at_least_once", model, "", "0")
        assert provider.generations == NEEDED


def _reply(request: ModelRequest) -> object:
    if len(request.messages) > 1:
        return "done"
    return [call("look_up", order_id="1"), call("refund", order_id="1"), call("refund", order_id="2")]


async def _try(
    children: Starter, database_url: str, log: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int]:
    """How many answers were made, and how many of them are in the ledger as perhaps billed."""
    async with fake_provider() as provider:
        for name, value in provider.environment().items():
            monkeypatch.setenv(name, value)
        await _kill(children, database_url, log, case, key=log.name, provider=provider)
        if not IS_FULL:
            await end_leases(database_url)
        app, agent = make_app(database_url, str(log), case.model, case.billing)
        try:
            assert await take_to_the_end(app, agent, log.name) == "done"
        finally:
            await close_clients()
        return provider.generations, await _check(
            database_url, log, case, key=log.name, made=provider.generations
        )


async def _kill(
    children: Starter, database_url: str, log: Path, case: Case, *, key: str, provider: FakeProvider
) -> None:
    """The process of a run dies at the case's point."""

    def reply(request: ModelRequest) -> object:
        is_it = case.point == GENERATING and provider.generations == case.turn - 1
        return Stall(reply=_reply(request)) if is_it else _reply(request)

    provider._by_function = reply
    words = (database_url, str(log), case.model, case.billing, key, case.point, str(case.turn))
    with Forked((json.dumps(provider.environment()), *words), starter=children) as process:
        if case.point == GENERATING:
            await provider.wait_for_generations(case.turn)
            process.kill()
        code = await process.ended()
    assert code == KILLED, f"{case}: its process was not killed, it ended with {code}"


async def _check(database_url: str, log: Path, case: Case, *, key: str, made: int) -> int:
    """What was made, what the ledger says, and what the tools did; how many calls were perhaps billed for nothing."""
    assert NEEDED <= made <= case.most, f"{case}: {made} answers were made"
    rows = await read_rows(
        database_url,
        "SELECT c.state, c.billed FROM agentflow_model_call c JOIN agentflow_run r ON r.id = c.run_id "
        f"WHERE r.idempotency_key = '{key}'",
    )
    billed = [billed for _, billed in rows]
    assert len(rows) <= NEEDED + 1, f"{case}: {rows}"
    assert billed.count("yes") + billed.count("possible") >= made, f"{case}: {rows}"
    assert all(row in (("done", "yes"), ("in_doubt", "possible")) for row in rows), f"{case}: {rows}"
    assert billed.count("yes") == NEEDED, f"{case}: {rows}"
    asked = await read_rows(
        database_url,
        "SELECT a.step_key FROM agentflow_approval a JOIN agentflow_run r ON r.id = a.run_id "
        f"WHERE r.idempotency_key = '{key}' AND a.tool IS NULL",
    )
    # Under "strict" nothing is asked for again unless a person lets it.
    assert len(asked) == (billed.count("possible") if case.billing == "strict" else 0), f"{case}: {asked}"
    approvals = await read_rows(
        database_url,
        "SELECT a.status, a.args FROM agentflow_approval a JOIN agentflow_run r ON r.id = a.run_id "
        f"WHERE r.idempotency_key = '{key}' AND a.tool IS NOT NULL ORDER BY 1",
    )
    assert approvals == [("approved", '{"order_id":"1"}'), ("denied", '{"order_id":"2"}')], f"{case}"
    ran = [line.split() for line in lines(log)]
    # A process that dies between a tool and the commit of its result lets it run again, under the same key.
    assert {what for _, what in ran} == {"looked-up-1", "refunded-1"}, f"{case}: {ran}"
    assert len({effect for effect, _ in ran}) == 2, f"{case}: {ran}"
    return billed.count("possible")
