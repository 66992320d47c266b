"""Routes of models: register, list, delete; their checkpoints; trajectories logged for them."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool

from tandem.cluster.artifacts import LOGS
from tandem.serve.api.auth import Caller, InferCaller, TrainCaller
from tandem.serve.api.engine_call import while_connected
from tandem.serve.api.json_body import Received, documented, json_body
from tandem.serve.api.paging import Limit, Order, Page, cursor_number
from tandem.serve.api.schemas import (
    MAX_STEP,
    Checkpoint,
    CheckpointsDeleted,
    CreateModel,
    DeleteCheckpoints,
    LogEntry,
    LogTrajectories,
    Model,
    ModelDeleted,
    Name,
    Version,
)
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.validation import quoted
from tandem.serve.errors import Fault, ForbiddenError, InvalidRequestError
from tandem.serve.ingest.spool import Payload, payload_body
from tandem.serve.jobs.payloads import accept, delete_blobs, delete_job_artifacts, preparation_errors, stored
from tandem.serve.store.tables import VersionRow

logger = logging.getLogger(__name__)
VERSION_POLL_S = 0.2
MAX_VERSION_WAIT_S = 60
router = APIRouter(prefix="/preview/models", tags=["models"])


@router.post("", **documented(CreateModel))
def create_model(
    caller: TrainCaller, body: Annotated[Received[CreateModel], Depends(json_body(CreateModel))], services: ServicesDep
) -> Model:
    """Registers a model, or returns the one of that name when `return_existing` is set."""
    wanted = body.value
    entity = wanted.entity or caller.entity
    if entity != caller.entity:
        raise ForbiddenError(
            f"This key belongs to entity {caller.entity!r} and can't register models of {entity!r}. "
            "Leave entity out, or use a key of that entity.",
            "wrong_entity",
            "entity",
        )
    if wanted.base_model not in services.base_models:
        available = ", ".join(sorted(services.base_models))
        message = f"there is no base model {quoted(wanted.base_model)} here; this service has: {available}"
        raise InvalidRequestError([Fault(("body", "base_model"), message)], "base_model_not_found")
    row = services.store.add_model(entity, wanted.project, wanted.name, wanted.base_model, wanted.return_existing)
    services.preparation.warm_up(wanted.base_model)  # its first job will come once it has been sampled
    return _with_steps(services, [row])[0]


@router.get("")
def list_models(
    caller: InferCaller,
    services: ServicesDep,
    after: UUID | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    project: Name | None = None,
    name: Name | None = None,
) -> Page[Model]:
    """The entity's models by time of registration."""
    rows = services.store.models(
        caller.entity, limit + 1, after and str(after), order == "desc", project=project, name=name
    )
    return Page.of(_with_steps(services, rows), limit)


@router.get("/{model_id}")
def get_model(model_id: UUID, caller: InferCaller, services: ServicesDep) -> Model:
    return _with_steps(services, [services.store.model(str(model_id), caller.entity)])[0]


@router.delete("/{model_id}")
def delete_model(model_id: UUID, caller: TrainCaller, services: ServicesDep) -> ModelDeleted:
    """Deletes a model with its checkpoints and logs, and what its jobs left. Its open jobs end with training_failed."""
    deleted = services.store.delete_model(str(model_id), caller.entity)
    delete_blobs(services.artifacts, deleted.blob_keys)
    delete_job_artifacts(services.artifacts, deleted.job_ids)
    _collect_checkpoints(services)
    return ModelDeleted(model_id=str(model_id), deleted_checkpoints=deleted.num_checkpoints)


@router.get("/{model_id}/checkpoints")
def list_checkpoints(
    model_id: UUID,
    caller: TrainCaller,
    services: ServicesDep,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Page[Checkpoint]:
    """The model's versions by step. None means that only version 0 exists, which is never listed."""
    step = None if after is None else cursor_number(after, str(model_id))
    rows = services.store.versions(str(model_id), caller.entity, limit + 1, step, order == "desc")
    return Page.of([Checkpoint.of(row) for row in rows], limit)


@router.get("/{model_id}/versions")
async def wait_for_versions(
    request: Request,
    model_id: UUID,
    caller: InferCaller,
    services: ServicesDep,
    after: Annotated[int, Query(ge=0, le=MAX_STEP)] = 0,
    wait: Annotated[float, Query(ge=0, le=MAX_VERSION_WAIT_S)] = 0,
    limit: Limit = 20,
) -> Page[Version]:
    """The model's versions newer than step `after`, by step: at once if there are any, else within `wait` seconds.

    An empty list means that there was none in that time; ask again with the same `after`.
    """

    async def newer() -> Sequence[VersionRow]:
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            rows = await run_in_threadpool(services.store.versions, str(model_id), caller.entity, limit + 1, after)
            remaining = deadline - asyncio.get_running_loop().time()
            if rows or remaining <= 0:
                return rows
            await asyncio.sleep(min(VERSION_POLL_S, remaining))

    return Page.of([Version.of(row) for row in await while_connected(request, newer())], limit)


@router.delete("/{model_id}/checkpoints", **documented(DeleteCheckpoints))
def delete_checkpoints(
    model_id: UUID,
    caller: TrainCaller,
    body: Annotated[Received[DeleteCheckpoints], Depends(json_body(DeleteCheckpoints))],
    services: ServicesDep,
) -> CheckpointsDeleted:
    """Deletes versions for good. Completions from them are 404 from now on; their steps are never used again."""
    wanted = dict.fromkeys(body.value.steps)
    deleted = services.store.delete_versions(str(model_id), caller.entity, wanted)
    _collect_checkpoints(services)
    return CheckpointsDeleted(
        deleted_count=len(deleted), not_found_steps=[step for step in wanted if step not in deleted]
    )


@router.post("/{model_id}/log", **documented(LogTrajectories))
async def log_trajectories(
    request: Request,
    model_id: UUID,
    caller: TrainCaller,
    payload: Annotated[Payload[LogTrajectories], Depends(payload_body(LogTrajectories))],
    services: ServicesDep,
) -> LogEntry:
    """Keeps trajectory groups of a split ("train", "val", ...) and their mean reward; nothing is trained."""
    if payload.envelope.model_id != model_id:
        message = f"is {payload.envelope.model_id}, but the path names model {model_id}"
        raise InvalidRequestError([Fault(("body", "model_id"), message)])
    return await accept(request, partial(_keep_log, payload, caller, services))


def _keep_log(
    payload: Payload[LogTrajectories], caller: Caller, services: Services, check_connected: Callable[[], None]
) -> LogEntry:
    model_id, log_id = str(payload.envelope.model_id), str(uuid.uuid4())
    services.store.model(model_id, caller.entity)
    with stored(services.artifacts, payload.spool.path, f"{LOGS}/{log_id}.json.zst") as key:
        with preparation_errors():
            metrics = services.preparation.log_metrics(key)
        check_connected()
        row = services.store.add_log(log_id, model_id, caller.entity, payload.envelope.split, key, metrics)
    return LogEntry.of(row)


@router.get("/{model_id}/logs")
def list_logs(
    model_id: UUID,
    caller: TrainCaller,
    services: ServicesDep,
    after: UUID | None = None,
    limit: Limit = 20,
    split: Name | None = None,
) -> Page[LogEntry]:
    """What was logged for the model, oldest first."""
    rows = services.store.logs(str(model_id), caller.entity, limit + 1, after and str(after), split)
    return Page.of([LogEntry.of(row) for row in rows], limit)


def _with_steps(services: Services, rows: Sequence) -> list[Model]:
    steps = services.store.newest_steps([row.id for row in rows])
    return [Model.of(row, steps.get(row.id, 0)) for row in rows]


def _collect_checkpoints(services: Services) -> None:
    """Removes the files of deleted versions that nothing needs any more. What fails is tried again next time."""
    for digest in services.store.unused_digests():
        try:
            services.artifacts.delete_checkpoint(digest)
        except OSError:
            logger.warning("The files of deleted checkpoint %s can't be removed yet", digest, exc_info=True)
        else:
            services.store.forget_digest(digest)
