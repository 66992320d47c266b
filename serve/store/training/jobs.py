"""Jobs as the API sees them: accept, list and cancel them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tandem.cluster.config import LimitsConfig
from tandem.serve.errors import NotFoundError, QueueFullError
from tandem.serve.store.database import Database, Lock, position
from tandem.serve.store.policies.references import KlReference, pin_reference
from tandem.serve.store.tables.training import EventRow, JobRow, ModelRow, is_open
from tandem.serve.store.training.events import CANCELLED_MESSAGE, end, noted_events
from tandem.serve.store.training.open_runs import check_no_open_run
from tandem.serve.store.training.repeats import Post, find_repeated, may_repeat
from tandem.serve.store.uploads.datasets import lock_dataset
from tandem.serve.store.uploads.trajectory_index import TRAIN, add_source


class Jobs:
    """For a caller, jobs on models of other entities don't exist."""

    def __init__(self, database: Database):
        self._database = database

    def add(
        self,
        job_id: str,
        model_id: str,
        payload_key: str,
        config: Mapping[str, Any],
        body_sha256: str,
        idempotency_key: str | None = None,
        reference: KlReference | None = None,
        limits: LimitsConfig = LimitsConfig(),
        api_key_id: str | None = None,
        kind: str = "rl",
        dataset_id: str | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
    ) -> JobRow:
        """Accept a job. For a repeat of an earlier post (see `find_repeated`), return the job of that one.

        Raises NotFoundError if the model was deleted, ConflictError if the idempotency key was used with another body
        or a client of the Tinker API trains the model, QueueFullError if too many jobs are open, ConfigError if the KL
        reference doesn't exist. `dataset_id` is that of the dataset whose blob is the payload.
        """
        post = Post(body_sha256, idempotency_key, api_key_id, limits.repeated_body_s)
        with self._database.write() as session:
            # The lock orders this job and a deletion of the model. It also orders equal posts, so that all but
            # the first find the first one's job.
            model = session.scalar(
                select(ModelRow).where(ModelRow.id == model_id, ModelRow.deleted_at.is_(None)).with_for_update()
            )
            if model is None:
                raise NotFoundError(f"There is no model {model_id}: it was deleted.", "model_not_found", "model_id")
            if repeated := find_repeated(session, model_id, post, self._database.now()):
                return repeated
            check_no_open_run(session, model)
            if dataset_id is not None:
                lock_dataset(session, dataset_id)
            reference_digest = reference and pin_reference(session, model, reference)
            self._database.lock(session, Lock.ACCEPT_JOBS)  # until the end, no other transaction counts or adds jobs
            _check_room(session, limits, model)
            job = JobRow(
                id=job_id,
                model_id=model_id,
                kind=kind,
                state="queued",
                payload_key=payload_key,
                config=dict(config),
                body_sha256=body_sha256,
                idempotency_key=idempotency_key,
                api_key_id=api_key_id,
                request_id=request_id,
                traceparent=traceparent,
                reference_digest=reference_digest,
                reference_lag=reference and reference.lag,
                created_at=self._database.now(),
            )
            session.add(job)
            if kind == "rl":
                add_source(session, job_id, "job", model, TRAIN, payload_key, job.created_at)
        return job

    def find_repeated(self, model_id: str, post: Post) -> JobRow | None:
        """Return the job of the earlier post that this one repeats, if any. Raises ConflictError like `add`."""
        with self._database.read() as session:
            return find_repeated(session, model_id, post, self._database.now())

    def may_repeat(self, api_key_id: str, repeated_body_s: float) -> bool:
        """Return True if a post of this sender without an idempotency key may repeat an earlier one."""
        with self._database.read() as session:
            return may_repeat(session, api_key_id, repeated_body_s, self._database.now())

    def check_room(self, limits: LimitsConfig, model: ModelRow | None = None) -> None:
        """Raise QueueFullError if no job, or none on this model, would be accepted now.

        Raise ConflictError if a client of the Tinker API trains the model.
        """
        with self._database.read() as session:
            if model is not None:
                check_no_open_run(session, model)
            _check_room(session, limits, model)

    def knows_idempotency_key(self, idempotency_key: str, entity: str) -> bool:
        """Return True if the entity has sent a job with this key."""
        query = select(JobRow.id).join(JobRow.model).where(JobRow.idempotency_key == idempotency_key)
        with self._database.read() as session:
            return session.scalar(query.where(ModelRow.entity == entity).limit(1)) is not None

    def get(self, job_id: str, entity: str) -> JobRow:
        """Return a job. Raises NotFoundError."""
        with self._database.read() as session:
            return _find_job(session, job_id, entity)

    def page(
        self,
        entity: str,
        limit: int,
        after: str | None = None,
        newest_first: bool = True,
        model_id: str | None = None,
        state: str | None = None,
        kind: str | None = None,
    ) -> Sequence[JobRow]:
        """Return jobs of the entity in order of acceptance, those after the job `after`.

        Raises UnknownCursorError for `after`.
        """
        query = select(JobRow).join(JobRow.model).where(ModelRow.entity == entity)
        if model_id:
            query = query.where(JobRow.model_id == model_id)
        if state:
            query = query.where(JobRow.state == state)
        if kind:
            query = query.where(JobRow.kind == kind)
        query = query.order_by(JobRow.number.desc() if newest_first else JobRow.number).limit(limit)
        with self._database.read() as session:
            if after:
                number = position(session, JobRow, after)
                query = query.where(JobRow.number < number if newest_first else JobRow.number > number)
            return session.scalars(query).all()

    def events(self, job_id: str, entity: str, limit: int, after: int = 0) -> Sequence[EventRow]:
        """Return the job's events in order, those with seq > `after`. Raises NotFoundError."""
        with self._database.read() as session:
            _find_job(session, job_id, entity)
            query = select(EventRow).where(EventRow.job_id == job_id, EventRow.seq > after)
            return session.scalars(query.order_by(EventRow.seq).limit(limit)).all()

    def num_gradient_steps(self, job_id: str, before: int) -> int:
        """Return how many gradient steps are among the job's events with seq < `before`."""
        is_step = (EventRow.job_id == job_id, EventRow.seq < before, EventRow.type == "gradient_step")
        with self._database.read() as session:
            return session.scalar(select(func.count()).select_from(EventRow).where(*is_step)) or 0

    def noted_events(self, jobs: Sequence[JobRow]) -> Mapping[str, Sequence[EventRow]]:
        """Return for the id of each job its training_started and its warnings, in order."""
        noted: dict[str, list[EventRow]] = {job.id: [] for job in jobs}
        with self._database.read() as session:
            for event in noted_events(session, list(noted)):
                noted[event.job_id].append(event)
        return noted

    def request_cancel(self, job_id: str, entity: str) -> JobRow:
        """Cancel a queued job, or ask the coordinator to cancel a running one. An ended job stays unchanged.

        Raises NotFoundError.
        """
        with self._database.write() as session:
            job = _find_job(session, job_id, entity, lock=True)
            if job.state == "queued":
                end(session, job, "cancelled", self._database.now(), CANCELLED_MESSAGE)
            elif job.state == "running":
                job.cancel_requested = True
            return job


def _check_room(session: Session, limits: LimitsConfig, model: ModelRow | None) -> None:
    num_open = select(func.count()).select_from(JobRow).where(is_open())
    queues = [("", num_open, limits.max_open_jobs)]
    if model is not None:
        of_project = num_open.join(JobRow.model).where(
            ModelRow.entity == model.entity, ModelRow.project == model.project
        )
        whose = f"of project {model.entity}/{model.project} "
        queues.insert(0, (whose, of_project, limits.max_open_jobs_per_project))
    for whose, query, limit in queues:
        if (count := session.scalar(query) or 0) >= limit:
            raise QueueFullError(
                f"{count} training jobs {whose}are queued or running; the limit is {limit}. "
                "Retry when some have ended, or cancel some."
            )


def _find_job(session: Session, job_id: str, entity: str, lock: bool = False) -> JobRow:
    query = select(JobRow).join(JobRow.model).where(JobRow.id == job_id, ModelRow.entity == entity)
    if lock:
        query = query.with_for_update(of=JobRow)
    job = session.scalar(query)
    if job is None:
        raise NotFoundError(
            f"There is no training job {job_id}: the id is wrong, or it belongs to another entity.",
            "training_job_not_found",
            "training_job_id",
        )
    return job
