"""Routes of training jobs: post, look at, cancel, follow."""

from __future__ import annotations

import mimetypes
import uuid
from collections.abc import Callable
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from tandem.cluster.artifacts import PAYLOADS, job_artifact_key
from tandem.rl.config import TrainingConfig
from tandem.serve.api.auth import Caller, TrainCaller
from tandem.serve.api.json_body import documented
from tandem.serve.api.kl_reference import wanted_reference
from tandem.serve.api.paging import Limit, Order, Page, cursor_number
from tandem.serve.api.schemas import (
    CreateTrainingJob,
    JobArtifact,
    JobState,
    TrainingJob,
    TrainingJobEvent,
    TrainingJobResponse,
)
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.validation import quoted
from tandem.serve.errors import Fault, InvalidRequestError, NotFoundError
from tandem.serve.ingest.spool import Payload, payload_body
from tandem.serve.jobs.payloads import accept, delete_blobs, preparation_errors, stored

router = APIRouter(prefix="/preview", tags=["training-jobs"])
MAX_IDEMPOTENCY_KEY = 255


def refuse_when_queue_is_full(request: Request, caller: TrainCaller, services: ServicesDep) -> None:
    """A dependency that spares clients the sending of a body that would be refused. Repeats of a job never are."""
    key = _idempotency_key(request)
    if key is None or not services.store.knows_idempotency_key(key, caller.entity):
        services.store.check_room(services.config.limits)


# The name makes the operation id that clients were generated from.
@router.post(
    "/training-jobs",
    name="Create RL Training Job",
    summary="RLトレーニング ジョブを作成",  # as published; a generated client is made from this document
    dependencies=[Depends(refuse_when_queue_is_full)],
    **documented(CreateTrainingJob),
)
async def create_training_job(
    request: Request,
    caller: TrainCaller,
    payload: Annotated[Payload[CreateTrainingJob], Depends(payload_body(CreateTrainingJob))],
    services: ServicesDep,
) -> TrainingJobResponse:
    """Accepts trajectory groups to train a model on. The answer means that the job survives any crash.

    The optional header `Idempotency-Key` (1 to 255 printable ASCII characters) makes a repeat of the same request
    return the same job.
    """
    work = partial(_create, payload, caller, services, _idempotency_key(request))
    return TrainingJobResponse(id=UUID(await accept(request, work)))


def _create(
    payload: Payload[CreateTrainingJob],
    caller: Caller,
    services: Services,
    key: str | None,
    check_connected: Callable[[], None],
) -> str:
    """The id of the job."""
    wanted, body_sha256, limits = payload.envelope, payload.spool.sha256, services.config.limits
    model = services.store.model(str(wanted.model_id), caller.entity)
    if key and (repeated := services.store.find_repeat(model.id, key, body_sha256)):
        return repeated.id
    config = wanted.experimental_config or TrainingConfig()
    reference = wanted_reference(config, services.config.artifacts_root)
    services.store.check_room(limits, model)  # add_job decides; this spares the work of checking
    job_id = str(uuid.uuid4())
    with stored(services.artifacts, payload.spool.path, f"{PAYLOADS}/{job_id}.json.zst") as payload_key:
        with preparation_errors():
            services.preparation.check(model.base_model, payload_key, config)
        check_connected()
        options = config.model_dump(mode="json", exclude_none=True)
        job = services.store.add_job(job_id, model.id, payload_key, options, body_sha256, key, reference, limits)
    if job.id != job_id:  # the same request came twice at once, and the other one was first
        delete_blobs(services.artifacts, [payload_key])
    return job.id


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
        raise NotFoundError(
            f"Training job {job_id} has no artifact {quoted(name)}; its list of artifacts has the names.",
            "artifact_not_found",
            "name",
        )
    content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    content = services.artifacts.read_blob(job_artifact_key(job_id, name))
    return Response(content, media_type=content_type, headers={"x-content-type-options": "nosniff"})


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= MAX_IDEMPOTENCY_KEY and key.isascii() and key.isprintable()):
        message = f"must be 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters"
        raise InvalidRequestError([Fault(("header", "Idempotency-Key"), message)])
    return key
