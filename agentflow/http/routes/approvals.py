"""`/approvals`: what waits for a person, and the person's decision. Who decides is known from authentication alone."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Query

from agentflow.approvals import ApprovalRequest, ApprovalStatus
from agentflow.http.api import Api
from agentflow.http.problems import ProblemError
from agentflow.http.schemas import DecisionBody, Limit, PageBody, Text
from agentflow.principals import Principal

ApprovalId = Annotated[Text, Path()]


def add_routes(api: Api) -> None:
    decide = api.permit("approvals:decide")

    async def list_approvals(
        status: Annotated[ApprovalStatus | None, Query()] = None,
        run: Annotated[Text | None, Query()] = None,
        limit: Annotated[Limit, Query()] = 50,
        cursor: Annotated[Text | None, Query()] = None,
    ) -> PageBody[ApprovalRequest]:
        """Requests for a decision, oldest first."""
        page = await api.client.approvals.list(status=status, run=run, limit=limit, cursor=cursor)
        own = await _runs_of_this_app(api, {request.run_id for request in page.data})
        return PageBody[ApprovalRequest].of(
            page, [item for item in page.data if item.run_id in own], limit=limit
        )

    async def get_approval(approval_id: ApprovalId) -> ApprovalRequest:
        """One request, with the `args_digest` that a decision gives back."""
        return await api.find_approval(approval_id)

    async def decide_approval(
        approval_id: ApprovalId, body: DecisionBody, person: Principal = Depends(decide)
    ) -> ApprovalRequest:
        """Decide, once: of all who try, one succeeds."""
        await api.find_approval(approval_id)
        if body.args_digest is None:
            raise ProblemError(
                "digest_required",
                "Send the args_digest of the approval as you read it: it says what you decide about.",
            )
        return await api.client.approvals.decide(
            approval_id, body.as_decision(), by=person, args_digest=body.args_digest, comment=body.comment
        )

    read = api.permit("runs:read")
    api.add("GET", "/approvals", list_approvals, permit=read, tags=["approvals"])
    api.add("GET", "/approvals/{approval_id}", get_approval, permit=read, tags=["approvals"])
    api.add("POST", "/approvals/{approval_id}/decision", decide_approval, permit=decide, tags=["approvals"])


async def _runs_of_this_app(api: Api, run_ids: set[str]) -> set[str]:
    found = [await api.client.store.queries.get_run(run_id) for run_id in run_ids]
    return {run.id for run in found if run is not None and run.app == api.client.app}
