"""Adds this API to the application."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI

from tandem.serve.api.auth import authenticate
from tandem.serve.finetuning.api import files, graders, jobs, refused
from tandem.serve.finetuning.api.wire import REQUEST_BODIES

__all__ = ["REQUEST_BODIES", "add_routes"]


def add_routes(app: FastAPI) -> None:
    """Add the routes under /v1."""
    v1 = APIRouter(prefix="/v1", dependencies=[Depends(authenticate)])
    for router in (files.router, jobs.router, graders.router, refused.router):
        v1.include_router(router)
    app.include_router(v1)
