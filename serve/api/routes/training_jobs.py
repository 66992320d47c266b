"""Routes of training jobs: create, list, cancel, follow."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from tandem.rl.config import TrainingConfig
from tandem.serve.api.auth import Caller, TrainCaller
from tandem.serve.api.bodies.json_body import documented
from tandem.serve.api.bodies.payload_body import Payload, payload_body
from tandem.serve.api.connection import to_completion
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.paging import Limit, Order, Page, cursor_number
from tandem.serve.api.wire.requests import CreateTrainingJob
from tandem.serve.api.wire.responses import JobState, TrainingJob, TrainingJobEvent, TrainingJobResponse
from tandem.serve.api.wire.views import event_view, job_view
from tandem.serve.errors import InvalidRequestError, Problem, QueueFullError
from tandem.serve.jobs.accept import AcceptedJob, JobAcceptance, OfferedJob
from tandem.serve.store.tables.training import JobRow

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/preview", tags=["training-jobs"])
JobKindName = Literal["rl", "sft", "dpo"]
MAX_IDEMPOTENCY_KEY = 255
REPEAT_HEADER = "x-repeated-job"
"""In the answer to a post: an earlier post made the job."""


def reject_when_queue_is_full(request: Request, caller: TrainCaller, services: ServicesDep) -> None:
    """A dependency: answer 429 before the client has sent the body. Repeats of a job are never rejected."""
    jobs, limits, key = services.store.jobs, services.config.limits, sent_idempotency_key(request)
    if key is not None and jobs.knows_idempotency_key(key, caller.entity):
        return
    try:
        jobs.check_room(limits)
    except QueueFullError:
        if key is not None or not jobs.may_repeat(caller.key_id, limits.repeated_body_s):
            raise


def _begin_check(services: Services, caller: Caller, model_id: str, path: Path) -> None:
    """Have a payload checked while it arrives."""
    try:
        model = services.store.models.get(model_id, caller.entity)
        services.preparation.begin_check(model.base_model, path, model.path)
    except Exception as error:  # the request itself will say so, or the check begins later
        logger.info("A payload isn't checked while it arrives: %s", error)


# The name makes the operation id that existing clients were generated from.
@router.post(
    "/training-jobs",
    name="Create RL Training Job",
    summary="RLトレーニング ジョブを作成",  # as in the published document
    dependencies=[Depends(reject_when_queue_is_full)],
    **documented(CreateTrainingJob),
)
async def create_training_job(
    request: Request,
    response: Response,
    caller: TrainCaller,
    payload: Annotated[Payload[CreateTrainingJob], Depends(payload_body(CreateTrainingJob, _begin_check))],
    services: ServicesDep,
) -> TrainingJobResponse:
    """Accept trajectory groups to train a model on. Once this returns, the job survives any crash.

    The optional header `Idempotency-Key` (1 to 255 printable ASCII characters) makes retries safe: a repeat of the same
    request returns the same job. Without it, the same body from the same key returns that job for a minute
    (`limits.repeated_body_s`) while it is queued or running. The header `x-repeated-job: true` marks both.
    """
    work = partial(_accept, payload, caller, services, sent_idempotency_key(request))
    return job_response(await to_completion(request, work), response)


def job_response(accepted: AcceptedJob, response: Response) -> TrainingJobResponse:
    """Return the body of the answer to a post of a job, and mark a repeat in the headers of `response`."""
    if accepted.is_repeat:
        response.headers[REPEAT_HEADER] = "true"
    return TrainingJobResponse(id=UUID(accepted.row.id))


def _accept(
    payload: Payload[CreateTrainingJob],
    caller: Caller,
    services: Services,
    idempotency_key: str | None,
    check_connected: Callable[[], None],
) -> AcceptedJob:
    offered = OfferedJob(
        model=services.store.models.get(str(payload.envelope.model_id), caller.entity),
        config=payload.envelope.experimental_config or TrainingConfig(),
        body_sha256=payload.spool.sha256,
        payload=partial(services.artifacts.put_blob_file, payload.spool.path),
        idempotency_key=idempotency_key,
        api_key_id=caller.key_id,
    )
    check = partial(services.preparation.check, arrived=payload.spool.path)
    acceptance = JobAcceptance(services.store, services.artifacts, services.config, check)
    return acceptance.accept(offered, confirm=check_connected)


@router.get("/training-jobs")
def list_training_jobs(
    caller: TrainCaller,
    services: ServicesDep,
    model_id: UUID | None = None,
    state: JobState | None = None,
    kind: JobKindName | None = None,
    after: UUID | None = None,
    limit: Limit = 20,
    order: Order = "desc",
) -> Page[TrainingJob]:
    """List the entity's jobs in order of acceptance, by default the newest first."""
    rows = services.store.jobs.page(
        caller.entity,
        limit + 1,
        after=str(after) if after else None,
        newest_first=order == "desc",
        model_id=str(model_id) if model_id else None,
        state=state,
        kind=kind,
    )
    noted = services.store.jobs.noted_events(rows)
    return Page.of([job_view(row, noted[row.id]) for row in rows], limit)


@router.get("/training-jobs/{training_job_id}")
def get_training_job(training_job_id: UUID, caller: TrainCaller, services: ServicesDep) -> TrainingJob:
    """Return a job."""
    return _view(services.store.jobs.get(str(training_job_id), caller.entity), services)


@router.post("/training-jobs/{training_job_id}/cancel")
def cancel_training_job(training_job_id: UUID, caller: TrainCaller, services: ServicesDep) -> TrainingJob:
    """Cancel a queued job at once, a running job before its next gradient step. An ended job stays unchanged."""
    return _view(services.store.jobs.request_cancel(str(training_job_id), caller.entity), services)


@router.get("/training-jobs/{training_job_id}/events")
def list_training_job_events(
    training_job_id: UUID,
    caller: TrainCaller,
    services: ServicesDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page[TrainingJobEvent]:
    """List the events of a job in order. The last one is training_ended or training_failed."""
    seq = 0 if after is None else cursor_number(after, str(training_job_id))
    rows = services.store.jobs.events(str(training_job_id), caller.entity, limit + 1, seq)
    return Page.of([event_view(row) for row in rows], limit)


def _view(row: JobRow, services: Services) -> TrainingJob:
    return job_view(row, services.store.jobs.noted_events([row])[row.id])


def sent_idempotency_key(request: Request) -> str | None:
    """Return the request's idempotency key. Raises InvalidRequestError."""
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= MAX_IDEMPOTENCY_KEY and key.isascii() and key.isprintable()):
        message = f"must be 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters"
        raise InvalidRequestError([Problem(("header", "Idempotency-Key"), message)])
    return key
