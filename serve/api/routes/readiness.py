"""GET /ready: whether completions and training jobs would be served now, for load balancers and supervisors.

/health answers 200 while parts of the service start or are replaced. This route answers 503 then.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from tandem.serve.api.routes.health import answer_in_time
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.responses import Readiness
from tandem.serve.errors import UnavailableError
from tandem.serve.jobs.storage import disk_shortage

RETRY_AFTER_S = 2

router = APIRouter(tags=["health"])


@router.get("/ready", response_model=Readiness, responses={503: {"model": Readiness, "description": "Not ready"}})
async def ready(services: ServicesDep) -> JSONResponse:
    """Return 200 if completions and training jobs of every base model would be served; else 503 with what is missing.

    Needs no key, so it reveals no more than that.
    """
    try:
        own = await run_in_threadpool(_missing_here, services)
    except UnavailableError:
        return _not_ready(["The store doesn't answer."])
    others = await asyncio.gather(_missing_coordinators(services), _missing_engines(services))
    if missing := sum(others, own):
        return _not_ready(missing)
    return JSONResponse({"status": "ready", "missing": []})


def _not_ready(missing: list[str]) -> JSONResponse:
    return JSONResponse({"status": "not_ready", "missing": missing}, 503, {"Retry-After": str(RETRY_AFTER_S)})


def _missing_here(services: Services) -> list[str]:
    recorded = services.store.versions.initial_digests()
    late = [f"{base}: its coordinator hasn't started yet." for base in services.base_models if base not in recorded]
    full = disk_shortage(services.artifacts, services.config.limits)
    return [*late, "The disk is too full for new jobs."] if full else late


async def _missing_coordinators(services: Services) -> list[str]:
    coordinators = await answer_in_time(services.coordinator_status)
    if coordinators is None:
        return ["The coordinator doesn't answer; jobs wait until it is back."]
    missing = [
        f"{base}: its coordinator hasn't started yet." for base in services.base_models if base not in coordinators
    ]
    for base, status in coordinators.items():
        if status["last_error"]:
            missing.append(f"{base}: the coordinator failed outside a job and retries.")
        elif status["waiting_for"]:  # learners that aren't running for another reason start with the next job
            missing.append(f"{base}: its learners wait for resources of the cluster.")
    return missing


async def _missing_engines(services: Services) -> list[str]:
    faults = await answer_in_time(services.engine_faults)
    if faults is None:
        return ["Ray Serve doesn't report whether the engines are running."]
    return [f"{base}: {fault}" for base, fault in faults.items() if fault.completions_wait]
