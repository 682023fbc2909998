"""agentflow in a FastAPI app: one line gives it the API, and a worker inside this process's lifespan.

uvicorn examples.api:api        http://127.0.0.1:8000/docs

Without `auth=` the API answers to this machine alone. With `AGENTFLOW_API_KEYS` in the environment, to its keys.
"""

from __future__ import annotations

import os

from fastapi import FastAPI

from agentflow.auth import ApiKeys
from examples.agents.review_gate import app as flow

api = FastAPI(title="Reviewed articles")
auth = ApiKeys.from_environment() if os.environ.get("AGENTFLOW_API_KEYS") else "dev"
api.include_router(flow.router(prefix="/agentflow", auth=auth))


@api.get("/")
async def home() -> dict[str, str]:
    """The host's own routes are as they were."""
    return {"api": "/agentflow", "docs": "/docs"}
