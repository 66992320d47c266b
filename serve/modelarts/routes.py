"""Adds this API to the application."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI

from tandem.serve.api.auth import authenticate
from tandem.serve.modelarts.api import catalog, configs, envelope, jobs, logs
from tandem.serve.modelarts.api.bodies import REQUEST_BODIES

__all__ = ["REQUEST_BODIES", "add_routes"]


def add_routes(app: FastAPI) -> None:
    """Add the routes, after all others under /v1: their first path segment matches any project.

    Replaces the handler of HTTP errors by one that answers in the envelope for paths of this API.
    """
    v1 = APIRouter(prefix="/v1", dependencies=[Depends(authenticate)])
    for router in (configs.router, jobs.router, logs.router, catalog.router):
        v1.include_router(router)
    app.include_router(v1)
    envelope.install(app)
