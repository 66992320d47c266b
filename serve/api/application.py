"""The ASGI application: all routes over the given services."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tandem import __version__
from tandem.serve.alerts import routes as alerts
from tandem.serve.api import error_responses
from tandem.serve.api.auth import include_with_key
from tandem.serve.api.routes import (
    adapters,
    artifacts,
    changes,
    datasets,
    downloads,
    health,
    history,
    inference,
    keys,
    logs,
    me,
    models,
    overview,
    queue,
    readiness,
    supervised_jobs,
    training_jobs,
    tree,
    versions,
)
from tandem.serve.api.services import Services
from tandem.serve.api.wire.errors import ErrorBody, HTTPValidationError
from tandem.serve.api.wire.requests import REQUEST_BODIES
from tandem.serve.finetuning import routes as finetuning
from tandem.serve.modelarts import routes as modelarts
from tandem.serve.observing import routes as observing
from tandem.serve.tinker.api import routes as tinker
from tandem.serve.trajectories import routes as trajectories
from tandem.serve.trajectories import token_routes
from tandem.serve.usage import routes as usage
from tandem.serve.wandb import routes as wandb
from tandem.serve.web import routes as web

_VALIDATION: Literal["validation"] = "validation"
PUBLISHED_OPERATION = ("/v1/preview/training-jobs", "post")
ERROR_RESPONSE = {
    "description": "Error",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
}

_V1 = (
    models,
    versions,
    tree,
    adapters,
    logs,
    downloads,
    datasets,
    training_jobs,
    artifacts,
    supervised_jobs,
    inference,
    keys,
    me,
    overview,
    changes,
    history,
    queue,
)


class Application(FastAPI):
    """FastAPI, with the parts of the OpenAPI document that it can't derive from the routes."""

    def openapi(self) -> dict[str, Any]:
        """Return FastAPI's document, plus the bodies that routes read themselves and the shape of errors.

        The operation that creates a job stays as published, with no error but 422.
        """
        if self.openapi_schema is None:
            document = super().openapi()
            requests: tuple[type[BaseModel], ...] = (
                *REQUEST_BODIES,
                *finetuning.REQUEST_BODIES,
                *modelarts.REQUEST_BODIES,
                *tinker.REQUEST_BODIES,
            )
            bodies: tuple[type[BaseModel], ...] = (*requests, HTTPValidationError, ErrorBody)
            own = [(body, _VALIDATION) for body in bodies]
            _, schemas = models_json_schema(own, ref_template="#/components/schemas/{model}")
            document["components"]["schemas"] |= schemas["$defs"]
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    if (path, method) != PUBLISHED_OPERATION:
                        operation["responses"].setdefault("default", ERROR_RESPONSE)
            self.openapi_schema = document
        return self.openapi_schema


def create_app(services: Services) -> Application:
    """Return the application. Every route under /v1 and /api/v1 requires a key; /health, /ready and the documentation
    don't."""
    app = Application(
        title="Tandem",
        version=__version__,
        description="Reinforcement learning of language-model agents: completions, training jobs, models.",
        docs_url=None,  # FastAPI's page loads its scripts from another site; serve/web has one that doesn't
        redoc_url=None,
        redirect_slashes=False,  # a redirected POST loses its body
    )
    app.state.services = services
    for routes in (*_V1, usage):
        include_with_key(app, routes.router)
    app.include_router(health.router)
    app.include_router(readiness.router)
    observing.add_routes(app)
    error_responses.install(app)
    alerts.add_routes(app)
    finetuning.add_routes(app)
    modelarts.add_routes(app)
    tinker.add_routes(app)
    wandb.add_routes(app)
    token_routes.add_routes(app)
    web.add_routes(app)
    trajectories.add_routes(app)
    return app
