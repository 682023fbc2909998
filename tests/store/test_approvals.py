"""Decisions: taken once, by whom it may, for exactly what was asked."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from agentflow.approvals import (
    ApprovalRules,
    ApprovalStatus,
    Approve,
    Decision,
    Deny,
    Edit,
    Respond,
    approval_digest,
)
from agentflow.audit import Audit
from agentflow.store.operation_types import Adopt, CancelRun, Decide, Finish, Suspend, WithdrawWait
from agentflow.store.outcome_types import DecisionResult
from agentflow.store.stored_types import RunKey, Status
from tests.migrated import execute
from tests.store.support import World, a_wait, an_approval, fresh

TIMEOUT = Decision(approved=False, reason="timeout").model_dump_json()


def a_decision(approval_id: str, decision: Any = None, *, by: str = "ana", **changes: Any) -> Decide:
    return Decide(
        fresh("decision"),
        approval_id,
        decision or Approve(),
        by,
        (),
        changes.pop("args_digest", None),
        None,
        2_000,
    )._replace(**changes)


async def ask(world: World, **changes: Any) -> tuple[RunKey, str]:
    key = await world.start()
    approval = an_approval(**changes)
    wait = a_wait("ask", "approval", approval.id, timeout_output=TIMEOUT)
    await world.wait(key, wait, approval=approval)
    return key, approval.id


async def outcome(world: World, key: RunKey) -> Decision:
    [step] = (await world.submit(Adopt(key, 1, 2_500))).steps
    assert step.ok is True
    return Decision.model_validate_json(step.output)


@pytest.mark.parametrize(
    ("decision", "status", "expected"),
    [
        (Approve(), "approved", Decision(approved=True, by="ana", comment="fine")),
        (
            Edit({"amount": 3}),
            "approved",
            Decision(approved=True, by="ana", comment="fine", edited={"amount": 3}),
        ),
        (Deny("too much"), "denied", Decision(approved=False, by="ana", comment="too much", reason="denied")),
        (
            Respond({"paid": 0}),
            "responded",
            Decision(approved=False, by="ana", comment="fine", value={"paid": 0}),
        ),
    ],
)
async def test_a_decision_settles_the_request_and_the_step(
    world: World, decision: Any, status: str, expected: Decision
) -> None:
    key, approval_id = await ask(world)
    await world.submit(Suspend(key, 0, Status.WAITING, 9_000))
    decided = await world.submit(a_decision(approval_id, decision, comment="fine"))
    assert (decided.result, decided.request.status) == (DecisionResult.TAKEN, status)
    assert decided.request.decisions[0].by == "ana"
    claimed = await world.claim_one(now=2_000)
    assert Decision.model_validate_json(claimed.steps[0].output or "") == expected


async def test_fifty_decisions_at_once_have_one_winner(world: World) -> None:
    key, approval_id = await ask(world)
    decisions = [a_decision(approval_id, by=f"person-{n}") for n in range(50)]
    results = [(await future).result for future in [world.store.submit(one) for one in decisions]]
    assert sorted(results) == [DecisionResult.ALREADY_DECIDED] * 49 + [DecisionResult.TAKEN]
    assert (await outcome(world, key)).by == decisions[results.index(DecisionResult.TAKEN)].by


async def test_a_decision_played_again_gives_its_first_answer(world: World) -> None:
    _, approval_id = await ask(world)
    decision = a_decision(approval_id)
    first = await world.submit(decision)
    assert await world.submit(decision) == first


async def test_several_people_have_to_agree_and_the_same_one_counts_once(world: World) -> None:
    key, approval_id = await ask(world, min_approvals=2)
    for _ in range(2):
        decided = await world.submit(a_decision(approval_id, by="ana"))
        assert (decided.result, decided.request.status) == (DecisionResult.NEEDS_MORE, ApprovalStatus.PENDING)
        assert len(decided.request.decisions) == 1
    assert (await world.submit(a_decision(approval_id, by="bob"))).result is DecisionResult.TAKEN
    assert (await outcome(world, key)).by == "bob"


async def test_an_edit_makes_earlier_approvals_and_digests_stale(world: World) -> None:
    key, approval_id = await ask(world, min_approvals=2)
    await world.submit(a_decision(approval_id, by="ana", args_digest="digest"))
    edited = await world.submit(a_decision(approval_id, Edit({"amount": 3}), by="bob", args_digest="digest"))
    assert edited.result is DecisionResult.NEEDS_MORE
    digest = approval_digest(tool="refund", args={"amount": 3}, title="Refund?", details=None)
    assert edited.request.args_digest == digest
    stale = await world.submit(a_decision(approval_id, by="eve", args_digest="digest"))
    assert stale.result is DecisionResult.DIGEST_MISMATCH
    assert (
        await world.submit(a_decision(approval_id, by="eve", args_digest=digest))
    ).result is DecisionResult.TAKEN
    assert (await outcome(world, key)).edited == {"amount": 3}


async def test_who_agreed_before_an_edit_may_agree_to_it_too(world: World) -> None:
    key, approval_id = await ask(world, min_approvals=2, approvers=("ana", "bob"))
    await world.submit(a_decision(approval_id, by="ana"))
    edited = await world.submit(a_decision(approval_id, Edit({"amount": 3}), by="bob"))
    assert (edited.result, edited.request.status) == (DecisionResult.NEEDS_MORE, ApprovalStatus.PENDING)
    again = await world.submit(a_decision(approval_id, by="bob"))
    assert (again.result, len(again.request.decisions)) == (DecisionResult.NEEDS_MORE, 2)
    agreed = await world.submit(a_decision(approval_id, by="ana", args_digest=edited.request.args_digest))
    assert (agreed.result, agreed.request.status) == (DecisionResult.TAKEN, ApprovalStatus.APPROVED)
    assert (await outcome(world, key)).edited == {"amount": 3}


async def test_an_edit_where_there_is_no_tool_makes_earlier_digests_stale_too(world: World) -> None:
    _, approval_id = await ask(world, tool=None, args=None, min_approvals=2)
    await world.submit(a_decision(approval_id, Edit({"amount": 3}), by="bob", args_digest="digest"))
    unseen = await world.submit(a_decision(approval_id, by="ana", args_digest="digest"))
    assert (unseen.result, unseen.request.status) == (DecisionResult.DIGEST_MISMATCH, ApprovalStatus.PENDING)
    seen = await world.submit(a_decision(approval_id, by="ana", args_digest=unseen.request.args_digest))
    assert seen.result is DecisionResult.TAKEN


@pytest.mark.parametrize("other", [Deny("I was wrong"), Respond(1), Edit({"amount": 4})])
async def test_another_decision_of_the_same_person_is_refused_and_changes_nothing(
    world: World, other: Any
) -> None:
    _, approval_id = await ask(world, min_approvals=2)
    first = await world.submit(a_decision(approval_id, by="ana"))
    second = await world.submit(a_decision(approval_id, other, by="ana"))
    assert second == (DecisionResult.ALREADY_DECIDED, first.request)
    assert (await world.submit(a_decision(approval_id, Deny(None), by="bob"))).result is DecisionResult.TAKEN


@pytest.mark.parametrize(
    ("editable", "args", "result"),
    [
        (("amount",), {"amount": 3, "to": "ana"}, DecisionResult.TAKEN),
        (("amount",), {"amount": 3, "to": "eve"}, DecisionResult.NOT_EDITABLE),
        (("amount",), {"amount": 3}, DecisionResult.NOT_EDITABLE),
        (("amount",), {"amount": 5, "to": "ana", "note": "x"}, DecisionResult.NOT_EDITABLE),
        ((), {"amount": 5, "to": "ana"}, DecisionResult.TAKEN),
        ((), {"amount": "5", "to": "ana"}, DecisionResult.NOT_EDITABLE),
    ],
)
async def test_only_editable_arguments_may_change(
    world: World, editable: tuple[str, ...], args: dict[str, Any], result: DecisionResult
) -> None:
    _, approval_id = await ask(world, editable=editable)
    assert (await world.submit(a_decision(approval_id, Edit(args)))).result is result


async def test_only_approvers_decide_by_id_or_role(world: World) -> None:
    _, approval_id = await ask(world, approvers=("boss", "finance"))
    refused = await world.submit(a_decision(approval_id, by="ana", roles=("sales",)))
    assert (refused.result, refused.request.status) == (DecisionResult.NOT_PERMITTED, ApprovalStatus.PENDING)
    assert (
        await world.submit(a_decision(approval_id, by="ana", roles=("finance",)))
    ).result is DecisionResult.TAKEN


async def test_a_wrong_digest_and_an_unknown_id_are_refused(world: World) -> None:
    _, approval_id = await ask(world)
    wrong = await world.submit(a_decision(approval_id, args_digest="other"))
    assert (wrong.result, wrong.request.status) == (DecisionResult.DIGEST_MISMATCH, ApprovalStatus.PENDING)
    unknown = await world.submit(a_decision("nothing"))
    assert (unknown.result, unknown.request) == (DecisionResult.NOT_FOUND, None)


async def test_a_decision_after_its_time_denies(world: World) -> None:
    key, approval_id = await ask(world)
    await world.submit(Suspend(key, 0, Status.WAITING, 9_000))
    late = await world.submit(a_decision(approval_id, now=9_000))
    assert (late.result, late.request.status) == (DecisionResult.EXPIRED, ApprovalStatus.EXPIRED)
    claimed = await world.claim_one(now=9_000)
    assert claimed.steps[0].output == TIMEOUT


async def test_a_claim_at_the_deadline_expires_the_request(world: World) -> None:
    key, approval_id = await ask(world)
    await world.submit(Suspend(key, 0, Status.WAITING, 9_000))
    assert (await world.claim_one(now=9_000)).steps[0].output == TIMEOUT
    request = await world.store.queries.get_approval(approval_id)
    assert request is not None
    assert request.status is ApprovalStatus.EXPIRED


async def test_the_end_of_a_wait_or_run_cancels_its_pending_request(world: World) -> None:
    withdrawn_key, withdrawn = await ask(world)
    await world.submit(WithdrawWait(withdrawn_key, "ask", 1_900))
    finished_key, finished = await ask(world)
    await world.submit(Finish(finished_key, Status.FAILED, None, "{}", None, 1_900))
    cancelled_key, cancelled = await ask(world)
    await world.submit(Suspend(cancelled_key, 0, Status.WAITING, 9_000))
    await world.submit(CancelRun(cancelled_key.run_id, None, 1_900))
    for approval_id in (withdrawn, finished, cancelled):
        decided = await world.submit(a_decision(approval_id))
        assert (decided.result, decided.request.status) == (DecisionResult.EXPIRED, ApprovalStatus.CANCELLED)


async def test_requests_are_listed_oldest_first(world: World) -> None:
    ids = [(await ask(world, requested_at=1_300 + n))[1] for n in range(3)]
    await world.submit(a_decision(ids[1]))
    pending = await world.store.queries.list_approvals(status="pending")
    assert [request.id for request in pending.data] == [ids[0], ids[2]]
    first = await world.store.queries.list_approvals(limit=2)
    rest = await world.store.queries.list_approvals(limit=2, cursor=first.cursor)
    assert [request.id for page in (first, rest) for request in page.data] == ids


async def test_others_may_decide_too_after_a_while(world: World) -> None:
    rules = ApprovalRules(escalates_at=5_000, escalates_to=("head",)).model_dump_json()
    _, approval_id = await ask(world, approvers=("boss",), policy=rules)
    early = await world.submit(a_decision(approval_id, by="ana", roles=("head",), now=4_999))
    assert (early.result, early.request.approvers) == (DecisionResult.NOT_PERMITTED, ("boss",))
    shown = await world.store.queries.get_approval(approval_id, now=5_000)
    assert shown is not None
    assert shown.approvers == ("boss", "head")
    late = await world.submit(a_decision(approval_id, by="ana", roles=("head",), now=5_000))
    assert (late.result, late.request.status) == (DecisionResult.TAKEN, ApprovalStatus.APPROVED)


@pytest.mark.parametrize("decider", ["boss", "ana"])
async def test_who_started_the_run_may_be_barred(world: World, decider: str) -> None:
    key = await world.start(started_by="boss")
    approval = an_approval(
        approvers=("boss", "ana"), policy=ApprovalRules(bars_starter=True).model_dump_json()
    )
    await world.wait(key, a_wait("ask", "approval", approval.id, timeout_output=TIMEOUT), approval=approval)
    result = (await world.submit(a_decision(approval.id, by=decider))).result
    assert result is (DecisionResult.NOT_PERMITTED if decider == "boss" else DecisionResult.TAKEN)


async def test_every_decision_refusal_and_expiry_is_in_the_audit_log_once(world: World) -> None:
    _, first = await ask(world, approvers=("ana", "bob"), min_approvals=2)
    await world.submit(a_decision(first, by="carl"))
    decision = a_decision(first)
    await world.submit(decision)
    await world.submit(decision)  # played again
    await world.submit(a_decision(first, Edit({"amount": 3, "to": "ana"}), by="bob"))
    _, second = await ask(world)
    await world.submit(a_decision(second, now=9_000))
    audit = Audit(world.store)
    told = [(entry.subject, entry.who, entry.what) for entry in (await audit.list()).data]
    assert told == [
        (first, "carl", "approval.refused"),
        (first, "ana", "approval.approve"),
        (first, "bob", "approval.edit"),
        (second, "agentflow", "approval.expired"),
    ]
    edit = (await audit.list(subject=first)).data[2]
    assert (edit.n, edit.before, edit.after) == (2, '{"amount":5,"to":"ana"}', '{"amount":3,"to":"ana"}')
    assert edit.digest == approval_digest(
        tool="refund", args={"amount": 3, "to": "ana"}, title="", details=None
    )
    assert await audit.first_fault() is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("UPDATE agentflow_audit SET who = 'nobody' WHERE n = 1", 1),
        ("DELETE FROM agentflow_audit WHERE n = 1", 2),
        ("DELETE FROM agentflow_audit WHERE n = 0", 1),
    ],
)
async def test_an_entry_that_somebody_changed_is_found(
    world: World, ready_url: str, change: str, fault: int
) -> None:
    for _ in range(3):
        _, approval_id = await ask(world)
        await world.submit(a_decision(approval_id))
    audit = Audit(world.store)
    assert await audit.first_fault() is None
    if ready_url.startswith("sqlite"):
        with closing(sqlite3.connect(ready_url.removeprefix("sqlite:///"))) as database, database:
            database.execute(change)
    else:
        await execute(ready_url, change)
    assert await audit.first_fault() == fault
