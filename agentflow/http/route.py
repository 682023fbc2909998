"""The route class of our router: strict bodies, and problems where the host has its own error pages."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from agentflow.http.bodies import JsonRequest
from agentflow.http.problems import answer_to


class AnyText(Convertor[str]):
    """`{id:agentflow_text}` in a path: what `path` is too, and line breaks, which a step's key may hold."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("agentflow_text", AnyText())


class AgentflowRoute(APIRoute):
    """Answers errors of this route, and of no other, with a problem."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        respond = super().get_route_handler()

        async def respond_or_explain(request: Request) -> Response:
            try:
                return await respond(JsonRequest(request.scope, request.receive))
            except Exception as error:
                return answer_to(error)

        return respond_or_explain

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().handle(scope, receive, send)
        except HTTPException as error:
            if error.status_code != 405:
                raise
            await answer_to(error)(scope, receive, send)


class NoSuchRoute(AgentflowRoute):
    """What is under our prefix and nothing else answers.

    It matches only in part, so that a route of the host that matches in full is preferred, wherever it stands.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        return (Match.PARTIAL if match is Match.FULL else match), child_scope
