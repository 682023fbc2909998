"""`make_router`: the FastAPI router of an App."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

from fastapi import APIRouter, Depends

from agentflow.client import Client
from agentflow.functions import Registry
from agentflow.http.api import Api
from agentflow.http.auth import authenticator
from agentflow.http.problems import not_found, openapi_responses
from agentflow.http.route import AgentflowRoute, NoSuchRoute
from agentflow.http.routes import approvals, events, functions, health, runs, signals, starts

_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


def make_router(
    *,
    prefix: str,
    auth: Any,
    registry: Registry,
    client: Callable[[], Client],
    lifespan: Callable[[], AbstractAsyncContextManager[Any]],
) -> APIRouter:
    """A router with the HTTP API. `include_router` joins its lifespan to the host's: begun after it, ended before it.

    `client` gives the client of the opened App, `lifespan` opens it. Raises `ConfigurationError` for a bad `auth`.
    """
    router = APIRouter(
        prefix=prefix,
        lifespan=_ignoring_the_host(lifespan),
        route_class=AgentflowRoute,
        responses=openapi_responses(),
    )
    api = Api(router, registry, authenticator(auth), client)
    for routes in (functions, starts, events, runs, signals, approvals, health):
        routes.add_routes(api)
    if prefix:  # without one, what is not ours is the host's to answer
        _add_the_rest(api)
    return router


def _add_the_rest(api: Api) -> None:
    async def nothing_here() -> None:
        raise not_found()

    api.router.add_api_route(
        "/{path:agentflow_text}",
        nothing_here,
        methods=_METHODS,
        dependencies=[Depends(api.permit(None))],
        route_class_override=NoSuchRoute,
        include_in_schema=False,
    )


def _ignoring_the_host(
    lifespan: Callable[[], AbstractAsyncContextManager[Any]],
) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def with_host(_: Any) -> AsyncIterator[None]:
        async with lifespan():
            yield

    return with_host
