"""Queries that several repositories of this store share."""

from __future__ import annotations

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, contains_eager

from tandem.serve.errors import NotFoundError
from tandem.serve.modelarts.store.tables import UserJobLogRow, UserJobRow, UserJobVersionRow


def find_job(session: Session, project: str, job_id: int, lock: bool = False) -> UserJobRow:
    """Return a job that isn't deleted. Raises NotFoundError."""
    query = select(UserJobRow).where(
        UserJobRow.id == job_id, UserJobRow.project == project, UserJobRow.deleted_at.is_(None)
    )
    job = session.scalar(query.with_for_update() if lock else query)
    if job is None:
        raise NotFoundError(f"Project {project} has no training job {job_id}.", "user_job_not_found", "job_id")
    return job


def find_version(session: Session, project: str, job_id: int, version_id: int, lock: bool = False) -> UserJobVersionRow:
    """Return a version that isn't deleted, with its job. Raises NotFoundError."""
    find_job(session, project, job_id)
    query = live_versions(job_id).where(UserJobVersionRow.id == version_id)
    version = session.scalar(query.with_for_update(of=UserJobVersionRow) if lock else query)
    if version is None:
        raise NotFoundError(
            f"Training job {job_id} has no version {version_id}.", "user_job_version_not_found", "version_id"
        )
    return version


def live_versions(job_id: int) -> Select[UserJobVersionRow]:
    """Select the versions of a job that aren't deleted, with the job."""
    version = UserJobVersionRow
    query = select(version).join(version.job).options(contains_eager(version.job))
    return query.where(version.job_id == job_id, version.deleted_at.is_(None))


def log_sizes(session: Session, version_id: int) -> dict[str, int]:
    """Return the number of lines of each log file of a version."""
    log = UserJobLogRow
    query = select(log.file, func.max(log.first_line + log.num_lines - 1)).where(log.version_id == version_id)
    return {file: size for file, size in session.execute(query.group_by(log.file))}
