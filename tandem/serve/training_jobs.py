"""Routes of training jobs: post, look at, cancel, follow."""

from __future__ import annotations

import hashlib
import mimetypes
import uuid
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from tandem.cluster.artifacts import job_artifact_key
from tandem.rl.config import TrainingConfig
from tandem.rl.errors import ConfigError, TrajectoryError
from tandem.rl.trajectories import TrajectoryGroup
from tandem.serve.auth import TrainCaller
from tandem.serve.errors import Fault, InvalidRequestError, NotFoundError
from tandem.serve.json_body import Received, documented, json_body
from tandem.serve.kl_reference import wanted_reference
from tandem.serve.paging import Limit, Order, Page, cursor_number
from tandem.serve.payloads import delete_blobs, write_payload
from tandem.serve.schemas import (
    CreateTrainingJob,
    JobArtifact,
    JobState,
    TrainingJob,
    TrainingJobEvent,
    TrainingJobResponse,
)
from tandem.serve.services import ServicesDep, TextModel

router = APIRouter(prefix="/preview", tags=["training-jobs"])
MAX_IDEMPOTENCY_KEY = 255


# The name makes the operation id that clients were generated from.
@router.post(
    "/training-jobs",
    name="Create RL Training Job",
    summary="RLトレーニング ジョブを作成",  # as published; a generated client is made from this document
    **documented(CreateTrainingJob),
)
def create_training_job(
    request: Request,
    caller: TrainCaller,
    body: Annotated[Received[CreateTrainingJob], Depends(json_body(CreateTrainingJob))],
    services: ServicesDep,
) -> TrainingJobResponse:
    """Accepts trajectory groups to train a model on. The answer means that the job survives any crash.

    The optional header `Idempotency-Key` (any string of up to 255 characters) makes a repeat of the same request
    return the same job.
    """
    wanted, body_sha256 = body.value, hashlib.sha256(body.raw).hexdigest()
    model = services.store.model(str(wanted.model_id), caller.entity)
    key = _idempotency_key(request)
    if key and (repeated := services.store.find_repeat(model.id, key, body_sha256)):
        return TrainingJobResponse(id=UUID(repeated.id))
    config = wanted.experimental_config or TrainingConfig()
    reference = wanted_reference(config, services.config.artifacts_root)
    _check_trainable(wanted.trajectory_groups, config, services.base_models[model.base_model])
    job_id = str(uuid.uuid4())
    with write_payload(services.artifacts, f"payloads/{job_id}.json.zst", body.raw) as payload_key:
        options = config.model_dump(mode="json", exclude_none=True)
        job = services.store.add_job(job_id, model.id, payload_key, options, body_sha256, key, reference)
    if job.id != job_id:  # the same request came twice at once, and the other one was first
        delete_blobs(services.artifacts, [payload_key])
    return TrainingJobResponse(id=UUID(job.id))


@router.post("/sft-training-jobs", include_in_schema=False)
def create_sft_training_job(caller: TrainCaller) -> None:
    """Refused: known to clients, not built yet."""
    raise InvalidRequestError(
        [Fault(("body",), "supervised fine-tuning isn't available in this release; post RL training jobs instead")],
        "not_available",
    )


@router.get("/training-jobs")
def list_training_jobs(
    caller: TrainCaller,
    services: ServicesDep,
    model_id: UUID | None = None,
    state: JobState | None = None,
    after: UUID | None = None,
    limit: Limit = 20,
    order: Order = "desc",
) -> Page[TrainingJob]:
    """The entity's jobs in order of acceptance, newest first unless asked otherwise."""
    rows = services.store.jobs(
        caller.entity, limit + 1, after and str(after), order == "desc", model_id and str(model_id), state
    )
    return Page.of([TrainingJob.of(row) for row in rows], limit)


@router.get("/training-jobs/{training_job_id}")
def get_training_job(training_job_id: UUID, caller: TrainCaller, services: ServicesDep) -> TrainingJob:
    return TrainingJob.of(services.store.job(str(training_job_id), caller.entity))


@router.post("/training-jobs/{training_job_id}/cancel")
def cancel_training_job(training_job_id: UUID, caller: TrainCaller, services: ServicesDep) -> TrainingJob:
    """Cancels a queued job at once, a running one before its next gradient step. An ended job stays as it is."""
    return TrainingJob.of(services.store.request_cancel(str(training_job_id), caller.entity))


@router.get("/training-jobs/{training_job_id}/events")
def list_training_job_events(
    training_job_id: UUID,
    caller: TrainCaller,
    services: ServicesDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page[TrainingJobEvent]:
    """What happened to the job, in order. The last event is training_ended or training_failed."""
    seq = 0 if after is None else cursor_number(after, str(training_job_id))
    rows = services.store.events(str(training_job_id), caller.entity, limit + 1, seq)
    return Page.of([TrainingJobEvent.of(row) for row in rows], limit)


@router.get("/training-jobs/{training_job_id}/artifacts")
def list_training_job_artifacts(
    training_job_id: UUID, caller: TrainCaller, services: ServicesDep, after: str | None = None, limit: Limit = 100
) -> Page[JobArtifact]:
    """The files that the job has left, by name: with `plot_tensors`, pictures of its packed sequences."""
    job_id = services.store.job(str(training_job_id), caller.entity).id
    sizes = services.artifacts.list_job_artifacts(job_id)
    rest = [JobArtifact(id=name, size_bytes=size) for name, size in sizes.items() if after is None or name > after]
    return Page.of(rest, limit)


@router.get("/training-jobs/{training_job_id}/artifacts/{name}", response_class=Response)
def get_training_job_artifact(training_job_id: UUID, name: str, caller: TrainCaller, services: ServicesDep) -> Response:
    """The contents of one of the job's files."""
    job_id = services.store.job(str(training_job_id), caller.entity).id
    if name not in services.artifacts.list_job_artifacts(job_id):  # so the name can't lead anywhere else
        raise NotFoundError(f"Training job {job_id} has no artifact {name!r}.", "artifact_not_found", "name")
    content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    content = services.artifacts.read_blob(job_artifact_key(job_id, name))
    return Response(content, media_type=content_type, headers={"x-content-type-options": "nosniff"})


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= MAX_IDEMPOTENCY_KEY:
        message = f"must have 1 to {MAX_IDEMPOTENCY_KEY} characters"
        raise InvalidRequestError([Fault(("header", "Idempotency-Key"), message)])
    return key


def _check_trainable(groups: list[TrajectoryGroup], config: TrainingConfig, base: TextModel) -> None:
    """Prepares the batch as the coordinator will, while the sender is there to be told what is wrong with it.

    Raises InvalidRequestError.
    """
    try:
        base.build_batch(groups, config, shuffle_seed=None)
    except ConfigError as error:
        fault = Fault(("body", "experimental_config", error.field), error.reason)
        raise InvalidRequestError([fault], "invalid_training_config") from error
    except TrajectoryError as error:
        raise InvalidRequestError([Fault(("body", *error.location), str(error))], "invalid_trajectory") from error
