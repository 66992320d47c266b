"""Adds this API to the application."""

from __future__ import annotations

from fastapi import FastAPI

from tandem.serve.api.auth import include_with_key
from tandem.serve.finetuning.api import files, graders, jobs, refused
from tandem.serve.finetuning.api.wire import REQUEST_BODIES

__all__ = ["REQUEST_BODIES", "add_routes"]


def add_routes(app: FastAPI) -> None:
    """Add the routes under /v1."""
    for routes in (files, jobs, graders, refused):
        include_with_key(app, routes.router)
