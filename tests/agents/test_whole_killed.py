"""A whole agent is killed anywhere: its model calls are paid for within their bound, and every tool runs as decided.

It has a plain tool, one whose effect may happen once, gated ones that a person approves, edits and denies, one that is
gated and may happen once, and a sub-agent with gated tools of its own. Its process is killed at a pass of a point of
the engine, or around a tool's effect, on three APIs under each way of billing; in full at every pass, else at some.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest

from agentflow import recovering
from agentflow.crashpoints import CRASH_POINTS
from agentflow.models.clients import close_clients
from agentflow.models.ledger import Billing
from agentflow.testing.provider_server import fake_provider
from tests.agents.whole_flow import (
    ANSWERS,
    DONE,
    GATED,
    SCOUT_TOLD,
    SHORT_GRACE,
    TOLD,
    TOOLS,
    make_app,
    reply,
    take_to_the_end,
)
from tests.crash.processes import end_leases, lines
from tests.faults.reporting import Report
from tests.faults.support import IS_FULL, SECONDS, read_rows
from tests.forked import KILLED, Starter

RESPONSES, CHAT, CLAUDE = "openai:gpt-5-mini", "openai-chat:gpt-4o", "anthropic:claude-sonnet-4-5"
WAYS = tuple(itertools.product(get_args(Billing), (RESPONSES, CHAT, CLAUDE)))
AROUND_TOOLS = tuple(f"{when} {tool}" for tool in TOOLS for when in ("before", "after"))
BY_THE_CLOCK = ("before_heartbeat", "before_claim", "before_notify")
"""Passed as time goes by: how often is no matter of the run."""
SOME = {
    "sqlite": (
        ("strict", RESPONSES, "before_request:3"),
        ("recover", RESPONSES, "after_request:2"),
        ("strict", CLAUDE, "after_request:4"),
        ("at_least_once", CLAUDE, "after wire"),
        ("recover", CHAT, "after refund-2"),
        ("strict", RESPONSES, "before charge"),
    ),
    "postgresql": (
        ("strict", RESPONSES, "after_request:2"),
        ("recover", CHAT, "after release-1"),
    ),
}


class Case(NamedTuple):
    billing: Billing
    model: str
    point: str


class Found(NamedTuple):
    """What one kill has cost."""

    answers: int
    possible: int
    again: int


@pytest.mark.crash
@pytest.mark.fault(24)
@pytest.mark.timeout(SECONDS)
async def test_wherever_its_process_dies_an_agent_does_what_was_decided_and_pays_within_its_bound(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    monkeypatch.setattr(recovering, "LOOKUP_GRACE", SHORT_GRACE)
    kind = database_url.partition(":")[0]
    kills: Counter[str] = Counter()
    found: list[Found] = []
    with Starter("tests.agents.whole_flow") as children:
        trials = _Trials(children, database_url, tmp_path, monkeypatch)
        for model in (RESPONSES, CHAT, CLAUDE) if IS_FULL else (RESPONSES,):
            await trials.take_uncrashed(model)
        if IS_FULL:
            ways = itertools.cycle(WAYS)
            for point in AROUND_TOOLS * 3:
                found.append(await trials.kill(Case(*next(ways), point)))
                kills[point] += 1
            for name in CRASH_POINTS:
                for n in range(1, 3 if name in BY_THE_CLOCK else 1000):
                    if not await trials.is_passed(Case(*next(ways), f"{name}:{n}"), found):
                        break
                    kills[name] += 1
            for (billing, model), n in itertools.product(WAYS, range(1, ANSWERS + 1)):
                for name in ("before_request", "after_request"):
                    found.append(await trials.kill(Case(billing, model, f"{name}:{n}")))
                    kills[name] += 1
        for case in () if IS_FULL else SOME[kind]:
            found.append(await trials.kill(Case(*case)))
            kills[case[2]] += 1
    answers, possible, again = (sum(column) for column in zip(*found, strict=True))
    report(
        f"{kills.total()} kills of a whole agent (tools, decisions, a sub-agent; {len(kills)} points): {answers} "
        f"answers made where {ANSWERS * len(found)} were needed, {possible} calls in the ledger as possibly billed, "
        f"{again} tools ran twice under the same key; every tool as decided"
    )


class _Trials:
    """Kills one process after the other, and looks at what became of its run."""

    def __init__(self, children: Starter, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._children = children
        self._url = url
        self._folder = folder
        self._monkeypatch = monkeypatch
        self._number = 0

    async def take_uncrashed(self, model: str) -> None:
        told: list[list[str]] = []
        async with fake_provider(lambda request: reply(request, told)) as provider:
            words = json.dumps(provider.environment()), self._url, str(self._folder / "uncrashed")
            await self._children.warm_up(*words, model, "at_least_once", model, "")
            assert provider.generations == ANSWERS
            assert sorted(told) == sorted([SCOUT_TOLD, TOLD])

    async def is_passed(self, case: Case, found: list[Found]) -> bool:
        """False when the run ended before it had passed the point so often."""
        try:
            found.append(await self.kill(case))
        except _NotKilled:
            return False
        return True

    async def kill(self, case: Case) -> Found:
        self._number += 1
        key = f"{self._number} {case.point}"
        log = self._folder / f"log-{self._number}"
        log.touch()
        told: list[list[str]] = []
        async with fake_provider(lambda request: reply(request, told)) as provider:
            environment = provider.environment()
            words = (json.dumps(environment), self._url, str(log), case.model, case.billing, key, case.point)
            code = await self._children.run(*words)
            if code == 0:
                raise _NotKilled(f"{case}: its process was not killed")
            assert code == KILLED, f"{case}: its process ended with {code}"
            if not IS_FULL:
                await end_leases(self._url)
            is_under_way = bool([row for row in await self._ledger(key) if row[0] == "attempted"])
            for name, value in environment.items():
                self._monkeypatch.setenv(name, value)
            app, agent = make_app(self._url, str(log), case.model, case.billing)
            try:
                assert await take_to_the_end(app, agent, str(log), key) == "done"
            finally:
                await close_clients()
            made = provider.generations
        may_lose = is_under_way and not (case.model == CHAT and case.billing != "at_least_once")
        assert ANSWERS <= made <= ANSWERS + may_lose, f"{case}: {made} answers were made"
        assert {tuple(results) for results in told} == {tuple(TOLD), tuple(SCOUT_TOLD)}, f"{case}: {told}"
        possible = await self._check_ledger(case, key, made)
        await self._check_decisions(case, key, possible)
        return Found(made, possible, self._check_effects(case, log))

    async def _check_ledger(self, case: Case, key: str, made: int) -> int:
        rows = await self._ledger(key)
        billed = [billed for _, billed in rows]
        assert billed.count("yes") == ANSWERS, f"{case}: {rows}"
        assert billed.count("yes") + billed.count("possible") >= made, f"{case}: {rows}"
        assert all(row in (("done", "yes"), ("in_doubt", "possible")) for row in rows), f"{case}: {rows}"
        return billed.count("possible")

    async def _check_decisions(self, case: Case, key: str, possible: int) -> None:
        rows = await read_rows(
            self._url,
            f"SELECT a.tool, a.title, a.args, a.status FROM agentflow_approval a {self._of_run('a', key)}",
        )
        gates = [row for row in rows if row[0] is not None and not row[1].startswith("Nobody knows")]
        said = {(tool, _sorted(args)): status for tool, _, args, status in gates}
        assert len(gates) == len(GATED), f"{case}: {gates}"
        # An edit is an approval of other arguments.
        expected = {gate: "approved" if said == "edited" else said for gate, said in GATED.items()}
        assert said == expected, f"{case}: {gates}"
        doubts = [row for row in rows if row[0] is None]
        assert len(doubts) == (possible if case.billing == "strict" else 0), f"{case}: {doubts}"

    def _check_effects(self, case: Case, log: Path) -> int:
        """What the tools did; how many of them did it again under the same key."""
        ran = Counter(tuple(line.split(" ", 1)) for line in lines(log))
        assert Counter(what for _, what in ran) == Counter(DONE), f"{case}: {ran}"
        for (_, what), times in ran.items():
            may_be_again = what.split()[0] not in ("charged", "wired")
            assert times <= 1 + may_be_again, f"{case}: {what} {times} times"
        return ran.total() - len(ran)

    async def _ledger(self, key: str) -> list[Any]:
        return await read_rows(
            self._url, f"SELECT c.state, c.billed FROM agentflow_model_call c {self._of_run('c', key)}"
        )

    def _of_run(self, table: str, key: str) -> str:
        """Of the run with that key, and of those that it has invoked."""
        return (
            f"JOIN agentflow_run r ON r.id = {table}.run_id LEFT JOIN agentflow_run p ON p.id = r.parent_id "
            f"WHERE r.idempotency_key = '{key}' OR p.idempotency_key = '{key}'"
        )


class _NotKilled(AssertionError):
    pass


def _sorted(args: str) -> str:
    return json.dumps(json.loads(args), sort_keys=True, separators=(",", ":"))
