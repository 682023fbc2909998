"""A person's decision on an approval: taken once, for exactly what was asked."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from agentflow.approvals import (
    ApprovalRequest,
    ApprovalRules,
    Approve,
    Decision,
    DecisionInput,
    Deny,
    Edit,
    Respond,
    approval_digest,
)
from agentflow.codec import canonical_json
from agentflow.store.operation_types import Decide
from agentflow.store.operations.audit import note
from agentflow.store.operations.delivery import deliver
from agentflow.store.outcome_types import Decided, DecisionResult
from agentflow.store.records import approval_request
from agentflow.store.statements import core as sql
from agentflow.store.stored_types import Micros
from agentflow.store.transaction import Transaction, Work


def decide(tx: Transaction, op: Decide) -> Work[Decided]:
    """Take a decision: check it against the row the server issued, store it, and wake the run if that settles it."""
    owner = yield sql.READ_APPROVAL_RUN, {"id": op.approval_id}
    if not owner:
        return Decided(DecisionResult.NOT_FOUND, None)
    yield sql.LOCK_RUN, {"id": owner[0][0]}
    [row] = yield sql.READ_APPROVAL, {"id": op.approval_id}
    asked = _Asked.from_row(row, op.now)
    for known in asked.decisions:
        if known["id"] == op.id:
            return Decided(DecisionResult(known["result"]), asked.request)
    if asked.request.status == "pending" and asked.expires_at <= op.now:
        yield from deliver(tx, asked.request.run_id, asked.request.step_key, op.now, None)
        yield sql.CLOSE_APPROVAL, {"to": "expired", "now": op.now, "approval": op.approval_id}
        [row] = yield sql.READ_APPROVAL, {"id": op.approval_id}
        asked = _Asked.from_row(row, op.now)
    refusal = _refuse(asked, op)
    if refusal is None and asked.rules.bars_starter:
        starters = yield sql.READ_STARTER, {"id": asked.request.run_id}
        refusal = DecisionResult.NOT_PERMITTED if (op.by,) in map(tuple, starters) else None
    if refusal is not None:
        if refusal is DecisionResult.NOT_PERMITTED:
            yield from note(at=op.now, who=op.by, what="approval.refused", subject=op.approval_id)
        return Decided(refusal, asked.request)
    # What was said about other arguments, before an edit, is void: the same person may, and has to, say it anew.
    if any(known["by"] == op.by and not known.get("stale") for known in asked.decisions):
        again = (
            DecisionResult.NEEDS_MORE
            if _says_the_same(asked, op.decision)
            else DecisionResult.ALREADY_DECIDED
        )
        return Decided(again, asked.request)
    return (yield from _take(tx, asked, op))


class _Asked(NamedTuple):
    """An approval with what its record does not show."""

    row: dict[str, Any]
    request: ApprovalRequest
    decisions: list[dict[str, Any]]
    expires_at: int

    @classmethod
    def from_row(cls, row: Any, now: Micros) -> _Asked:
        named = {column.key: value for column, value in zip(sql.APPROVAL_COLUMNS, row, strict=True)}
        return cls(named, approval_request(named, now), json.loads(named["decisions"]), named["expires_at"])

    @property
    def rules(self) -> ApprovalRules:
        return ApprovalRules.model_validate_json(self.row["policy"])

    @property
    def args(self) -> dict[str, Any] | None:
        """The arguments as they would run now."""
        return self.request.edited_args if self.request.edited_args is not None else self.request.args

    @property
    def editable(self) -> tuple[str, ...] | None:
        return None if self.row["editable"] is None else tuple(json.loads(self.row["editable"]))


def _refuse(asked: _Asked, op: Decide) -> DecisionResult | None:
    """Why the decision may not be taken."""
    request = asked.request
    if request.approvers and not {op.by, *op.roles} & set(request.approvers):
        return DecisionResult.NOT_PERMITTED
    if request.status in ("expired", "cancelled"):
        return DecisionResult.EXPIRED
    if request.status != "pending":
        return DecisionResult.ALREADY_DECIDED
    if op.args_digest is not None and op.args_digest != request.args_digest:
        return DecisionResult.DIGEST_MISMATCH
    if isinstance(op.decision, Edit) and not _may_edit(asked, op.decision.args):
        return DecisionResult.NOT_EDITABLE
    return None


def _may_edit(asked: _Asked, edited: dict[str, Any]) -> bool:
    allowed = asked.editable
    if allowed is None:
        return True
    before = asked.args or {}
    missing = object()
    changed = {
        name
        for name in before.keys() | edited.keys()
        if not _same(before.get(name, missing), edited.get(name, missing), missing)
    }
    return changed <= set(allowed)


def _says_the_same(asked: _Asked, decision: DecisionInput) -> bool:
    """Whether it agrees to what this person has agreed to already."""
    match decision:
        case Approve():
            return True
        case Edit(args=args):
            return canonical_json(args) == canonical_json(asked.args)
        case _:
            return False


def _same(left: object, right: object, missing: object) -> bool:
    if left is missing or right is missing:
        return left is right
    return canonical_json(left) == canonical_json(right)


def _take(tx: Transaction, asked: _Asked, op: Decide) -> Work[Decided]:
    """Store the decision; when it is the last one needed, resolve the wait."""
    request, decision = asked.request, op.decision
    edited, digest, earlier = asked.row["edited_args"], request.args_digest, asked.decisions
    if isinstance(decision, Edit):
        edited = canonical_json(decision.args)
        digest = approval_digest(
            tool=request.tool, args=decision.args, title=request.title, details=request.details
        )
        # Who approved before did so for other arguments.
        earlier = [{**known, "stale": True} for known in earlier]
    entry: dict[str, Any] = {
        "id": op.id,
        "kind": decision.kind,
        "by": op.by,
        "comment": op.comment,
        "at": op.now,
    }
    entry["message"] = decision.message if isinstance(decision, Deny) else None
    entry["value"] = decision.value if isinstance(decision, Respond) else None
    approving = 1 + sum(1 for known in earlier if not known.get("stale"))
    settled = isinstance(decision, Deny | Respond) or approving >= request.min_approvals
    entry["result"] = str(DecisionResult.TAKEN if settled else DecisionResult.NEEDS_MORE)
    yield (
        sql.SAVE_DECISION,
        {
            "to": _status_after(decision) if settled else "pending",
            "all": json.dumps([*earlier, entry], ensure_ascii=False),
            "edited": edited,
            "new_digest": digest,
            "at": op.now if settled else None,
            "approval": op.approval_id,
        },
    )
    yield from note(
        at=op.now,
        who=op.by,
        what=f"approval.{decision.kind}",
        subject=op.approval_id,
        digest=digest,
        before=asked.row["args"] if asked.row["edited_args"] is None else asked.row["edited_args"],
        after=edited if isinstance(decision, Edit) else _status_after(decision) if settled else "pending",
    )
    if settled:
        outcome = _outcome(op, None if edited is None else json.loads(edited))
        yield from deliver(tx, request.run_id, request.step_key, op.now, (True, outcome, None))
    [row] = yield sql.READ_APPROVAL, {"id": op.approval_id}
    return Decided(DecisionResult(entry["result"]), _Asked.from_row(row, op.now).request)


def _status_after(decision: DecisionInput) -> str:
    return {"approve": "approved", "edit": "approved", "deny": "denied", "respond": "responded"}[
        decision.kind
    ]


def _outcome(op: Decide, edited: dict[str, Any] | None) -> str:
    """What the step returns: a `Decision`, as JSON."""
    decision = op.decision
    comment = op.comment
    if isinstance(decision, Deny) and decision.message is not None:
        comment = decision.message  # what the model is told
    return Decision(
        approved=isinstance(decision, Approve | Edit),
        by=op.by,
        comment=comment,
        edited=edited if isinstance(decision, Approve | Edit) else None,
        value=decision.value if isinstance(decision, Respond) else None,
        reason="denied" if isinstance(decision, Deny) else None,
    ).model_dump_json()
