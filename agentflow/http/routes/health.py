"""`/healthz` (open to everybody), `/readyz`, `/metrics`."""

from __future__ import annotations

import asyncio
import logging

from fastapi import Response

from agentflow.http.api import Api
from agentflow.http.problems import DATABASE_AWAY, ProblemError
from agentflow.http.schemas import HealthBody, ReadyBody

logger = logging.getLogger("agentflow.http")

READY_SECONDS = 3.0


def add_routes(api: Api) -> None:
    async def healthz() -> HealthBody:
        """The process answers."""
        return HealthBody()

    async def readyz() -> ReadyBody:
        """The database answers too."""
        client = api.client
        try:
            async with asyncio.timeout(READY_SECONDS):
                await client.store.queries.get_status("run_of_nobody")
        except Exception as error:
            logger.warning("the database does not answer", exc_info=error)
            raise ProblemError("unavailable", DATABASE_AWAY) from error
        return ReadyBody(worker="none" if client.local_worker is None else "running")

    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(_metrics(api), media_type="text/plain; version=0.0.4; charset=utf-8")

    known = api.permit(None)
    api.add("GET", "/healthz", healthz, permit=None, tags=["health"])
    api.add("GET", "/readyz", readyz, permit=known, tags=["health"])
    api.add("GET", "/metrics", metrics, permit=known, response_class=Response, tags=["health"])


def _metrics(api: Api) -> str:
    worker = api.client.local_worker
    gauges = {
        "agentflow_functions": ("Functions registered in this process.", len(api.registry)),
        "agentflow_worker_running": ("Whether this process has a worker.", int(worker is not None)),
        "agentflow_worker_runs": ("Runs in this process's memory.", getattr(worker, "running", 0)),
        "agentflow_http_streams": ("Event streams being sent.", api.streams.count),
    }
    return "".join(
        f"# HELP {name} {text}\n# TYPE {name} gauge\n{name} {value}\n"
        for name, (text, value) in gauges.items()
    )
