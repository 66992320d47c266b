"""Claims of fine-tuning jobs by runners: leases, and writes that are fenced by the attempt number of a claim."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tandem.cluster.errors import JobCancelledError, LeaseLostError
from tandem.serve.finetuning.store.events import Level, end, note
from tandem.serve.finetuning.store.tables import OPEN_STATUSES, CheckpointRow, FineTuningJobRow
from tandem.serve.store.database import Database
from tandem.serve.store.tables.training import EventRow, JobRow


@dataclass(frozen=True)
class ClaimedFineTuning:
    """A job that this runner has claimed. `attempt` fences every later write of the claim."""

    id: str
    attempt: int
    entity: str
    model: str
    base_model: str
    start_model_id: str | None
    start_step: int | None
    suffix: str | None
    training_file: str
    validation_file: str | None
    seed: int
    method: dict[str, Any]
    status: str
    model_id: str | None
    cancel_requested: bool

    def key(self, index: int) -> str:
        """Return the idempotency key of the training job number `index`."""
        return f"{self.id}/{index}"


class Note(NamedTuple):
    """An event to append."""

    message: str
    level: Level = "info"
    metrics: Mapping[str, Any] | None = None


class FineTuningClaims:
    """Methods that take a claimed job raise LeaseLostError if the claim no longer holds."""

    def __init__(self, database: Database):
        self._database = database

    def claim(self, owner: str, lease_s: float) -> ClaimedFineTuning | None:
        """Claim the oldest open job without a live claim. Returns None if there is none."""
        now, job = self._database.now(), FineTuningJobRow
        query = (
            select(job).where(job.status.in_(OPEN_STATUSES), job.lease_expires_at <= now).order_by(job.number).limit(1)
        )
        with self._database.read() as session:
            if session.execute(query).first() is None:
                return None
        with self._database.write() as session:
            row = session.scalar(query.with_for_update(skip_locked=True))
            if row is None:
                return None
            row.owner, row.lease_expires_at = owner, now + timedelta(seconds=lease_s)
            row.attempt += 1
            return ClaimedFineTuning(
                **{name: getattr(row, name) for name in ClaimedFineTuning.__dataclass_fields__}  # plain values
            )

    def renew(self, job: ClaimedFineTuning, lease_s: float) -> None:
        """Extend the lease. Raises JobCancelledError, after extending it, if the user asked for a cancellation."""
        with self._database.write() as session:
            row = _held(session, job)
            row.lease_expires_at = self._database.now() + timedelta(seconds=lease_s)
            cancelled = row.cancel_requested
        if cancelled:
            raise JobCancelledError(f"The cancellation of {job.id} was requested.")

    def release(self, job: ClaimedFineTuning) -> None:
        """Give the claim back. The job's training continues, and another runner can claim it at once."""
        with self._database.write() as session:
            row = _held(session, job)
            row.lease_expires_at, row.owner = self._database.now(), None

    def validated(self, job: ClaimedFineTuning, method: Mapping[str, Any], model_id: str) -> None:
        """Record that the files are valid, with the hyperparameters that follow from them, and the model to train."""
        with self._database.write() as session:
            row = _held(session, job)
            row.method, row.model_id = dict(method), model_id
            if row.status == "validating_files":
                row.status = "queued"
                note(session, row, "Files validated, moving job to queued state", self._database.now())

    def running(self, job: ClaimedFineTuning) -> None:
        """Record that training has begun."""
        with self._database.write() as session:
            row, now = _held(session, job), self._database.now()
            if row.status != "running":
                row.status, row.started_at = "running", now
                note(session, row, "Fine-tuning job started", now)

    def note(self, job: ClaimedFineTuning, notes: Iterable[Note]) -> None:
        """Append events."""
        with self._database.write() as session:
            row = _held(session, job)
            for one in notes:
                note(session, row, one.message, self._database.now(), one.level, one.metrics)

    def training_job(self, job: ClaimedFineTuning, index: int, model_id: str) -> str | None:
        """Return the id of the training job number `index` if it was accepted."""
        query = select(JobRow.id).where(JobRow.model_id == model_id, JobRow.idempotency_key == job.key(index))
        with self._database.read() as session:
            return session.scalar(query)

    def num_shown(self, job: ClaimedFineTuning, part: str) -> int:
        """Return how much of a part of the job is in its events."""
        with self._database.read() as session:
            row = session.scalars(select(FineTuningJobRow).where(FineTuningJobRow.id == job.id)).one()
            return int(row.parts.get(part, 0))

    def show(self, job: ClaimedFineTuning, part: str, num_shown: int, notes: Sequence[Note]) -> None:
        """Append events once: those that show a part up to this number, like the events of a training job."""
        with self._database.write() as session:
            row = _held(session, job)
            if int(row.parts.get(part, 0)) >= num_shown:
                return
            row.parts = {**row.parts, part: num_shown}
            for one in notes:
                note(session, row, one.message, self._database.now(), one.level, one.metrics)

    def add_checkpoint(
        self,
        job: ClaimedFineTuning,
        number: int,
        step: int,
        gradient_steps: int,
        model: str,
        metrics: Mapping[str, float],
    ) -> None:
        """Record a version that the job made, once."""
        with self._database.write() as session:
            row = _held(session, job)
            if session.get(CheckpointRow, (job.id, number)) is not None:
                return
            now = self._database.now()
            session.add(
                CheckpointRow(
                    job_id=job.id,
                    number=number,
                    step=step,
                    gradient_steps=gradient_steps,
                    model=model,
                    metrics=dict(metrics),
                    created_at=now,
                )
            )
            note(session, row, f"Checkpoint created at step {gradient_steps}: {model}", now)

    def num_gradient_steps(self, job: ClaimedFineTuning, before: int) -> int:
        """Return the gradient steps of the job up to the checkpoint before number `before`."""
        query = select(func.max(CheckpointRow.gradient_steps)).where(
            CheckpointRow.job_id == job.id, CheckpointRow.number < before
        )
        with self._database.read() as session:
            return session.scalar(query) or 0

    def num_trained_tokens(self, job: ClaimedFineTuning) -> int:
        """Return the tokens that the job's training jobs have trained, each once per epoch."""
        query = (
            select(EventRow.data)
            .join(JobRow, JobRow.id == EventRow.job_id)
            .join(FineTuningJobRow, FineTuningJobRow.model_id == JobRow.model_id)
            .where(FineTuningJobRow.id == job.id, JobRow.idempotency_key.startswith(f"{job.id}/", autoescape=True))
            .where(EventRow.type == "training_started")
        )
        with self._database.read() as session:
            return sum(_trained(data) for data in session.scalars(query))

    def last_checkpoint(self, job: ClaimedFineTuning) -> CheckpointRow | None:
        """Return the newest version that the job made."""
        query = select(CheckpointRow).where(CheckpointRow.job_id == job.id).order_by(CheckpointRow.number.desc())
        with self._database.read() as session:
            return session.scalars(query.limit(1)).first()

    def succeed(self, job: ClaimedFineTuning, fine_tuned_model: str, trained_tokens: int) -> None:
        """End the job with its model."""
        with self._database.write() as session:
            row = _held(session, job)
            row.fine_tuned_model, row.trained_tokens = fine_tuned_model, trained_tokens
            end(session, row, "succeeded", self._database.now())

    def cancel(self, job: ClaimedFineTuning) -> None:
        """End a job whose cancellation was requested."""
        with self._database.write() as session:
            end(session, _held(session, job), "cancelled", self._database.now())

    def fail(self, job: ClaimedFineTuning, code: str, message: str, param: str | None) -> None:
        """End the job with an error."""
        with self._database.write() as session:
            error = {"code": code, "message": message, "param": param}
            end(session, _held(session, job), "failed", self._database.now(), error)


def _trained(started: Mapping[str, Any]) -> int:
    """Return the trained tokens of a training job, from its first event."""
    return int(started.get("num_trained_tokens", started.get("num_trainable_tokens", 0)))


def _held(session: Session, job: ClaimedFineTuning) -> FineTuningJobRow:
    """Return the claimed job's row, locked. Raises LeaseLostError if the claim no longer holds."""
    row = session.scalars(select(FineTuningJobRow).where(FineTuningJobRow.id == job.id).with_for_update()).one()
    if row.status not in OPEN_STATUSES or row.attempt != job.attempt:
        raise LeaseLostError(f"Another runner has claimed {job.id}, or it has ended.")
    return row
