"""Adds this API to the application."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI
from pydantic import BaseModel

from tandem.serve.api.auth import authenticate
from tandem.serve.tinker.api import futures, models, sampling, sessions, training, weights
from tandem.serve.tinker.api.errors import SdkErrors
from tandem.serve.tinker.api.rest import archives, checkpoints, console, run_states, runs, session_lists, tokenizers
from tandem.serve.tinker.wire import requests, rest

__all__ = ["REQUEST_BODIES", "add_routes"]
REQUEST_BODIES: tuple[type[BaseModel], ...] = (*requests.REQUEST_BODIES, *rest.REQUEST_BODIES)
_SDK = (
    *(sessions, models, training, weights, sampling, futures),
    *(runs, checkpoints, archives, session_lists, tokenizers, console),
)


def add_routes(app: FastAPI) -> None:
    """Add the routes under /api/v1, and those beside it that the page and downloads need."""
    v1 = APIRouter(prefix="/api/v1", dependencies=[Depends(authenticate)])
    for routes in _SDK:
        v1.include_router(routes.router)
    app.include_router(v1)
    app.include_router(archives.open_router)
    people = APIRouter(prefix="/v1", dependencies=[Depends(authenticate)])
    people.include_router(run_states.router)
    app.include_router(people)
    app.add_middleware(SdkErrors)
