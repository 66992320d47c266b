"""Routes of fine-tuning jobs: create, list, follow and cancel them."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from tandem.serve.api.auth import Caller, TrainCaller
from tandem.serve.api.bodies.json_body import documented
from tandem.serve.api.routes.training_jobs import MAX_IDEMPOTENCY_KEY
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.paging import Page, unknown_cursor
from tandem.serve.errors import InvalidRequestError, NotFoundError, Problem
from tandem.serve.finetuning.api.bodies import Body, openai_body, refuse
from tandem.serve.finetuning.api.wire import (
    CHECKPOINT,
    EVENT,
    JOB,
    CreateFineTuningJob,
    FineTuningCheckpoint,
    FineTuningEvent,
    FineTuningJob,
    Method,
    SupervisedMethod,
)
from tandem.serve.finetuning.files import remove_unused
from tandem.serve.finetuning.graders import check_grader
from tandem.serve.finetuning.models import find_origin
from tandem.serve.finetuning.store.store import FineTuningStore
from tandem.serve.finetuning.store.tables import FineTuningJobRow

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"])
Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("", **documented(CreateFineTuningJob))
def create_fine_tuning_job(
    request: Request,
    caller: TrainCaller,
    body: Annotated[Body[CreateFineTuningJob], Depends(openai_body(CreateFineTuningJob))],
    services: ServicesDep,
) -> FineTuningJob:
    """Accept a fine-tuning job. Its file is checked next; then it waits for its turn like any training job.

    The optional header `Idempotency-Key` makes retries safe: a repeat of the same request returns the same job.
    """
    wanted = body.value
    method = _method(wanted)
    _check(method, wanted, caller, services)
    origin = find_origin(services.store, services.base_models, caller.entity, wanted.model)
    id = f"{JOB}{uuid.uuid4().hex}"
    row = FineTuningJobRow(
        id=id,
        entity=caller.entity,
        status="validating_files",
        model=wanted.model,
        base_model=origin.base_model,
        start_model_id=origin.model_id,
        start_step=origin.step,
        suffix=wanted.suffix,
        training_file=wanted.training_file,
        validation_file=wanted.validation_file,
        seed=uuid.uuid4().int % 2**31 if wanted.seed is None else wanted.seed,
        method=method.model_dump(mode="json", exclude_none=True),
        labels=wanted.metadata,
        idempotency_key=_idempotency_key(request),
        body_sha256=body.sha256,
    )
    limit = services.config.limits.max_open_jobs_per_project
    try:
        return FineTuningJob.of(FineTuningStore(services.store.database).jobs.add(row, limit))
    except NotFoundError as error:
        field = "training_file" if wanted.training_file in error.message else "validation_file"
        raise refuse(field, error.message, error.code) from None


def _method(wanted: CreateFineTuningJob) -> Method:
    """Return the method with its settings. Raises BadRequestError."""
    method = wanted.method or Method(type="supervised")
    if wanted.hyperparameters is not None:
        if wanted.method is not None:
            raise refuse("hyperparameters", "belong into method; leave one of the two out")
        method = Method(type="supervised", supervised=SupervisedMethod(hyperparameters=wanted.hyperparameters))
    if getattr(method, method.type) is None:
        return Method.model_validate({"type": method.type, method.type: {}})
    return method


def _check(method: Method, wanted: CreateFineTuningJob, caller: Caller, services: Services) -> None:
    """Raises BadRequestError for what this service can't do."""
    if method.reinforcement is None:
        if wanted.validation_file is not None:
            raise refuse(
                "validation_file",
                f"isn't supported by the method {method.type}; leave it out, and evaluate the checkpoints yourself",
            )
        return
    check_grader("method.reinforcement.grader", method.reinforcement.grader, caller.entity, services)
    numbers = method.reinforcement.hyperparameters
    for name in ("eval_interval", "eval_samples"):
        if wanted.validation_file is None and getattr(numbers, name) != "auto":
            raise refuse(
                f"method.reinforcement.hyperparameters.{name}", "needs a validation_file, whose rows are evaluated"
            )


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= MAX_IDEMPOTENCY_KEY and key.isascii() and key.isprintable()):
        message = f"must be 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters"
        raise InvalidRequestError([Problem(("header", "Idempotency-Key"), message)])
    return key


@router.get("")
def list_fine_tuning_jobs(
    request: Request, caller: TrainCaller, services: ServicesDep, after: str | None = None, limit: Limit = 20
) -> Page[FineTuningJob]:
    """List the entity's jobs, the newest first. `metadata[k]=v` keeps those with this metadata; `metadata=null` those
    without any."""
    jobs = FineTuningStore(services.store.database).jobs
    rows = jobs.page(caller.entity, limit + 1, after, _labels(request))
    return Page.of([FineTuningJob.of(row) for row in rows], limit)


def _labels(request: Request) -> dict[str, str] | None:
    """Return the filter by metadata, None without one."""
    query: Any = request.query_params
    if query.get("metadata") in ("null", ""):
        return {}
    found = {
        name[len("metadata[") : -1]: value
        for name, value in query.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    return found or None


@router.get("/{fine_tuning_job_id}")
def get_fine_tuning_job(fine_tuning_job_id: str, caller: TrainCaller, services: ServicesDep) -> FineTuningJob:
    """Return a job."""
    jobs = FineTuningStore(services.store.database).jobs
    return FineTuningJob.of(jobs.get(fine_tuning_job_id, caller.entity))


@router.post("/{fine_tuning_job_id}/cancel")
def cancel_fine_tuning_job(fine_tuning_job_id: str, caller: TrainCaller, services: ServicesDep) -> FineTuningJob:
    """Cancel a job: at once if it hasn't begun, else before its next gradient step. An ended job stays unchanged."""
    store = FineTuningStore(services.store.database)
    job = store.jobs.request_cancel(fine_tuning_job_id, caller.entity)
    remove_unused(store, services.artifacts)
    return FineTuningJob.of(job)


@router.post("/{fine_tuning_job_id}/pause")
def pause_fine_tuning_job(fine_tuning_job_id: str, caller: TrainCaller, services: ServicesDep) -> FineTuningJob:
    """Reject the request: jobs of this service can be cancelled, and each checkpoint can be trained further."""
    return _no_pause(fine_tuning_job_id, caller, services)


@router.post("/{fine_tuning_job_id}/resume")
def resume_fine_tuning_job(fine_tuning_job_id: str, caller: TrainCaller, services: ServicesDep) -> FineTuningJob:
    """Reject the request, as for `pause`."""
    return _no_pause(fine_tuning_job_id, caller, services)


def _no_pause(job_id: str, caller: Caller, services: Services) -> FineTuningJob:
    FineTuningStore(services.store.database).jobs.get(job_id, caller.entity)
    raise refuse(
        "fine_tuning_job_id",
        "jobs can't be paused here. Cancel the job, and train its last checkpoint further with another one",
        "not_available",
    )


@router.get("/{fine_tuning_job_id}/events")
def list_fine_tuning_events(
    fine_tuning_job_id: str,
    caller: TrainCaller,
    services: ServicesDep,
    after: str | None = None,
    limit: Limit = 20,
) -> Page[FineTuningEvent]:
    """List the events of a job, the newest first."""
    jobs = FineTuningStore(services.store.database).jobs
    rows = jobs.events(fine_tuning_job_id, caller.entity, limit + 1, _before(after, EVENT, fine_tuning_job_id))
    return Page.of([FineTuningEvent.of(row) for row in rows], limit)


@router.get("/{fine_tuning_job_id}/checkpoints")
def list_fine_tuning_checkpoints(
    fine_tuning_job_id: str,
    caller: TrainCaller,
    services: ServicesDep,
    after: str | None = None,
    limit: Limit = 10,
) -> Page[FineTuningCheckpoint]:
    """List the versions that a job made, the newest first. Each can be used as a model, also while the job runs."""
    jobs = FineTuningStore(services.store.database).jobs
    rows = jobs.checkpoints(
        fine_tuning_job_id, caller.entity, limit + 1, _before(after, CHECKPOINT, fine_tuning_job_id)
    )
    return Page.of([FineTuningCheckpoint.of(row) for row in rows], limit)


def _before(cursor: str | None, kind: str, job_id: str) -> int | None:
    """Return the number in the id of an item of this job. Raises InvalidRequestError."""
    if cursor is None:
        return None
    prefix, _, number = cursor.rpartition("-")
    if prefix != f"{kind}-{job_id.removeprefix(JOB)}" or not (
        number.isascii() and number.isdigit() and len(number) < 10
    ):
        raise unknown_cursor()
    return int(number)
