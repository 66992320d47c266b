"""Adds this API to the application."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI

from tandem.serve.api.auth import authenticate
from tandem.serve.tinker.api import futures, models, sampling, sessions, training, weights
from tandem.serve.tinker.api.errors import SdkErrors
from tandem.serve.tinker.wire.requests import REQUEST_BODIES

__all__ = ["REQUEST_BODIES", "add_routes"]


def add_routes(app: FastAPI) -> None:
    """Add the routes under /api/v1."""
    v1 = APIRouter(prefix="/api/v1", dependencies=[Depends(authenticate)])
    for router in (sessions.router, models.router, training.router, weights.router, sampling.router, futures.router):
        v1.include_router(router)
    app.include_router(v1)
    app.add_middleware(SdkErrors)
