"""A tool that needs an approval runs after a person's decision, once, with exactly what was approved."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
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
from agentflow.auth import Principal
from agentflow.errors import ConfigurationError, InvalidInput, NotPermitted, RunFailed
from agentflow.runs import RunStatus
from agentflow.testing import Harness, ScriptedModel, harness
from tests.agents.support import call, results_in, steps_of


class Desk:
    """An agent that asks for a refund beside a look-up, and what its tools did."""

    def __init__(self, approval: bool | Approval = True) -> None:
        self.refunds: list[tuple[str, Decimal]] = []
        self.lookups = 0

        @tool(approval=approval)
        async def refund(order_id: str, amount: Decimal, note: str = "") -> str:
            """Pay money back."""
            self.refunds.append((order_id, amount))
            return f"paid {amount}"

        @tool
        async def lookup(order_id: str) -> str:
            self.lookups += 1
            return "found"

        self.app = App("t")
        self.agent = Agent("support", model="openai:gpt-5-mini", tools=[refund, lookup])
        self.app.add(self.agent)
        self.model = ScriptedModel(
            [[call("refund", order_id="7", amount=12), call("lookup", order_id="7")], "done"]
        )

    @asynccontextmanager
    async def asking(
        self, database_url: str
    ) -> AsyncIterator[tuple[Harness, RunHandle[str], ApprovalRequest]]:
        async with harness(self.app, model=self.model, database_url=database_url) as h:
            run = await h.start(self.agent, "Refund it.")
            await h.idle()
            [request] = (await self.app.approvals.list(status="pending")).data
            yield h, run, request

    @property
    def told(self) -> list[Any]:
        return results_in(self.model.requests[1])


async def test_nothing_runs_before_the_decision_and_the_other_call_is_not_held_back(
    database_url: str,
) -> None:
    desk = Desk()
    async with desk.asking(database_url) as (h, run, request):
        assert await run.status() is RunStatus.WAITING
        assert (desk.refunds, desk.lookups, len(desk.model.requests)) == ([], 1, 1)
        assert (request.tool, request.args) == ("refund", {"order_id": "7", "amount": 12, "note": ""})
        assert request.step_key == "support#0/turn0/0:refund/approval"
        await h.advance("1d")
        await h.crash()
        await h.restart()
        await desk.app.approvals.decide(request.id, Approve(), by="ana", args_digest=request.args_digest)
        await h.idle()
        assert await run.result(5) == "done"
        assert "support#0/turn0/0:refund" in await steps_of(desk.app, run.id)
    assert (desk.refunds, desk.lookups) == ([("7", Decimal(12))], 1)
    assert desk.told == ["paid 12", "found"]


async def test_edited_arguments_are_what_runs(sqlite_url: str) -> None:
    desk = Desk()
    async with desk.asking(sqlite_url) as (_, run, request):
        await desk.app.approvals.decide(request.id, Edit({"order_id": "7", "amount": "5.50"}), by="ana")
        assert await run.result(5) == "done"
    assert desk.refunds == [("7", Decimal("5.50"))]
    assert desk.told[0] == "paid 5.50"


async def test_an_edit_that_the_tool_would_refuse_is_refused_and_the_question_stays(sqlite_url: str) -> None:
    desk = Desk()
    async with desk.asking(sqlite_url) as (_, run, request):
        with pytest.raises(InvalidInput, match=r"'refund' would refuse the edit.*amount"):
            await desk.app.approvals.decide(request.id, Edit({"order_id": "7", "amount": "much"}), by="ana")
        assert (await desk.app.approvals.get(request.id)).status == "pending"
        await desk.app.approvals.decide(request.id, Approve(), by="ana")
        assert await run.result(5) == "done"
    assert desk.refunds == [("7", Decimal(12))]


async def test_an_invalid_edit_taken_where_the_tool_is_not_known_does_not_run(sqlite_url: str) -> None:
    desk = Desk()
    async with desk.asking(sqlite_url) as (h, run, request):
        elsewhere = App("elsewhere", database_url=h.app.client.settings.database_url)
        async with elsewhere:
            edit = Edit({"order_id": "7", "amount": "much"})
            await elsewhere.approvals.decide(request.id, edit, by="ana")
        await h.advance("1m")  # the other App goes by the real clock, which is ahead by now
        assert await run.result(5) == "done"
    assert desk.refunds == []
    assert "amount" in desk.told[0]


@pytest.mark.parametrize(
    ("decision", "told"),
    [
        (Deny("Too much."), "Too much."),
        (Deny(), "A person denied the call. It was not made."),
        (Respond({"voucher": "A1"}), {"voucher": "A1"}),
    ],
)
async def test_a_denial_and_a_response_go_to_the_model_in_place_of_the_result(
    sqlite_url: str, decision: Deny | Respond, told: Any
) -> None:
    desk = Desk()
    async with desk.asking(sqlite_url) as (_, run, request):
        await desk.app.approvals.decide(request.id, decision, by="ana")
        assert await run.result(5) == "done"
    assert (desk.refunds, desk.told[0]) == ([], told)


async def test_no_decision_in_time_is_a_denial(sqlite_url: str) -> None:
    desk = Desk(Approval(timeout="2d"))
    async with desk.asking(sqlite_url) as (h, run, _):
        await h.advance("47h")
        assert await run.status() is RunStatus.WAITING
        await h.advance("1h")
        assert await run.result(5) == "done"
    assert (desk.refunds, desk.told[0]) == (
        [],
        "Nobody decided in time, so the call was denied. It was not made.",
    )


async def test_when_is_evaluated_once_and_decides_whether_a_person_is_asked(sqlite_url: str) -> None:
    seen: list[Any] = []

    def is_much(args: dict[str, Any]) -> bool:
        seen.append(args["amount"])
        return bool(args["amount"] > 100)

    desk = Desk(Approval(when=is_much))
    desk.model.replies[:] = [
        [call("refund", order_id="1", amount="12"), call("refund", order_id="2", amount="120")],
        "done",
    ]
    async with desk.asking(sqlite_url) as (h, run, request):
        assert request.args == {"order_id": "2", "amount": "120", "note": ""}
        assert desk.refunds == [("1", Decimal(12))]
        await h.crash()
        await h.restart()
        await h.idle()
        await desk.app.approvals.decide(request.id, Approve(), by="ana")
        assert await run.result(5) == "done"
    assert seen == [Decimal(12), Decimal(120)]
    assert desk.refunds == [("1", Decimal(12)), ("2", Decimal(120))]


async def test_what_was_approved_for_other_arguments_does_not_run(sqlite_url: str) -> None:
    desk = Desk()
    async with desk.asking(sqlite_url) as (h, run, request):
        await h.crash()
        with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as database:
            database.execute("UPDATE agentflow_approval SET args_digest = 'another'")
        database.close()
        await desk.app.approvals.decide(request.id, Approve(), by="ana")
        await h.restart()
        await h.idle()
        with pytest.raises(RunFailed, match=r"DigestMismatch.*was not made"):
            await run.result(5)
    assert desk.refunds == []


async def test_a_failing_call_withdraws_the_question_beside_it(sqlite_url: str) -> None:
    app = App("t")

    @tool(approval=True)
    async def pay() -> str:
        return "paid"

    @tool(retry=0)
    async def broken() -> str:
        raise OSError("no route")

    agent = Agent("support", model="openai:gpt-5-mini", tools=[pay, broken])
    app.add(agent)
    model = ScriptedModel([[call("pay"), call("broken")]])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(agent, "go")
        await h.idle()
        with pytest.raises(RunFailed, match="no route"):
            await run.result(5)
        assert (await app.approvals.list(status="pending")).data == []


async def test_a_tool_that_takes_the_step_waits_for_its_approval_too(sqlite_url: str) -> None:
    app, paid = App("t"), []

    @tool(approval=True)
    async def pay(amount: int, step: Step) -> str:
        return await step.run("pay", lambda: paid.append(amount) or f"paid {amount}")

    agent = Agent("support", model="openai:gpt-5-mini", tools=[pay])
    app.add(agent)
    model = ScriptedModel([call("pay", amount=3), "done"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(agent, "go")
        await h.idle()
        assert paid == []
        [request] = (await app.approvals.list(status="pending")).data
        await app.approvals.decide(request.id, Approve(), by="ana")
        assert await run.result(5) == "done"
    assert (paid, results_in(model.requests[1])) == ([3], ["paid 3"])


async def test_after_a_while_a_second_group_may_decide_too(database_url: str) -> None:
    desk = Desk(Approval(approvers=("manager",), escalate=("4h", ("director",))))
    director = Principal(id="dora", roles=("director",))
    async with desk.asking(database_url) as (h, run, request):
        await h.advance("3h")
        with pytest.raises(NotPermitted):
            await desk.app.approvals.decide(request.id, Approve(), by=director)
        assert (await desk.app.approvals.get(request.id)).approvers == ("manager",)
        await h.advance("1h")
        [shown] = (await desk.app.approvals.list(status="pending")).data
        assert shown.approvers == ("manager", "director")
        await desk.app.approvals.decide(request.id, Approve(), by=director)
        await h.idle()
        assert await run.result(5) == "done"
    assert desk.refunds == [("7", Decimal(12))]


async def test_who_started_the_run_does_not_decide_for_its_sub_agents_either(database_url: str) -> None:
    desk = Desk(Approval(bar_starter=True, min_approvals=2))
    outer = Agent("outer", model="openai:gpt-5-mini", tools=[desk.agent.as_tool("Refunds.")])
    desk.app.add(outer)
    desk.model.replies[:] = [
        call("support", prompt="Refund it."),
        call("refund", order_id="7", amount=12),
        "paid",
        "done",
    ]
    async with harness(desk.app, model=desk.model, database_url=database_url) as h:
        run = await desk.app.start(outer, "Refund it.", by=Principal(id="ana"))
        await h.idle()
        [request] = (await desk.app.approvals.list(status="pending")).data
        assert request.run_id != run.id
        with pytest.raises(NotPermitted):
            await desk.app.approvals.decide(request.id, Approve(), by="ana")
        for person in ("bob", "bob", "carl"):
            assert not desk.refunds
            await desk.app.approvals.decide(request.id, Approve(), by=person)
        await h.idle()
        assert await run.result(5) == "done"
        told = [(entry.who, entry.what, entry.after) for entry in (await desk.app.audit.list()).data]
    assert len(desk.refunds) == 1
    assert told == [
        ("ana", "approval.refused", None),
        ("bob", "approval.approve", "pending"),
        ("carl", "approval.approve", "approved"),
    ]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"escalate": ("4h", ("head",))}, "anybody may decide"),
        ({"approvers": ("boss",), "escalate": ("4d", ("head",))}, "the time is over"),
        ({"approvers": ("boss",), "escalate": ("4h", "head")}, "give a tuple"),
        ({"approvers": ("boss",), "escalate": ("soon", ("head",))}, "Escalation"),
        ({"approvers": ("boss",), "escalate": "head"}, "Escalation"),
        ({"timeout": "soon"}, r"Approval\(timeout='soon'\)"),
        ({"editable": "amount"}, "give a tuple of names"),
        ({"approvers": "boss"}, "give a tuple of ids"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Approval(**wrong)


@pytest.mark.parametrize(
    "given",
    [
        Respond(float("nan")),
        Respond({"at": [object()]}),
        Respond({1: "a key that is no text"}),
        Respond("half \ud83d"),
        Deny("none \x00"),
        Edit({"order_id": "\x00", "amount": 1}),
    ],
)
async def test_a_decision_that_cannot_be_kept_as_it_is_is_refused_and_the_request_stays(
    database_url: str, given: Any
) -> None:
    desk = Desk()
    async with desk.asking(database_url) as (_, _, request):
        decide = desk.app.approvals.decide
        with pytest.raises(InvalidInput, match=rf"{request.id}: the decision cannot be stored: at \$"):
            await decide(request.id, given, by="ana", args_digest=request.args_digest)
        with pytest.raises(InvalidInput, match="give the id of who decided"):
            await decide(request.id, Approve(), by=None)  # type: ignore[arg-type]
        assert await desk.app.approvals.get(request.id) == request
