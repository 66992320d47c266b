"""Routes of logged trajectories: stored with their mean reward, not trained on."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request

from tandem.cluster.artifacts import LOGS
from tandem.serve.api.auth import Caller, TrainCaller
from tandem.serve.api.bodies.json_body import documented
from tandem.serve.api.bodies.payload_body import Payload, payload_body
from tandem.serve.api.connection import to_completion
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.paging import Limit, Page
from tandem.serve.api.wire.requests import LogTrajectories, Name
from tandem.serve.api.wire.responses import LogEntry
from tandem.serve.api.wire.views import log_view
from tandem.serve.errors import InvalidRequestError, Problem
from tandem.serve.jobs.blobs import stored
from tandem.serve.jobs.storage import storage_errors

router = APIRouter(prefix="/preview/models/{model_id}", tags=["models"])


@router.post("/log", **documented(LogTrajectories))
async def log_trajectories(
    request: Request,
    model_id: UUID,
    caller: TrainCaller,
    payload: Annotated[Payload[LogTrajectories], Depends(payload_body(LogTrajectories))],
    services: ServicesDep,
) -> LogEntry:
    """Store trajectory groups of a split ("train", "val", ...) with their mean reward. Nothing is trained."""
    if payload.envelope.model_id != model_id:
        message = f"is {payload.envelope.model_id}, but the path names model {model_id}"
        raise InvalidRequestError([Problem(("body", "model_id"), message)])
    return await to_completion(request, partial(_store_log, payload, caller, services))


def _store_log(
    payload: Payload[LogTrajectories], caller: Caller, services: Services, check_connected: Callable[[], None]
) -> LogEntry:
    model_id, log_id = str(payload.envelope.model_id), str(uuid.uuid4())
    services.store.models.get(model_id, caller.entity)
    put = partial(services.artifacts.put_blob_file, payload.spool.path)
    with stored(services.artifacts, f"{LOGS}/{log_id}.json.zst", put) as key:
        with storage_errors():
            metrics = services.preparation.log_metrics(key)
        check_connected()
        row = services.store.logs.add(log_id, model_id, caller.entity, payload.envelope.split, key, metrics)
    return log_view(row)


@router.get("/logs")
def list_logs(
    model_id: UUID,
    caller: TrainCaller,
    services: ServicesDep,
    after: UUID | None = None,
    limit: Limit = 20,
    split: Name | None = None,
) -> Page[LogEntry]:
    """List the model's logs, oldest first."""
    rows = services.store.logs.page(str(model_id), caller.entity, limit + 1, str(after) if after else None, split)
    return Page.of([log_view(row) for row in rows], limit)
