"""`Api`: what all route modules share, and how they add a route with its scope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request

from agentflow.approvals import ApprovalRequest
from agentflow.client import Client
from agentflow.errors import ConfigurationError
from agentflow.functions import Registry
from agentflow.http.auth import Authenticate, Permit, permission
from agentflow.http.bodies import refuse_unreadable_body
from agentflow.http.problems import ProblemError, not_found
from agentflow.http.stopping import Stopping
from agentflow.runs import Run

Method = Literal["GET", "POST"]


@dataclass
class OpenStreams:
    """How many streams are being sent."""

    count: int = 0


@dataclass(frozen=True)
class Api:
    """The router under construction, and the client it will have once the App is open."""

    router: APIRouter
    registry: Registry
    authenticate: Authenticate
    get_client: Callable[[], Client]
    streams: OpenStreams = field(default_factory=OpenStreams)
    stopping: Stopping = field(default_factory=Stopping)

    @property
    def client(self) -> Client:
        try:
            return self.get_client()
        except ConfigurationError as error:
            raise ProblemError("unavailable", str(error)) from error

    def permit(self, scope: str | None) -> Permit:
        return permission(self.authenticate, scope)

    def add(
        self,
        method: Method,
        path: str,
        endpoint: Callable[..., Any],
        *,
        permit: Permit | None,
        **options: Any,
    ) -> None:
        """Add a route. Without `permit` it is open to everybody."""
        # In this order: who, may they, and only then what is wrong with what they sent.
        dependencies = [] if permit is None else [Depends(permit), Depends(refuse_unreadable_body)]
        self.router.add_api_route(path, endpoint, methods=[method], dependencies=dependencies, **options)

    async def find_run(self, run_id: str) -> Run:
        """A run of this app; one of another app in the same database is not there."""
        run = await self.client.runs.get(run_id)
        if run.app != self.client.app:
            raise not_found()
        return run

    async def find_approval(self, approval_id: str) -> ApprovalRequest:
        """An approval that a run of this app asked for."""
        request = await self.client.approvals.get(approval_id)
        await self.find_run(request.run_id)
        return request


def path_of_run(request: Request, *, route: str, run_id: str) -> str:
    """The path of a run as this caller reaches it, whatever our router is mounted under.

    `route` is the path of the route that was called, as our router knows it.
    """
    path: str = request.scope["path"]
    root: str = request.scope.get("root_path", "").rstrip("/")
    base = path.removesuffix(route)
    if root and not base.startswith(root):  # a proxy took it away, the host put it into its root_path
        base = root + base
    return f"{quote(base)}/runs/{quote(run_id)}"
