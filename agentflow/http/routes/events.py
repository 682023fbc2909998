"""`/events`: send one event or up to 100, and see what they started."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Depends, Path, Query

from agentflow.codec import digest
from agentflow.errors import IdempotencyConflict, NotPermitted
from agentflow.events import Event, EventRecord
from agentflow.http.api import Api
from agentflow.http.problems import ProblemError
from agentflow.http.routes.starts import IdempotencyKey
from agentflow.http.schemas import Limit, OneOrMore, PageBody, RunSummary, SentBody, Text
from agentflow.principals import Principal


def add_routes(api: Api) -> None:
    write = api.permit("events:write")

    async def send_events(
        body: Annotated[OneOrMore, Body()],
        idempotency_key: IdempotencyKey = None,
        caller: Principal = Depends(write),
    ) -> SentBody:
        """Send one event, or up to 100 in one transaction."""
        events = [body] if isinstance(body, Event) else body
        for event in events:
            if event.name.startswith("agentflow/"):
                raise NotPermitted(
                    f"event {event.name!r}: names that begin with 'agentflow/' are the framework's own"
                )
        if idempotency_key is not None:
            return await _send_once(api, events, idempotency_key, caller)
        sent = await api.client.send(events, by=caller)
        return SentBody(event_ids=list(sent.event_ids), run_ids=list(sent.run_ids))

    async def list_events(
        name: Annotated[Text | None, Query()] = None,
        limit: Annotated[Limit, Query()] = 50,
        cursor: Annotated[Text | None, Query()] = None,
    ) -> PageBody[EventRecord]:
        """Events, newest first."""
        page = await api.client.events.list(name=name, limit=limit, cursor=cursor)
        return PageBody[EventRecord].of(page, list(page.data), limit=limit)

    async def get_event(event_id: Annotated[Text, Path()]) -> EventRecord:
        """One event."""
        return await api.client.events.get(event_id)

    async def list_event_runs(
        event_id: Annotated[Text, Path()],
        limit: Annotated[Limit, Query()] = 50,
        cursor: Annotated[Text | None, Query()] = None,
    ) -> PageBody[RunSummary]:
        """The runs of this app that an event started."""
        page = await api.client.events.runs(event_id, limit=limit, cursor=cursor)
        runs = [RunSummary.model_validate(run) for run in page.data if run.app == api.client.app]
        return PageBody[RunSummary].of(page, runs, limit=limit)

    read = api.permit("runs:read")
    api.add("POST", "/events", send_events, permit=write, status_code=202, tags=["events"])
    api.add("GET", "/events", list_events, permit=read, tags=["events"])
    api.add("GET", "/events/{event_id}", get_event, permit=read, tags=["events"])
    api.add("GET", "/events/{event_id}/runs", list_event_runs, permit=read, tags=["events"])


async def _send_once(api: Api, events: list[Event], key: str, caller: Principal) -> SentBody:
    """The key stands for the event's id, which deduplicates for as long; the first answer again, or a conflict."""
    if len(events) != 1 or events[0].id is not None:
        raise ProblemError(
            "idempotency_unsupported",
            "An Idempotency-Key goes with one event without an id. "
            "Else give each event an id: it deduplicates for 24 hours.",
        )
    [event] = events
    sent = await api.client.send(event.model_copy(update={"id": f"idempotency-key:{key}"}), by=caller)
    if sent.run_ids:
        return SentBody(event_ids=list(sent.event_ids), run_ids=list(sent.run_ids))
    [event_id] = sent.event_ids
    stored = await api.client.events.get(event_id)
    if (stored.name, digest(stored.data)) != (event.name, digest(event.data)):
        raise IdempotencyConflict(f"Idempotency-Key {key!r} was used for another event, {event_id}.")
    runs = await api.client.events.runs(event_id, limit=100)
    return SentBody(event_ids=[event_id], run_ids=sorted(run.id for run in runs.data))
