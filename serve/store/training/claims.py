"""Jobs as the coordinator sees them: claims, leases, and writes that are fenced by a claim's attempt number."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypedDict

from sqlalchemy import ColumnElement, Select, and_, bindparam, null, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from tandem.cluster.errors import JobCancelledError, LeaseLostError
from tandem.cluster.jobs.job import ClaimedJob, JobStore, PolicyVersion, QueuedJob
from tandem.cluster.jobs.kinds.registry import KINDS, read_options
from tandem.cluster.jobs.phases import Outcome, Phase
from tandem.serve.store.database import Database
from tandem.serve.store.ledger.phases import JobPhases, add_attempt
from tandem.serve.store.policies.references import lagged_digest
from tandem.serve.store.policies.versions import find_version
from tandem.serve.store.tables.training import (
    NO_PAYLOAD,
    InitialVersionRow,
    JobRow,
    LogRow,
    ModelRow,
    VersionRow,
    is_open,
)
from tandem.serve.store.training.events import CANCELLED_MESSAGE, end, noted_events, record

RUNNING_EVENTS = ("training_started", "warning", "gradient_step", "logprobs_rescored", "engine_disagrees")


class Claims(JobStore):
    """The coordinator's job store.

    Each coordinator polls `claim_next`, so the usual result, None, takes no lock. A job is claimable if it is its
    model's oldest open job and is queued, or running under an expired lease.
    """

    def __init__(self, database: Database):
        self._database = database
        self._phases = JobPhases(database)

    def put_initial_version(self, base_model: str, digest: str) -> None:
        """Record the zero adapter, version 0 of every model on this base. The first one that is recorded stays."""
        with suppress(IntegrityError), self._database.write() as session:  # a failed insert: another process was first
            if session.get(InitialVersionRow, base_model) is None:
                session.add(InitialVersionRow(base_model=base_model, digest=digest))

    def claim_next(self, base_model: str, owner: str, lease_s: float) -> ClaimedJob | None:
        """Claim the next job of the model whose last claim is the oldest; None if there is none.

        A job whose KL reference was deleted before it was accepted fails here; the next call claims the next job.
        """
        now = self._database.now()
        line = {"base_model": base_model, "now": now}
        with self._database.read() as session:
            if session.execute(_CLAIMABLE, line).first() is None:
                return None
        with self._database.write() as session:
            # Rows that another transaction has locked are skipped, not waited for.
            row = session.execute(_CLAIMABLE.with_for_update(skip_locked=True), line).first()
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
            job.start_digest, job.start_step, job.waiting_for = version.digest, version.step, None
            job.started_at = job.started_at or now
            model.last_claimed_at = now
            add_attempt(session, job.id, job.attempt, now)
            return ClaimedJob(
                id=job.id,
                payload_key=job.payload_key,
                config=read_options(job.kind, job.config),
                kind=job.kind,
                policy=model.path,
                model_id=job.model_id,
                attempt=job.attempt,
                version=version,
                next_step=model.next_step,
                num_recorded_gradient_steps=job.num_gradient_steps,
                reference_digest=job.reference_digest,
                reward_std_devs=_reward_std_devs(session, job.model_id),
                num_handed_back=job.num_handed_back,
                request_id=job.request_id,
                traceparent=job.traceparent,
                accepted_at=job.created_at.timestamp(),
                **_optimizer(session, version, job.kind),
            )

    def change_mark(self) -> object | None:
        """See `Database.change_mark`."""
        return self._database.change_mark()

    def next_queued(self, base_model: str) -> QueuedJob | None:
        """Return the job that `claim_next` would claim if all running jobs had ended."""
        with self._database.read() as session:
            row = session.execute(_QUEUED, {"base_model": base_model}).first()
            if row is None:
                return None
            job, model = row
            options = read_options(job.kind, job.config)
            return QueuedJob(job.id, job.payload_key, options, kind=job.kind, policy=model.path)

    def renew(self, job: ClaimedJob, lease_s: float) -> None:
        """Extend the lease. For a job to be cancelled, extend it and then raise JobCancelledError."""
        with self._database.write() as session:
            row = _held(session, job)
            row.lease_expires_at = self._database.now() + timedelta(seconds=lease_s)
            cancelled = row.cancel_requested
        if cancelled:
            raise JobCancelledError(f"The cancellation of job {job.id} was requested.")

    def report_waiting(self, job: ClaimedJob, reason: str | None) -> None:
        """Record what the job waits for before it can start; None once it no longer waits."""
        with self._database.write() as session:
            _held(session, job).waiting_for = reason

    def record_event(self, job: ClaimedJob, type: str, data: Mapping[str, Any], index: int | None = None) -> None:
        """Append one of RUNNING_EVENTS.

        A second training_started is ignored, and so are a warning that is already recorded and a gradient_step whose
        index, from 0, is.
        """
        if type not in RUNNING_EVENTS:
            raise ValueError(f"A running job records {', '.join(RUNNING_EVENTS)}, not {type!r}.")
        with self._database.write() as session:
            row = _held(session, job)
            if type == "training_started":
                row.waiting_for = None
                if row.num_events > 0:
                    return  # clients rely on an unchanged first event
            if type == "gradient_step" and index is not None and index < row.num_gradient_steps:
                return
            if type == "warning" and dict(data) in (warning.data for warning in noted_events(session, [job.id])):
                return
            if type == "gradient_step":
                self._log_step(session, job, row, data)
            record(session, row, type, data, self._database.now())

    def _log_step(self, session: Session, job: ClaimedJob, row: JobRow, data: Mapping[str, Any]) -> None:
        """Add the log entry of a gradient step to the model's logs, if the job has one."""
        entry = KINDS[job.kind].log(job.config, data, row.num_gradient_steps, job.next_step)
        if entry is not None:
            session.add(
                LogRow(
                    id=str(uuid.uuid4()),
                    model_id=job.model_id,
                    split=entry.split,
                    payload_key=NO_PAYLOAD,
                    metrics=dict(entry.metrics),
                    created_at=self._database.now(),
                )
            )

    def complete(self, job: ClaimedJob, version: PolicyVersion, metrics: Mapping[str, float]) -> None:
        """In one transaction, add the version, record training_ended and mark the job succeeded."""
        now = self._database.now()
        with self._database.write() as session:
            model = session.scalars(select(ModelRow).where(ModelRow.id == job.model_id).with_for_update()).one()
            row = _held(session, job)
            start = session.get(VersionRow, (job.model_id, job.version.step))
            is_unchanged = version.digest == job.version.digest  # the job had nothing to learn
            optimizer_kind = (start and start.optimizer_kind) if is_unchanged else job.kind
            session.add(
                VersionRow(
                    model_id=job.model_id,
                    step=version.step,
                    digest=version.digest,
                    optimizer_kind=optimizer_kind or null(),  # None would be the column's default
                    metrics=dict(metrics),
                    created_at=now,
                )
            )
            model.next_step = version.step + 1
            row.step, row.reward_std_dev = version.step, metrics.get("reward_std_dev")
            end(session, row, "succeeded", now)

    def fail(self, job: ClaimedJob, error_message: str, about: Mapping[str, str] | None = None) -> None:
        """Record training_failed and mark the job failed. `about`: parts of the message for the event."""
        with self._database.write() as session:
            end(session, _held(session, job), "failed", self._database.now(), error_message, about)

    def cancel(self, job: ClaimedJob) -> None:
        """End a job whose cancellation was requested."""
        with self._database.write() as session:
            end(session, _held(session, job), "cancelled", self._database.now(), CANCELLED_MESSAGE)

    def requeue(self, job: ClaimedJob, reason: str) -> None:
        """Return the job to the queue. Until it is claimed again, its error gives the reason."""
        with self._database.write() as session:
            self._return_to_queue(session, _held(session, job), reason)

    def record_phases(self, job: ClaimedJob, phases: Sequence[Phase], outcome: Outcome | None = None) -> None:
        """See `JobPhases.record`."""
        self._phases.record(job, phases, outcome)

    def hand_back(self, job: ClaimedJob, reason: str) -> None:
        """Return the job to the queue because the service shuts down; this doesn't count as one of its tries."""
        with self._database.write() as session:
            row = _held(session, job)
            row.num_handed_back += 1
            self._return_to_queue(session, row, reason)

    def _return_to_queue(self, session: Session, job: JobRow, reason: str) -> None:
        if job.cancel_requested:
            end(session, job, "cancelled", self._database.now(), CANCELLED_MESSAGE)
        else:
            job.state, job.error = "queued", reason
            job.owner = job.start_digest = job.start_step = job.waiting_for = None


Line = Callable[[type[JobRow]], ColumnElement[bool]]


class _Optimizer(TypedDict):
    fresh_optimizer: bool
    lost_optimizer: bool


def _optimizer(session: Session, start: PolicyVersion, kind: str) -> _Optimizer:
    """Return whether a job of this kind begins with a new optimizer, and whether that is because its state is lost.

    Jobs of another kind have other gradients, so their moments are no use.
    """
    row = session.get(VersionRow, (start.model_id, start.step))
    if row is None or row.optimizer_kind is None:  # version 0 and imported adapters never had one
        return {"fresh_optimizer": False, "lost_optimizer": False}
    is_of_kind, is_lost = row.optimizer_kind == kind, row.optimizer_expired_at is not None
    return {"fresh_optimizer": is_lost or not is_of_kind, "lost_optimizer": is_lost and is_of_kind}


def _first_in_line(is_in_line: Line) -> Select[JobRow, ModelRow]:
    """Select each model's oldest job in the line, and of those the one whose model's last claim is the oldest."""
    earlier = aliased(JobRow)
    is_behind = (
        select(earlier.number)
        .where(earlier.model_id == JobRow.model_id, is_in_line(earlier), earlier.number < JobRow.number)
        .exists()
    )
    return (
        select(JobRow, ModelRow)
        .join(JobRow.model)
        .where(ModelRow.base_model == bindparam("base_model"), is_in_line(JobRow), ~is_behind)
        .order_by(ModelRow.last_claimed_at, JobRow.number)
        .limit(1)
    )


def _is_queued(job: type[JobRow]) -> ColumnElement[bool]:
    return and_(is_open(job), job.state == "queued")  # is_open lets the query use the index


# Built once: a coordinator polls several times per second, and building the query takes longer than running it.
_CLAIMABLE = _first_in_line(is_open).where(or_(JobRow.state == "queued", JobRow.lease_expires_at <= bindparam("now")))
_QUEUED = _first_in_line(_is_queued)


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
    """Lock and return the job's row. Raises LeaseLostError if the claim no longer holds."""
    row = session.scalars(select(JobRow).where(JobRow.id == job.id).with_for_update()).one()
    if row.state != "running":
        raise LeaseLostError(f"Job {job.id} is already {row.state}; attempt {job.attempt} can no longer change it.")
    if row.attempt != job.attempt:
        raise LeaseLostError(
            f"Job {job.id} was taken over: attempt {row.attempt} runs; attempt {job.attempt} can no longer change it."
        )
    return row
