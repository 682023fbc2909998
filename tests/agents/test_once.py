"""A tool with `effect="once"` is never run again by itself: where nobody knows what became of it, a person decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentflow import (
    Agent,
    App,
    Approval,
    ApprovalRequest,
    Approve,
    Deny,
    Edit,
    Respond,
    RunHandle,
    Step,
    tool,
)
from agentflow.errors import (
    ConfigurationError,
    InvalidInput,
    ModelRetry,
    NonRetriable,
    NotPermitted,
    RetryAfter,
    RunFailed,
    ToolFailed,
)
from agentflow.runs import RunStatus
from agentflow.testing import Harness, ScriptedModel, harness
from tests.agents.once_flow import IN_DOUBT, POINTS, make_app, take_to_the_end
from tests.agents.support import call, results_in, steps_of
from tests.crash.processes import end_leases, lines
from tests.forked import KILLED, Starter


class Bank:
    """An agent whose tool pays, once; `does` is what else its first calls do."""

    def __init__(self, *does: Exception | float, **options: Any) -> None:
        self.paid = 0
        self._does = list(does)

        @tool(effect="once", **options)
        async def pay(amount: int) -> str:
            self.paid += 1
            if self._does:
                what = self._does.pop(0)
                if isinstance(what, Exception):
                    raise what
                await asyncio.sleep(what)
            return f"paid {amount}"

        self.app = App("t")
        self.agent = Agent("clerk", model="openai:gpt-5-mini", tools=[pay])
        self.app.add(self.agent)
        self.model = ScriptedModel([[call("pay", amount=5)], "done"])

    @asynccontextmanager
    async def running(self, database_url: str) -> AsyncIterator[tuple[Harness, RunHandle[str]]]:
        async with harness(
            self.app, model=self.model, database_url=database_url, replay_every_step=True
        ) as h:
            run = await h.start(self.agent, "Pay.")
            await h.idle()
            yield h, run

    async def question(self) -> ApprovalRequest:
        [request] = (await self.app.approvals.list(status="pending")).data
        return request

    async def decide(self, decision: Approve | Deny | Respond | Edit, by: str = "ana") -> None:
        request = await self.question()
        await self.app.approvals.decide(request.id, decision, by=by, args_digest=request.args_digest)

    @property
    def told(self) -> list[Any]:
        return results_in(self.model.requests[1])


async def test_a_call_that_comes_to_its_end_asks_nobody(database_url: str) -> None:
    bank = Bank()
    async with bank.running(database_url) as (_, run):
        assert await run.result(10) == "done"
        assert (await bank.app.approvals.list()).data == []
    assert (bank.paid, bank.told) == (1, ["paid 5"])


async def test_an_unknown_end_asks_a_person_who_may_let_it_run_again(database_url: str) -> None:
    bank = Bank(ConnectionError("reset by peer"), OSError("gone"))
    async with bank.running(database_url) as (h, run):
        request = await bank.question()
        assert (request.tool, request.args) == ("pay", {"amount": 5})
        assert request.title == "Nobody knows whether pay has happened"
        assert "ConnectionError: reset by peer" in request.details["why"]
        assert await run.status() is RunStatus.WAITING
        await h.advance("1d")
        assert bank.paid == 1
        await bank.decide(Approve())
        await h.idle()
        assert "OSError: gone" in (await bank.question()).details["why"]
        await bank.decide(Approve())
        await h.idle()
        assert await run.result(10) == "done"
        keys = [key for key in await steps_of(bank.app, run.id) if "pay" in key]
    assert bank.paid == 3
    assert bank.told == ["paid 5"]
    pay = "clerk#0/turn0/0:pay"
    assert keys == [pay, f"{pay}/in-doubt", f"{pay}/again", f"{pay}/in-doubt:1", f"{pay}/again:1"]


async def test_a_person_may_say_what_came_of_it(database_url: str) -> None:
    bank = Bank(ConnectionError("reset by peer"))
    async with bank.running(database_url) as (h, run):
        await bank.decide(Respond({"receipt": 17}))
        await h.idle()
        assert await run.result(10) == "done"
    assert (bank.paid, bank.told) == (1, [{"receipt": 17}])


@pytest.mark.parametrize("in_time", [True, False])
async def test_a_person_may_give_up_and_so_does_time(sqlite_url: str, in_time: bool) -> None:
    bank = Bank(ConnectionError("reset by peer"))
    async with bank.running(sqlite_url) as (h, run):
        if in_time:
            await bank.decide(Deny("ask the bank first"))
        await h.advance("3d")
        why = "ana gave it up: ask the bank first" if in_time else "nobody decided in time"
        with pytest.raises(RunFailed, match=f"InDoubt: .*reset by peer; {why}"):
            await run.result(10)
    assert (bank.paid, len(bank.model.requests)) == (1, 1)


async def test_those_who_decide_about_the_tool_are_asked_and_may_edit_nothing(sqlite_url: str) -> None:
    policy = Approval(when=lambda args: args["amount"] > 100, approvers=("boss",), editable=None)
    bank = Bank(ConnectionError("reset"), approval=policy)
    async with bank.running(sqlite_url) as (h, run):
        with pytest.raises(NotPermitted):
            await bank.decide(Approve(), by="ana")
        with pytest.raises(InvalidInput):
            await bank.decide(Edit({"amount": 6}), by="boss")
        await bank.decide(Approve(), by="boss")
        await h.idle()
        assert await run.result(10) == "done"
    assert bank.paid == 2


@pytest.mark.parametrize("known", [ModelRetry("which account?"), ToolFailed("account closed")])
async def test_what_a_tool_knows_of_itself_asks_nobody(sqlite_url: str, known: Exception) -> None:
    bank = Bank(known)
    async with bank.running(sqlite_url) as (_, run):
        assert await run.result(10) == "done"
    assert (bank.paid, bank.told) == (1, [str(known)])


async def test_a_failure_that_a_tool_calls_final_fails_the_run(sqlite_url: str) -> None:
    class CardDeclined(NonRetriable):
        pass

    bank = Bank(CardDeclined("declined"))
    async with bank.running(sqlite_url) as (_, run):
        with pytest.raises(RunFailed, match="CardDeclined: declined"):
            await run.result(10)
        assert (await bank.app.approvals.list()).data == []


async def test_a_tool_that_asks_to_be_called_again_is_for_it_says_that_nothing_has_happened(
    database_url: str,
) -> None:
    bank = Bank(RetryAfter("1m"), RetryAfter("1m"))
    async with bank.running(database_url) as (h, run):
        await h.advance("3m")
        assert await run.result(10) == "done"
        assert (await bank.app.approvals.list()).data == []
    assert (bank.paid, bank.told) == (3, ["paid 5"])


async def test_a_call_that_took_too_long_is_in_doubt(sqlite_url: str) -> None:
    bank = Bank(30.0, timeout=0.05)
    async with bank.running(sqlite_url) as (h, run):
        await h.advance("1m")  # to the next attempt, which finds the mark
        assert "had begun to run tool 'pay'" in (await bank.question()).details["why"]
        await bank.decide(Respond("paid"))
        await h.idle()
        assert await run.result(10) == "done"
    assert bank.paid == 1


async def test_a_worker_that_dies_in_the_midst_of_it_leaves_it_in_doubt(database_url: str) -> None:
    bank = Bank(3600.0)
    async with harness(bank.app, model=bank.model, database_url=database_url) as h:
        run = await h.start(bank.agent, "Pay.")
        while not bank.paid:
            await asyncio.sleep(0.01)
        await h.crash()
        await h.restart()
        await h.idle()
        assert bank.paid == 1
        await bank.decide(Respond("paid"))
        await h.idle()
        assert await run.result(10) == "done"
    assert (bank.paid, bank.told) == (1, ["paid"])


async def test_an_effect_beside_others_is_asked_about_while_these_go_on(sqlite_url: str) -> None:
    bank = Bank(ConnectionError("reset"))
    bank.model = ScriptedModel([[call("pay", amount=5), call("pay", amount=6)], "done"])
    async with bank.running(sqlite_url) as (h, run):
        request = await bank.question()
        assert (request.args, bank.paid) == ({"amount": 5}, 2)
        await bank.decide(Respond("by hand"))
        await h.idle()
        assert await run.result(10) == "done"
    assert bank.told == ["by hand", "paid 6"]


def test_what_cannot_hold_is_refused_when_the_tool_is_made() -> None:
    async def steps(step: Step) -> None: ...

    async def plain() -> None: ...

    with pytest.raises(ConfigurationError, match="takes a Step"):
        tool(effect="once")(steps)
    with pytest.raises(ConfigurationError, match="not tried again by itself"):
        tool(effect="once", retry=3)(plain)
    with pytest.raises(ConfigurationError, match="effect='twice'"):
        tool(effect="twice")(plain)  # type: ignore[call-overload]


@pytest.mark.crash
@pytest.mark.timeout(180)
async def test_wherever_its_process_is_killed_effect_and_turn_are_there_once_and_only_a_doubt_asks(
    database_url: str, tmp_path: Path
) -> None:
    with Starter("tests.agents.once_flow") as children:
        for number, point in enumerate(POINTS):
            log, key = str(tmp_path / f"log-{number}"), f"key-{number}"
            assert await children.run(database_url, log, key, point) == KILLED, point
            await end_leases(database_url)
            app, agent = make_app(database_url, log)
            answer, asked, said = await take_to_the_end(app, agent, log, key)
            assert lines(Path(log)) == ["paid 5"], point
            doubts = ["Nobody knows whether pay has happened"] if point in IN_DOUBT else []
            assert asked == doubts, point
            is_known_by_hand = point in ("after the effect", "before the result is committed")
            assert answer == ("paid 5, as the bank says" if is_known_by_hand else "paid 5"), point
            assert said == ["user: Pay.", "assistant: ", "tool: ", f"assistant: {answer}"], point
