"""The ASGI application: all routes over the services that it is given."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic.json_schema import models_json_schema
from starlette.concurrency import run_in_threadpool

from tandem import __version__
from tandem.serve import error_responses, inference, keys, models, training_jobs
from tandem.serve.auth import authenticate
from tandem.serve.errors import UnavailableError
from tandem.serve.payloads import disk_fault
from tandem.serve.schemas import REQUEST_BODIES, ErrorBody, Health, HTTPValidationError
from tandem.serve.services import Services, ServicesDep

logger = logging.getLogger(__name__)
STATUS_DEADLINE_S = 5.0
PUBLISHED_OPERATION = ("/v1/preview/training-jobs", "post")
ERROR_RESPONSE = {
    "description": "Error",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
}


def create_app(services: Services) -> FastAPI:
    """The application. Every route under /v1 needs a key; /health and the documentation don't."""
    app = FastAPI(
        title="Tandem",
        version=__version__,
        description="Reinforcement learning of language-model agents: completions, training jobs, models.",
        redirect_slashes=False,  # a redirected POST loses its body
    )
    app.state.services = services
    v1 = APIRouter(prefix="/v1", dependencies=[Depends(authenticate)])
    for router in (models.router, training_jobs.router, inference.router, keys.router):
        v1.include_router(router)
    app.include_router(v1)
    app.add_api_route("/health", health, response_model=Health, tags=["health"])
    error_responses.install(app)
    app.openapi = lambda: _openapi(app)
    return app


async def health(services: ServicesDep) -> JSONResponse:
    """Whether all parts work. 200 while requests are answered, though some part may be `degraded`; else 503."""
    try:
        reasons = await run_in_threadpool(_own_faults, services)
    except UnavailableError:
        return JSONResponse({"status": "degraded", "reasons": ["The store doesn't answer."]}, 503)
    reasons += await _coordinator_faults(services)
    return JSONResponse({"status": "degraded" if reasons else "ok", "reasons": reasons})


def _own_faults(services: Services) -> list[str]:
    recorded = services.store.initial_versions()
    late = [f"{base}: its coordinator hasn't started yet." for base in services.base_models if base not in recorded]
    full = disk_fault(services)
    return [*late, full] if full else late


async def _coordinator_faults(services: Services) -> list[str]:
    """What doesn't work, without details: anybody may ask."""
    try:
        async with asyncio.timeout(STATUS_DEADLINE_S):
            coordinators = await services.coordinator_status()
    except Exception:
        logger.warning("The coordinator doesn't answer", exc_info=True)
        return ["The coordinator doesn't answer; jobs wait until it is back."]
    reasons = []
    for base, status in coordinators.items():
        if status["last_error"]:
            reasons.append(f"{base}: the coordinator failed outside a job and tries again; its log has the cause.")
        if not status["learners_running"]:
            why = status.get("waiting_for") or "the next job waits for them"
            reasons.append(f"{base}: its learners aren't running; {why}.")
    return reasons


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the bodies that routes read themselves and the one shape of errors, which echo nothing.

    Posting a job stays as published, which has no word of errors but 422.
    """
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        own = [(model, "validation") for model in (*REQUEST_BODIES, HTTPValidationError, ErrorBody)]
        _, schemas = models_json_schema(own, ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] |= schemas["$defs"]
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if (path, method) != PUBLISHED_OPERATION:
                    operation["responses"]["default"] = ERROR_RESPONSE
        app.openapi_schema = document
    return app.openapi_schema
