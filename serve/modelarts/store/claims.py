"""The job runner's side of user jobs: claims, leases, and the writes that a claim's attempt number fences."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tandem.cluster.errors import JobCancelledError, LeaseLostError
from tandem.serve.modelarts.store.jobs import OPEN_STATUSES, UserJobStatus, num_log_lines
from tandem.serve.modelarts.store.tables import DatasetVersionRow, UserJobLogRow, UserJobRow, UserJobVersionRow
from tandem.serve.store.database import Database


@dataclass(frozen=True)
class ClaimedUserJob:
    """A version of a user job that this runner looks after. `attempt` fences every later write of this claim."""

    version_id: int
    attempt: int
    project: str
    name: str
    settings: dict[str, Any]
    submission_prefix: str
    num_submissions: int
    stop_requested: bool
    """Already when it was claimed."""


class UserJobClaimTable(Database):
    """Methods that take a claim raise LeaseLostError when it no longer holds."""

    def claim_user_job(self, owner: str, lease_s: float) -> ClaimedUserJob | None:
        """The oldest open version that no runner looks after, or None."""
        now = self._clock()
        version = UserJobVersionRow
        query = (
            select(version, UserJobRow)
            .join(version.job)
            .where(version.status.in_(OPEN_STATUSES), version.lease_expires_at <= now)
            .order_by(version.id)
            .limit(1)
        )
        with self._read() as session:
            if session.execute(query).first() is None:
                return None
        with self._write() as session:
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

    def renew_user_job(self, job: ClaimedUserJob, lease_s: float) -> None:
        """Extends the lease, also of a job to be stopped, which then raises JobCancelledError."""
        with self._write() as session:
            row = _held(session, job)
            row.lease_expires_at = self._clock() + timedelta(seconds=lease_s)
            stop_requested = row.stop_requested
        if stop_requested:
            raise JobCancelledError(f"Version {job.version_id} of job {job.name} is to be stopped.")

    def set_user_job_status(self, job: ClaimedUserJob, status: UserJobStatus, reason: str | None = None) -> None:
        """`reason`: what it waits for. A job that is being stopped stays so."""
        with self._write() as session:
            row = _held(session, job)
            if not row.stop_requested:
                row.status = status
            row.error = reason
            if status is UserJobStatus.RUNNING:
                row.started_at = row.started_at or self._clock()

    def count_submission(self, job: ClaimedUserJob) -> int:
        """Records that the job is handed to Ray, before it is. Returns how often it has been, this time included."""
        with self._write() as session:
            row = _held(session, job)
            row.num_submissions += 1
            row.log_offsets = _log_sizes(session, job.version_id)
            return row.num_submissions

    def user_job_log_sizes(self, job: ClaimedUserJob) -> dict[str, int]:
        """How many lines each log file has."""
        with self._read() as session:
            return _log_sizes(session, job.version_id)

    def log_lines_since_submission(self, job: ClaimedUserJob) -> dict[str, int]:
        """How many lines of each log file were written since the job was last handed to Ray."""
        with self._read() as session:
            offsets = session.get_one(UserJobVersionRow, job.version_id).log_offsets
            sizes = _log_sizes(session, job.version_id)
        return {file: size - offsets.get(file, 0) for file, size in sizes.items()}

    def append_user_job_log(self, job: ClaimedUserJob, file: str, lines: list[str]) -> None:
        if not lines:
            return
        with self._write() as session:
            _held(session, job)
            first_line = num_log_lines(session, job.version_id, file) + 1
            text = "\n".join(lines).replace("\x00", "\ufffd")  # PostgreSQL's text can't hold NUL
            session.add(
                UserJobLogRow(
                    version_id=job.version_id, file=file, first_line=first_line, num_lines=len(lines), text=text
                )
            )

    def end_user_job(self, job: ClaimedUserJob, status: UserJobStatus, error: str | None = None) -> None:
        with self._write() as session:
            row = _held(session, job)
            row.status, row.error, row.ended_at, row.owner = status, error, self._clock(), None

    def release_user_job(self, job: ClaimedUserJob) -> None:
        """Gives the claim back; what runs goes on, and the next runner looks after it."""
        with self._write() as session:
            row = _held(session, job)
            row.lease_expires_at, row.owner = self._clock(), None

    def check_dataset_version(self, project: str, dataset_id: str, version: str, fingerprint: str) -> bool:
        """Whether a dataset's version is as it was when a job first used it; the first use records it."""
        key = {"project": project, "dataset_id": dataset_id, "version": version}
        try:
            with self._write() as session:
                row = session.get(DatasetVersionRow, key)
                if row is None:
                    session.add(DatasetVersionRow(**key, fingerprint=fingerprint))
                return row is None or row.fingerprint == fingerprint
        except IntegrityError:  # another job's first use was first
            with self._read() as session:
                return session.get_one(DatasetVersionRow, key).fingerprint == fingerprint


def _log_sizes(session: Session, version_id: int) -> dict[str, int]:
    log = UserJobLogRow
    query = select(log.file, func.max(log.first_line + log.num_lines - 1)).where(log.version_id == version_id)
    return dict(session.execute(query.group_by(log.file)).all())


def _held(session: Session, job: ClaimedUserJob) -> UserJobVersionRow:
    """The version's row, locked, if the claim still holds. Raises LeaseLostError otherwise."""
    query = select(UserJobVersionRow).where(UserJobVersionRow.id == job.version_id)
    row = session.scalars(query.with_for_update()).one()
    if UserJobStatus(row.status).has_ended or row.attempt != job.attempt:
        raise LeaseLostError(f"Version {job.version_id} of job {job.name} isn't looked after by this runner any more.")
    return row
