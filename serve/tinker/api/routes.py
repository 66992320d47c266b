"""Adds this API to the application."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel

from tandem.serve.api.auth import include_with_key
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
    for routes in _SDK:
        include_with_key(app, routes.router, "/api/v1")
    app.include_router(archives.open_router)
    include_with_key(app, run_states.router)
    app.add_middleware(SdkErrors)
