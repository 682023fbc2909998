"""A FastAPI application of one router alone: what `agentflow dev` serves. Other applications include the router."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI


def standalone(router: APIRouter, *, title: str) -> FastAPI:
    """The application; the router's lifespan is its own, `/docs` shows the routes."""
    application = FastAPI(title=title)
    application.include_router(router)
    return application
