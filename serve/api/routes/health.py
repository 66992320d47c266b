"""GET /health: the state of all parts of the service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.responses import Health
from tandem.serve.errors import UnavailableError
from tandem.serve.jobs.storage import disk_shortage

logger = logging.getLogger(__name__)
STATUS_DEADLINE_S = 5.0
T = TypeVar("T")

router = APIRouter(tags=["health"])


@router.get("/health", response_model=Health, responses={503: {"model": Health, "description": "The store is down"}})
async def health(services: ServicesDep) -> JSONResponse:
    """Return 200 while the service answers requests, `degraded` if some part doesn't work; 503 without its store."""
    try:
        own = await run_in_threadpool(_own_reasons, services)
    except UnavailableError:
        return JSONResponse({"status": "degraded", "reasons": ["The store doesn't answer."]}, 503)
    others = await asyncio.gather(_coordinator_reasons(services), _engine_reasons(services))
    reasons = sum(others, own)
    return JSONResponse({"status": "degraded" if reasons else "ok", "reasons": reasons})


# Reasons contain no details, because this route needs no key.


def _own_reasons(services: Services) -> list[str]:
    recorded = services.store.versions.initial_digests()
    late = [f"{base}: its coordinator hasn't started yet." for base in services.base_models if base not in recorded]
    full = disk_shortage(services.artifacts, services.config.limits)
    return [*late, full] if full else late


async def _coordinator_reasons(services: Services) -> list[str]:
    coordinators = await answer_in_time(services.coordinator_status)
    if coordinators is None:
        return ["The coordinator doesn't answer; jobs wait until it is back."]
    reasons = []
    for base, status in coordinators.items():
        if status["last_error"]:
            reasons.append(f"{base}: the coordinator failed outside a job and retries; its log has the cause.")
        if status["alarm"]:
            reasons.append(f"{base}: its learners reject the model or disagree with its engine; its jobs say why.")
        elif not status["learners_running"]:
            why = status["waiting_for"] or "they start with the next job"
            reasons.append(f"{base}: its learners aren't running; {why}.")
    return reasons


async def _engine_reasons(services: Services) -> list[str]:
    faults = await answer_in_time(services.engine_faults)
    if faults is None:
        return ["Ray Serve doesn't report whether the engines are running."]
    return [f"{base}: {fault}" for base, fault in faults.items()]


async def answer_in_time(ask: Callable[[], Awaitable[T]]) -> T | None:
    """Return the answer, or None if there is none in time."""
    try:
        async with asyncio.timeout(STATUS_DEADLINE_S):
            return await ask()
    except Exception:
        logger.warning("A part of the service doesn't answer", exc_info=True)
        return None
