"""`/runs`: look at runs and their steps, follow one live, cancel it, do it again."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Body, Depends, Header, Path, Query, Request, Response

from agentflow.http.api import Api, path_of_run
from agentflow.http.problems import not_found
from agentflow.http.routes.starts import IdempotencyKey
from agentflow.http.schemas import (
    CancelBody,
    Limit,
    PageBody,
    RerunBody,
    RunSummary,
    StepBody,
    Text,
    parse_since,
)
from agentflow.http.sse import RunStream, resume_point
from agentflow.principals import Principal
from agentflow.runs import Run, RunStatus

RunId = Annotated[Text, Path()]
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "`Last-Event-ID` is that of `done`: there is no more"},
}


def add_routes(api: Api) -> None:
    change = api.permit("runs:write")

    async def list_runs(
        status: Annotated[list[RunStatus] | None, Query()] = None,
        function: Annotated[Text | None, Query()] = None,
        since: Annotated[datetime | None, Query()] = None,
        q: Annotated[Text | None, Query(description="The beginning of an id")] = None,
        limit: Annotated[Limit, Query()] = 50,
        cursor: Annotated[Text | None, Query()] = None,
    ) -> PageBody[RunSummary]:
        """Runs, newest first, without payloads."""
        page = await api.client.runs.list(
            status=status, function=function, since=parse_since(since), q=q, limit=limit, cursor=cursor
        )
        return PageBody[RunSummary].of(
            page, [RunSummary.model_validate(run) for run in page.data], limit=limit
        )

    async def get_run(run_id: RunId) -> Run:
        """A run with its input, its output and what it waits for."""
        return await api.find_run(run_id)

    async def list_steps(
        run_id: RunId,
        limit: Annotated[Limit, Query()] = 100,
        cursor: Annotated[Text | None, Query()] = None,
    ) -> PageBody[StepBody]:
        """A run's steps in their order, with attempts, times, cost, and what they wait for."""
        run = await api.find_run(run_id)
        page = await api.client.runs.steps(run_id, limit=limit, cursor=cursor)
        return PageBody[StepBody].of(
            page, [StepBody.of(step, run.waiting) for step in page.data], limit=limit
        )

    async def get_step(run_id: RunId, key: Annotated[Text, Path()]) -> StepBody:
        """One step, by its key."""
        run = await api.find_run(run_id)
        step = await api.client.store.queries.get_step(run_id, key)
        if step is None:
            raise not_found()
        return StepBody.of(step, run.waiting)

    async def stream_run(
        run_id: RunId,
        after: Annotated[int, Query(ge=0, lt=2**53, description="Begin after this sequence number")] = 0,
        last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
    ) -> Response:
        """What happens in the run, live; `id` is the sequence number to go on after."""
        run = await api.find_run(run_id)
        start = await resume_point(api.client, run, last_event_id=last_event_id, after=after)
        if start is None:
            return Response(status_code=204)
        return RunStream(api.client.runs.handle(run_id).stream(start), api.streams, api.stopping)

    async def cancel_run(run_id: RunId, body: Annotated[CancelBody | None, Body()] = None) -> Run:
        """End the run and its children. One that has ended is left as it is."""
        await api.find_run(run_id)
        return await api.client.runs.cancel(run_id, None if body is None else body.reason)

    async def rerun(
        request: Request,
        response: Response,
        run_id: RunId,
        body: Annotated[RerunBody | None, Body()] = None,
        idempotency_key: IdempotencyKey = None,
        caller: Principal = Depends(change),
    ) -> Run:
        """Do the run's work again, as a new run."""
        await api.find_run(run_id)
        asked = body or RerunBody()
        handle = await api.client.runs.rerun(
            run_id, asked.from_step, asked.data, idempotency_key=idempotency_key, by=caller
        )
        response.headers["Location"] = path_of_run(request, route=f"/runs/{run_id}/rerun", run_id=handle.id)
        return await api.client.runs.get(handle.id)

    read = api.permit("runs:read")
    api.add("GET", "/runs", list_runs, permit=read, tags=["runs"])
    api.add("GET", "/runs/{run_id}", get_run, permit=read, tags=["runs"])
    api.add("GET", "/runs/{run_id}/steps", list_steps, permit=read, tags=["runs"])
    api.add("GET", "/runs/{run_id}/steps/{key:agentflow_text}", get_step, permit=read, tags=["runs"])
    api.add(
        "GET",
        "/runs/{run_id}/stream",
        stream_run,
        permit=read,
        response_class=Response,
        responses=_STREAM,
        tags=["runs"],
    )
    api.add(
        "POST",
        "/runs/{run_id}/cancel",
        cancel_run,
        permit=change,
        status_code=202,
        tags=["runs"],
    )
    api.add(
        "POST",
        "/runs/{run_id}/rerun",
        rerun,
        permit=change,
        status_code=201,
        tags=["runs"],
    )
