"""The coordinator's side of the job store: claims, leases, and the writes that a claim's attempt number fences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from tandem.cluster.errors import JobCancelledError, LeaseLostError
from tandem.cluster.jobs.job import ClaimedJob, PolicyVersion, QueuedJob
from tandem.rl.config import TrainingConfig
from tandem.serve.store.database import Database
from tandem.serve.store.events import CANCELLED_MESSAGE, end, record
from tandem.serve.store.references import lagged_digest
from tandem.serve.store.tables import InitialVersionRow, JobRow, ModelRow, VersionRow, is_open
from tandem.serve.store.versions import find_version

RUNNING_EVENTS = ("training_started", "gradient_step", "logprobs_rescored")


class ClaimTable(Database):
    """Implements `tandem.cluster.jobs.job.JobStore`.

    Each coordinator polls `claim_next`, so the usual answer, "nothing to do", takes no lock. A job is claimable when it
    is its model's oldest open one and is queued, or running under a lease that has run out.
    """

    def put_initial_version(self, base_model: str, digest: str) -> None:
        """Records the zero adapter that is version 0 of every model on this base. The first one recorded stays."""
        with suppress(IntegrityError), self._write() as session:  # a failed insert: another process was first
            if session.get(InitialVersionRow, base_model) is None:
                session.add(InitialVersionRow(base_model=base_model, digest=digest))

    def claim_next(self, base_model: str, owner: str, lease_s: float) -> ClaimedJob | None:
        """The next job of the model that has waited longest since its last claim, or None.

        A job whose KL reference was deleted before it was accepted fails here; the next call claims the next one.
        """
        now = self._clock()
        claimable = _claimable(base_model, now)
        with self._read() as session:
            if session.execute(claimable).first() is None:
                return None
        with self._write() as session:
            # Rows that another transaction holds are its business: skipped, not waited for.
            row = session.execute(claimable.with_for_update(skip_locked=True)).first()
            if row is None:
                return None
            job, model = row
            version = find_version(session, model)
            if version is None:
                return None  # version 0 of this base model isn't recorded yet
            if job.reference_lag is not None and job.reference_digest is None:
                job.reference_digest = lagged_digest(session, job, model, job.reference_lag, version.step)
                if job.reference_digest is None:
                    end(session, job, "failed", now, _lost_reference(model, job.reference_lag, version))
                    return None
            if job.state == "running":
                job.error = f"Attempt {job.attempt} stopped renewing its lease; its coordinator has probably died."
            job.state, job.owner, job.lease_expires_at = "running", owner, now + timedelta(seconds=lease_s)
            job.attempt += 1
            job.start_digest, job.waiting_for = version.digest, None
            job.started_at = job.started_at or now
            model.last_claimed_at = now
            return ClaimedJob(
                id=job.id,
                payload_key=job.payload_key,
                config=TrainingConfig.model_validate(job.config),
                model_id=job.model_id,
                attempt=job.attempt,
                version=version,
                next_step=model.next_step,
                num_recorded_gradient_steps=job.num_gradient_steps,
                reference_digest=job.reference_digest,
                reward_std_devs=_reward_std_devs(session, job.model_id),
                num_handed_back=job.num_handed_back,
            )

    def next_queued(self, base_model: str) -> QueuedJob | None:
        """The job that `claim_next` would return if the running ones had ended."""
        with self._read() as session:
            job = session.scalars(_first_in_line(base_model, _is_queued)).first()
            return job and QueuedJob(job.id, job.payload_key, TrainingConfig.model_validate(job.config))

    def renew(self, job: ClaimedJob, lease_s: float) -> None:
        """Extends the lease, also of a job to be cancelled, which then raises JobCancelledError."""
        with self._write() as session:
            row = _held(session, job)
            row.lease_expires_at = self._clock() + timedelta(seconds=lease_s)
            cancelled = row.cancel_requested
        if cancelled:
            raise JobCancelledError(f"Job {job.id} is to be cancelled.")

    def report_waiting(self, job: ClaimedJob, reason: str | None) -> None:
        """Shows what the job waits for before it can begin, None for nothing any more."""
        with self._write() as session:
            _held(session, job).waiting_for = reason

    def record_event(self, job: ClaimedJob, type: str, data: Mapping[str, Any], index: int | None = None) -> None:
        """Appends training_started, gradient_step or logprobs_rescored.

        Ignored are a second training_started, and a gradient_step whose index, from 0, is recorded already.
        """
        if type not in RUNNING_EVENTS:
            raise ValueError(f"A running job records {', '.join(RUNNING_EVENTS)}, not {type!r}.")
        with self._write() as session:
            row = _held(session, job)
            if type == "training_started":
                row.waiting_for = None
                if row.num_events > 0:
                    return  # clients rely on the first event staying as it is
            if type == "gradient_step" and index is not None and index < row.num_gradient_steps:
                return
            record(session, row, type, data, self._clock())

    def complete(self, job: ClaimedJob, version: PolicyVersion, metrics: Mapping[str, float]) -> None:
        """In one transaction: adds the version, records training_ended, marks the job succeeded."""
        now = self._clock()
        with self._write() as session:
            model = session.scalars(select(ModelRow).where(ModelRow.id == job.model_id).with_for_update()).one()
            row = _held(session, job)
            session.add(
                VersionRow(
                    model_id=job.model_id,
                    step=version.step,
                    digest=version.digest,
                    metrics=dict(metrics),
                    created_at=now,
                )
            )
            model.next_step = version.step + 1
            row.step, row.reward_std_dev = version.step, metrics.get("reward_std_dev")
            end(session, row, "succeeded", now)

    def fail(self, job: ClaimedJob, error_message: str) -> None:
        """Records training_failed and marks the job failed."""
        with self._write() as session:
            end(session, _held(session, job), "failed", self._clock(), error_message)

    def cancel(self, job: ClaimedJob) -> None:
        """Ends a job whose cancellation was requested."""
        with self._write() as session:
            end(session, _held(session, job), "cancelled", self._clock(), CANCELLED_MESSAGE)

    def requeue(self, job: ClaimedJob, reason: str) -> None:
        """Gives the job back, to be claimed again at once. Until then its error says why."""
        with self._write() as session:
            self._give_back(session, _held(session, job), reason)

    def hand_back(self, job: ClaimedJob, reason: str) -> None:
        """Gives the job back because the service stops, which doesn't use up one of its tries."""
        with self._write() as session:
            row = _held(session, job)
            row.num_handed_back += 1
            self._give_back(session, row, reason)

    def _give_back(self, session: Session, job: JobRow, reason: str) -> None:
        if job.cancel_requested:
            end(session, job, "cancelled", self._clock(), CANCELLED_MESSAGE)
        else:
            job.state, job.error = "queued", reason
            job.owner = job.start_digest = job.waiting_for = None


def _claimable(base_model: str, now: datetime) -> Select[tuple[JobRow, ModelRow]]:
    return _first_in_line(base_model, is_open).where(or_(JobRow.state == "queued", JobRow.lease_expires_at <= now))


Line = Callable[[type[JobRow]], ColumnElement[bool]]


def _first_in_line(base_model: str, is_in_line: Line) -> Select[tuple[JobRow, ModelRow]]:
    """Of each model's jobs in the line the oldest, and of those the one whose model has waited longest."""
    earlier = aliased(JobRow)
    is_behind = (
        select(earlier.number)
        .where(earlier.model_id == JobRow.model_id, is_in_line(earlier), earlier.number < JobRow.number)
        .exists()
    )
    return (
        select(JobRow, ModelRow)
        .join(JobRow.model)
        .where(ModelRow.base_model == base_model, is_in_line(JobRow), ~is_behind)
        .order_by(ModelRow.last_claimed_at, JobRow.number)
        .limit(1)
    )


def _is_queued(job: type[JobRow]) -> ColumnElement[bool]:
    return and_(is_open(job), job.state == "queued")  # is_open says it in the way that finds the index


def _reward_std_devs(session: Session, model_id: str) -> tuple[float, ...]:
    query = select(JobRow.reward_std_dev).where(JobRow.model_id == model_id, JobRow.reward_std_dev.is_not(None))
    return tuple(session.scalars(query.order_by(JobRow.number)))


def _lost_reference(model: ModelRow, lag: int, current: PolicyVersion) -> str:
    return (
        f"kl_penalty_step_lag: version {current.step - lag} of {model.path}, {lag} before version {current.step} that "
        "the job starts from, was deleted before the job was accepted. "
        "Post the job again with another lag."
    )


def _held(session: Session, job: ClaimedJob) -> JobRow:
    """The job's row, locked, if the claim still holds. Raises LeaseLostError otherwise."""
    row = session.scalars(select(JobRow).where(JobRow.id == job.id).with_for_update()).one()
    if row.state != "running":
        raise LeaseLostError(f"Job {job.id} is {row.state} already; attempt {job.attempt} can't change it any more.")
    if row.attempt != job.attempt:
        raise LeaseLostError(
            f"Job {job.id} was taken over: attempt {row.attempt} runs, attempt {job.attempt} can't change it any more."
        )
    return row
