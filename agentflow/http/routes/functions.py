"""`/functions`, `/agents`: what can be started, with its schemas; pause a function, and resume it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from agentflow.http.api import Api
from agentflow.http.schemas import FunctionBody, FunctionList, Text


def add_routes(api: Api) -> None:
    async def list_functions() -> FunctionList:
        """All functions of the app, agents too."""
        return FunctionList(data=[FunctionBody.of(info) for info in await api.client.functions.list()])

    async def get_function(function_id: Annotated[Text, Path()]) -> FunctionBody:
        """A function's triggers, schemas and version."""
        return FunctionBody.of(await api.client.functions.get(function_id))

    async def list_agents() -> FunctionList:
        """The functions that are agents."""
        found = [FunctionBody.of(info) for info in await api.client.functions.list()]
        return FunctionList(data=[function for function in found if function.is_agent])

    async def pause_function(function_id: Annotated[Text, Path()]) -> FunctionBody:
        """Let the function's runs stay queued."""
        return FunctionBody.of(await api.client.functions.pause(function_id))

    async def resume_function(function_id: Annotated[Text, Path()]) -> FunctionBody:
        """Let the function's runs go on."""
        return FunctionBody.of(await api.client.functions.resume(function_id))

    change = api.permit("runs:write")
    pause, resume = (
        "/functions/{function_id:agentflow_text}/pause",
        "/functions/{function_id:agentflow_text}/resume",
    )
    api.add("POST", pause, pause_function, permit=change, tags=["functions"])
    api.add("POST", resume, resume_function, permit=change, tags=["functions"])
    permit = api.permit("runs:read")
    api.add("GET", "/functions", list_functions, permit=permit, tags=["functions"])
    api.add("GET", "/functions/{function_id:agentflow_text}", get_function, permit=permit, tags=["functions"])
    api.add("GET", "/agents", list_agents, permit=permit, tags=["functions"])
