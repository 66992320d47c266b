"""Adds this API to the application."""

from __future__ import annotations

from fastapi import FastAPI

from tandem.serve.api.auth import include_with_key
from tandem.serve.modelarts.api import catalog, configs, envelope, jobs, logs
from tandem.serve.modelarts.api.bodies import REQUEST_BODIES

__all__ = ["REQUEST_BODIES", "add_routes"]


def add_routes(app: FastAPI) -> None:
    """Add the routes, after all others under /v1: their first path segment matches any project.

    Replaces the handler of HTTP errors by one that answers in the envelope for paths of this API.
    """
    for routes in (configs, jobs, logs, catalog):
        include_with_key(app, routes.router)
    envelope.install(app)
