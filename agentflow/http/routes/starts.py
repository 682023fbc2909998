"""`POST /functions/{id}/runs`, `POST /agents/{name}/runs`: start a run; wait for it, or stream it, if asked to."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any, Final

from fastapi import Body, Depends, Header, Path, Request, Response

from agentflow.errors import RunCancelled, RunFailed, RunSkipped
from agentflow.functions import Function, json_schema
from agentflow.handles import RunHandle
from agentflow.http.api import Api, path_of_run
from agentflow.http.auth import Permit
from agentflow.http.schemas import Text, self_contained
from agentflow.http.sse import RunStream
from agentflow.http.stopping import Stopping
from agentflow.principals import Principal
from agentflow.runs import Run

LONGEST_WAIT_SECONDS: Final = 120
AGENTS: Final = "agents/"

_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?:[,;]|$)", re.IGNORECASE)

Prefer = Annotated[
    str | None, Header(description="`wait=30`: answer with the output, if it comes in that many seconds")
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1, max_length=255, description="For 24 hours the same key gives the same run, started once"
    ),
]

_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": Run,
        "description": "`Prefer: wait`: the run has ended; or the stream of its events",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
}


def add_routes(api: Api) -> None:
    """One route per registered function, with its own schema, and one for those that only the database knows."""
    permit = api.permit("runs:write")
    for function in api.registry:
        _add(api, f"/functions/{function.id}/runs", function, permit)
        if function.is_agent and function.id.startswith(AGENTS):
            _add(api, f"/agents/{function.id.removeprefix(AGENTS)}/runs", function, permit)

    async def start_function(
        request: Request,
        response: Response,
        function_id: Annotated[Text, Path()],
        body: Any = Body(default=None),
        prefer: Prefer = None,
        idempotency_key: IdempotencyKey = None,
        caller: Principal = Depends(permit),
    ) -> Any:
        """Start a function by its id. The body is its input."""
        handle = await api.client.start(function_id, body, idempotency_key=idempotency_key, by=caller)
        return await _answer(
            api, request, response, handle, route=f"/functions/{function_id}/runs", prefer=prefer
        )

    async def start_agent(
        request: Request,
        response: Response,
        name: Annotated[Text, Path()],
        body: Any = Body(default=None),
        prefer: Prefer = None,
        idempotency_key: IdempotencyKey = None,
        caller: Principal = Depends(permit),
    ) -> Any:
        """Start an agent by its name. The body is its input."""
        handle = await api.client.start(AGENTS + name, body, idempotency_key=idempotency_key, by=caller)
        return await _answer(api, request, response, handle, route=f"/agents/{name}/runs", prefer=prefer)

    _add_start(api, "/functions/{function_id:agentflow_text}/runs", start_function, permit)
    _add_start(api, "/agents/{name}/runs", start_agent, permit)


def _add(api: Api, path: str, function: Function[Any, Any], permit: Permit) -> None:
    schema = self_contained(json_schema(function.input_codec))
    # `...` only where the schema asks for something: a function without an annotation takes no body too.
    body_of_function: Any = Body(default=... if schema else None, json_schema_extra=schema)

    async def start(
        request: Request,
        response: Response,
        body: Any = body_of_function,
        prefer: Prefer = None,
        idempotency_key: IdempotencyKey = None,
        caller: Principal = Depends(permit),
    ) -> Any:
        handle = await api.client.start(function, body, idempotency_key=idempotency_key, by=caller)
        return await _answer(api, request, response, handle, route=path, prefer=prefer)

    start.__doc__ = function.description or f"Start {function.id}."
    _add_start(api, path, start, permit, name="start", summary=f"Start {function.id}")


def _add_start(
    api: Api, path: str, endpoint: Callable[..., Awaitable[Any]], permit: Permit, **options: Any
) -> None:
    api.add(
        "POST",
        path,
        endpoint,
        permit=permit,
        status_code=202,
        response_model=Run,
        responses=_ANSWERS,
        tags=["runs"],
        **options,
    )


async def _answer(
    api: Api,
    request: Request,
    response: Response,
    handle: RunHandle[Any],
    *,
    route: str,
    prefer: str | None,
) -> Run | Response:
    location = path_of_run(request, route=route, run_id=handle.id)
    if _wants_stream(request):
        return RunStream(handle.stream(), api.streams, api.stopping, headers={"Location": location})
    response.headers["Location"] = location
    seconds = _seconds_to_wait(prefer)
    if seconds is not None:
        response.headers["Preference-Applied"] = f"wait={seconds}"
        await _wait_for_end(api.client.runs.handle(handle.id), seconds, api.stopping)
    run = await api.client.runs.get(handle.id)
    if seconds is not None and run.status.is_final:
        response.status_code = 200
    return run


async def _wait_for_end(handle: RunHandle[Any], seconds: int, stopping: Stopping) -> None:
    """However it ends: the run itself tells. A server that is to stop answers without it."""
    result = asyncio.ensure_future(handle.result(timeout=seconds))
    try:
        with stopping.watched() as stopped, suppress(RunFailed, RunCancelled, RunSkipped, TimeoutError):
            await asyncio.wait({result, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                result.result()
    finally:
        result.cancel()


def _wants_stream(request: Request) -> bool:
    accepted = ",".join(request.headers.getlist("accept"))
    kinds = [kind.partition(";")[0].strip().lower() for kind in accepted.split(",")]
    return "text/event-stream" in kinds


def _seconds_to_wait(prefer: str | None) -> int | None:
    found = _WAIT.search(prefer or "")
    return min(int(found[1]), LONGEST_WAIT_SECONDS) if found else None
