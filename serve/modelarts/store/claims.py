"""Claims of job versions by job runners: leases, and writes that are fenced by the attempt number of a claim."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tandem.cluster.errors import JobCancelledError, LeaseLostError
from tandem.serve.modelarts.store.lookups import log_sizes
from tandem.serve.modelarts.store.status import OPEN_STATUSES, UserJobStatus
from tandem.serve.modelarts.store.tables import UserJobRow, UserJobVersionRow
from tandem.serve.store.database import Database


@dataclass(frozen=True)
class ClaimedUserJob:
    """A version of a job that this runner has claimed. `attempt` fences every later write of the claim."""

    version_id: int
    attempt: int
    project: str
    name: str
    settings: dict[str, Any]
    submission_prefix: str
    num_submissions: int
    stop_requested: bool
    """True if the user asked for a stop before this claim."""


class Claims:
    """Methods that take a claimed job raise LeaseLostError if the claim no longer holds."""

    def __init__(self, database: Database):
        self._database = database

    def claim(self, owner: str, lease_s: float) -> ClaimedUserJob | None:
        """Claim the oldest open version without a live claim. Returns None if there is none."""
        now, version = self._database.now(), UserJobVersionRow
        query = (
            select(version, UserJobRow)
            .join(version.job)
            .where(version.status.in_(OPEN_STATUSES), version.lease_expires_at <= now)
            .order_by(version.id)
            .limit(1)
        )
        with self._database.read() as session:
            if session.execute(query).first() is None:
                return None
        with self._database.write() as session:
            found = session.execute(query.with_for_update(skip_locked=True, of=version)).first()
            if found is None:
                return None
            row, job = found
            row.owner, row.lease_expires_at = owner, now + timedelta(seconds=lease_s)
            row.attempt += 1
            return ClaimedUserJob(
                version_id=row.id,
                attempt=row.attempt,
                project=job.project,
                name=job.name,
                settings=row.settings,
                submission_prefix=row.submission_prefix,
                num_submissions=row.num_submissions,
                stop_requested=row.stop_requested,
            )

    def renew(self, job: ClaimedUserJob, lease_s: float) -> None:
        """Extend the lease. Raises JobCancelledError, after extending it, if the user asked for a stop."""
        with self._database.write() as session:
            row = held_version(session, job)
            row.lease_expires_at = self._database.now() + timedelta(seconds=lease_s)
            stop_requested = row.stop_requested
        if stop_requested:
            raise JobCancelledError(f"Version {job.version_id} of job {job.name} is to be stopped.")

    def set_status(self, job: ClaimedUserJob, status: UserJobStatus, reason: str | None = None) -> None:
        """Set the status, with what the job waits for as `reason`. A job that is being stopped stays KILLING."""
        with self._database.write() as session:
            row = held_version(session, job)
            if not row.stop_requested:
                row.status = status
            row.error = reason
            if status is UserJobStatus.RUNNING:
                row.started_at = row.started_at or self._database.now()

    def count_submission(self, job: ClaimedUserJob) -> int:
        """Record that the job is about to be submitted to Ray. Returns the number of submissions, with this one."""
        with self._database.write() as session:
            row = held_version(session, job)
            row.num_submissions += 1
            row.log_offsets = log_sizes(session, job.version_id)
            return row.num_submissions

    def end(self, job: ClaimedUserJob, status: UserJobStatus, error: str | None = None) -> None:
        """Set the final status."""
        with self._database.write() as session:
            row = held_version(session, job)
            row.status, row.error, row.ended_at, row.owner = status, error, self._database.now(), None

    def release(self, job: ClaimedUserJob) -> None:
        """Give the claim back. The job continues, and another runner can claim it at once."""
        with self._database.write() as session:
            row = held_version(session, job)
            row.lease_expires_at, row.owner = self._database.now(), None


def held_version(session: Session, job: ClaimedUserJob) -> UserJobVersionRow:
    """Return the claimed version's row, locked. Raises LeaseLostError if the claim no longer holds."""
    query = select(UserJobVersionRow).where(UserJobVersionRow.id == job.version_id)
    row = session.scalars(query.with_for_update()).one()
    if UserJobStatus(row.status).has_ended or row.attempt != job.attempt:
        raise LeaseLostError(f"Another runner has claimed version {job.version_id} of job {job.name}, or it has ended.")
    return row
