"""Fine-tuning jobs as the API sees them: accept, list and cancel them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tandem.serve.errors import ConflictError, NotFoundError, QueueFullError
from tandem.serve.finetuning.store.events import end, note
from tandem.serve.finetuning.store.files import find_file
from tandem.serve.finetuning.store.tables import OPEN_STATUSES, CheckpointRow, FineTuningEventRow, FineTuningJobRow
from tandem.serve.names import quoted
from tandem.serve.store.database import Database, Lock, position


class FineTuningJobs:
    """For a caller, jobs of other entities don't exist."""

    def __init__(self, database: Database):
        self._database = database

    def add(self, job: FineTuningJobRow, max_open: int) -> FineTuningJobRow:
        """Accept a job. A second one with the same idempotency key returns the first.

        Raises NotFoundError for files that don't exist, ConflictError if the key was used with another body,
        QueueFullError if the entity has `max_open` open jobs.
        """
        with self._database.write() as session:
            self._database.lock(session, Lock.ACCEPT_JOBS)
            if job.idempotency_key and (first := _find_repeat(session, job)):
                return first
            for file_id in filter(None, (job.training_file, job.validation_file)):
                find_file(session, file_id, job.entity, self._database.now(), lock=True)
            of_entity = (FineTuningJobRow.entity == job.entity, FineTuningJobRow.status.in_(OPEN_STATUSES))
            count = session.scalar(select(func.count()).select_from(FineTuningJobRow).where(*of_entity)) or 0
            if count >= max_open:
                raise QueueFullError(
                    f"{count} fine-tuning jobs of {job.entity} are queued or running; the limit is {max_open} "
                    "(limits.max_open_jobs_per_project). Retry when some have ended, or cancel some."
                )
            job.created_at = self._database.now()
            session.add(job)
            session.flush()
            note(session, job, f"Created fine-tuning job: {job.id}", job.created_at)
            note(session, job, f"Validating training file: {job.training_file}", job.created_at)
        return job

    def get(self, job_id: str, entity: str) -> FineTuningJobRow:
        """Return a job. Raises NotFoundError."""
        with self._database.read() as session:
            return _find(session, job_id, entity)

    def page(
        self, entity: str, limit: int, after: str | None = None, labels: Mapping[str, str] | None = None
    ) -> Sequence[FineTuningJobRow]:
        """Return jobs, the newest first, those after the job `after`. Raises UnknownCursorError.

        `labels`: only those with this metadata; {} for those without any.
        """
        row = FineTuningJobRow
        query = select(row).where(row.entity == entity).order_by(row.number.desc())
        with self._database.read() as session:
            if after:
                query = query.where(row.number < position(session, row, after, row.entity == entity))
            if labels is None:
                return session.scalars(query.limit(limit)).all()
            # JSON is compared here, because databases differ in how they do it.
            found = []
            for job in session.scalars(query.execution_options(yield_per=100)):
                if _has(job, labels):
                    found.append(job)
                    if len(found) == limit:
                        break
            return found

    def events(self, job_id: str, entity: str, limit: int, before: int | None = None) -> Sequence[FineTuningEventRow]:
        """Return events, the newest first, those with seq < `before`. Raises NotFoundError."""
        with self._database.read() as session:
            _find(session, job_id, entity)
            query = select(FineTuningEventRow).where(FineTuningEventRow.job_id == job_id)
            if before is not None:
                query = query.where(FineTuningEventRow.seq < before)
            return session.scalars(query.order_by(FineTuningEventRow.seq.desc()).limit(limit)).all()

    def checkpoints(self, job_id: str, entity: str, limit: int, before: int | None = None) -> Sequence[CheckpointRow]:
        """Return the versions that a job made, the newest first. Raises NotFoundError."""
        with self._database.read() as session:
            _find(session, job_id, entity)
            query = select(CheckpointRow).where(CheckpointRow.job_id == job_id)
            if before is not None:
                query = query.where(CheckpointRow.number < before)
            return session.scalars(query.order_by(CheckpointRow.number.desc()).limit(limit)).all()

    def request_cancel(self, job_id: str, entity: str) -> FineTuningJobRow:
        """Cancel a job that no runner has claimed, or ask its runner to. An ended job stays unchanged.

        Raises NotFoundError.
        """
        with self._database.write() as session:
            job = _find(session, job_id, entity, lock=True)
            if job.status not in OPEN_STATUSES:
                return job
            if job.attempt == 0:
                end(session, job, "cancelled", self._database.now())
            elif not job.cancel_requested:
                job.cancel_requested = True
                note(session, job, "The job is being cancelled.", self._database.now())
            return job


def _has(job: FineTuningJobRow, labels: Mapping[str, str]) -> bool:
    own = job.labels or {}
    return all(own.get(name) == value for name, value in labels.items()) if labels else not own


def _find(session: Session, job_id: str, entity: str, lock: bool = False) -> FineTuningJobRow:
    query = select(FineTuningJobRow).where(FineTuningJobRow.id == job_id, FineTuningJobRow.entity == entity)
    job = session.scalar(query.with_for_update() if lock else query)
    if job is None:
        raise NotFoundError(
            f"There is no fine-tuning job {quoted(job_id)}: the id is wrong, or it belongs to another entity.",
            "fine_tuning_job_not_found",
            "fine_tuning_job_id",
        )
    return job


def _find_repeat(session: Session, job: FineTuningJobRow) -> FineTuningJobRow | None:
    row = FineTuningJobRow
    first = session.scalar(select(row).where(row.entity == job.entity, row.idempotency_key == job.idempotency_key))
    if first and first.body_sha256 != job.body_sha256:
        raise ConflictError(
            f"Idempotency-Key {job.idempotency_key!r} was used for job {first.id} with another body. "
            "Send the same body to get that job again, or a new key for a new job.",
            "idempotency_key_reused",
            "Idempotency-Key",
        )
    return first
