"""GET /v1/preview/training-jobs/{id}/queue: the place of a job in the queue, and why it waits."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from tandem.serve.api.auth import TrainCaller
from tandem.serve.api.queue_reason import Limits, reason_to_wait
from tandem.serve.api.routes.health import answer_in_time
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.queue import Cause, QueuedBefore, TrainingJobQueue
from tandem.serve.store.training.queue import QueuePlace

WAITS: tuple[Cause, ...] = ("same_model", "jobs_at_once", "learners", "coordinator", "lease", "starting", "prepares")
router = APIRouter(prefix="/preview/training-jobs", tags=["training-jobs"])


@router.get("/{training_job_id}/queue")
async def get_training_job_queue(training_job_id: UUID, caller: TrainCaller, services: ServicesDep) -> TrainingJobQueue:
    """Return the job's place in the queue of its base model, the jobs before it, and the reason why it waits.

    Jobs of other entities are counted, not named.
    """
    place, has_started = await run_in_threadpool(_place, services, str(training_job_id), caller.entity)
    statuses = None
    if place.job.state in ("queued", "running"):
        statuses = await answer_in_time(services.coordinator_status)
    limits = Limits(_jobs_at_once(services, place.model.base_model))
    reason = reason_to_wait(place, statuses, limits, services.store.database.now(), has_started)
    is_queued = place.job.state == "queued"
    return TrainingJobQueue(
        id=place.job.id,
        model_id=place.model.id,
        base_model=place.model.base_model,
        state=place.job.state,
        place=place.num_own_before + place.num_others_before + 1 if is_queued else None,
        waits=reason.cause in WAITS,
        cause=reason.cause,
        reason=reason.sentence,
        before=QueuedBefore(
            same_model=[job.id for job in place.before_in_model],
            own=list(place.own_before),
            num_own=place.num_own_before,
            num_others=place.num_others_before,
        ),
        lease_expires_at=place.job.lease_expires_at if place.job.state == "running" else None,
    )


def _place(services: Services, job_id: str, entity: str) -> tuple[QueuePlace, bool]:
    place = services.store.queue.place(job_id, entity)
    noted = services.store.jobs.noted_events([place.job])[job_id]
    return place, any(event.type == "training_started" for event in noted)


def _jobs_at_once(services: Services, base_model: str) -> int | None:
    if base_model not in services.base_models:
        return None
    return services.config.base_model(base_model).learners.jobs_at_once
