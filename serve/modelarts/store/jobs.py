"""Jobs and their versions, as the API creates, lists and stops them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, contains_eager

from tandem.serve.errors import ConflictError
from tandem.serve.modelarts.store.lookups import find_job, find_version, live_versions
from tandem.serve.modelarts.store.status import OPEN_STATUSES, UserJobStatus
from tandem.serve.modelarts.store.tables import UserJobRow, UserJobVersionRow
from tandem.serve.store.database import Database, Lock

JobOrder = Literal["job_name", "job_desc", "status", "version_count", "create_time"]


class TooManyJobsError(ConflictError):
    """The project has reached its limit of open jobs."""


class UserJobs:
    """A caller sees the jobs of its own project only."""

    def __init__(self, database: Database):
        self._database = database

    def add(
        self,
        project: str,
        name: str,
        description: str,
        settings: Mapping[str, Any],
        max_open: int,
        config_name: str | None = None,
    ) -> UserJobVersionRow:
        """Add a job with its first version. Raises ConflictError if the name is taken, and TooManyJobsError.

        `config_name`: the saved configuration that filled in the settings.
        """
        job = UserJobRow(project=project, name=name, description=description, created_at=self._database.now())
        try:
            with self._database.write() as session:
                self._check_room(session, project, max_open)
                session.add(job)
                session.flush()
                return self._add_version(session, job, settings, None, config_name)
        except IntegrityError:
            # The wording is that of the API family.
            raise ConflictError(f"Job name:{name} is existed", "user_job_exists", "job_name") from None

    def add_version(
        self,
        project: str,
        job_id: int,
        description: str | None,
        settings: Mapping[str, Any],
        pre_version_id: int | None,
        max_open: int,
        config_name: str | None = None,
    ) -> UserJobVersionRow:
        """Add another version to a job. Raises NotFoundError and TooManyJobsError."""
        with self._database.write() as session:
            self._check_room(session, project, max_open)
            job = find_job(session, project, job_id, lock=True)
            if pre_version_id is not None:
                find_version(session, project, job_id, pre_version_id)
            if description is not None:
                job.description = description
            return self._add_version(session, job, settings, pre_version_id, config_name)

    def _check_room(self, session: Session, project: str, max_open: int) -> None:
        """Raise TooManyJobsError at the limit. Until the transaction ends, no other transaction adds jobs."""
        self._database.lock(session, Lock.ACCEPT_JOBS)
        num_open = _num_open(session, project)
        if num_open >= max_open:
            raise TooManyJobsError(
                f"Project {project} has {num_open} open jobs, and its limit is {max_open}. "
                "Stop a job, or wait until one ends.",
                "too_many_jobs",
            )

    def _add_version(
        self,
        session: Session,
        job: UserJobRow,
        settings: Mapping[str, Any],
        pre_version_id: int | None,
        config_name: str | None,
    ) -> UserJobVersionRow:
        job.num_versions += 1
        version = UserJobVersionRow(
            job=job,
            number=job.num_versions,
            settings=dict(settings),
            config_name=config_name,
            pre_version_id=pre_version_id,
            status=UserJobStatus.INIT,
            submission_prefix=f"tandem-{uuid.uuid4().hex}",
            created_at=self._database.now(),
        )
        session.add(version)
        return version

    def page(
        self,
        project: str,
        limit: int,
        offset: int,
        order: JobOrder = "job_name",
        descending: bool = False,
        status: int | None = None,
        search: str | None = None,
        config_name: str | None = None,
    ) -> tuple[Sequence[tuple[UserJobVersionRow, int]], int]:
        """Return one page of jobs, each as its newest version and its number of versions, and the total number.

        `status` and `config_name`: only jobs whose newest version has this status, or is from this configuration.
        """
        version = UserJobVersionRow
        newest = (
            select(func.max(version.id).label("id"), func.count().label("count"))
            .join(version.job)
            .where(UserJobRow.project == project, UserJobRow.deleted_at.is_(None), version.deleted_at.is_(None))
            .group_by(version.job_id)
            .subquery()
        )
        query = select(version, newest.c.count).join(newest, newest.c.id == version.id).join(version.job)
        if status is not None:
            query = query.where(version.status == status)
        if config_name is not None:
            query = query.where(version.config_name == config_name)
        if search:
            query = query.where(UserJobRow.name.icontains(search, autoescape=True))
        column: Any = {
            "job_name": UserJobRow.name,
            "job_desc": UserJobRow.description,
            "status": version.status,
            "version_count": newest.c.count,
            "create_time": UserJobRow.id,
        }[order]
        columns = [one.desc() if descending else one for one in (column, UserJobRow.id)]
        with self._database.read() as session:
            total = session.scalar(select(func.count()).select_from(query.subquery())) or 0
            query = query.options(contains_eager(version.job)).order_by(*columns).limit(limit).offset(offset)
            return [(row, count) for row, count in session.execute(query)], total

    def num_open(self, project: str) -> int:
        """Return the number of the project's versions that haven't ended."""
        with self._database.read() as session:
            return _num_open(session, project)

    def versions(self, project: str, job_id: int) -> Sequence[UserJobVersionRow]:
        """Return the versions of a job, oldest first. Raises NotFoundError."""
        with self._database.read() as session:
            find_job(session, project, job_id)
            return session.scalars(live_versions(job_id).order_by(UserJobVersionRow.number)).all()

    def version(self, project: str, job_id: int, version_id: int) -> UserJobVersionRow:
        """Return a version. Raises NotFoundError."""
        with self._database.read() as session:
            return find_version(session, project, job_id, version_id)

    def describe(self, project: str, job_id: int, description: str) -> None:
        """Change a job's description. Raises NotFoundError."""
        with self._database.write() as session:
            find_job(session, project, job_id, lock=True).description = description

    def stop(self, project: str, job_id: int, version_id: int) -> bool:
        """Ask for a version to be stopped; without a claim it ends at once. Returns False if it has already ended.

        Raises NotFoundError.
        """
        with self._database.write() as session:
            version = find_version(session, project, job_id, version_id, lock=True)
            if UserJobStatus(version.status).has_ended:
                return False
            self._stop(version)
            return True

    def delete_version(self, project: str, job_id: int, version_id: int) -> None:
        """Hide a version and stop it. The job is deleted with its last version. Raises NotFoundError."""
        with self._database.write() as session:
            job = find_job(session, project, job_id, lock=True)
            self._delete(find_version(session, project, job_id, version_id, lock=True))
            session.flush()
            if session.scalar(live_versions(job_id).limit(1)) is None:
                job.deleted_at = self._database.now()

    def delete(self, project: str, job_id: int) -> None:
        """Hide a job and stop its open versions. Raises NotFoundError."""
        with self._database.write() as session:
            job = find_job(session, project, job_id, lock=True)
            job.deleted_at = self._database.now()
            for version in session.scalars(live_versions(job_id).with_for_update(of=UserJobVersionRow)):
                self._delete(version)

    def _delete(self, version: UserJobVersionRow) -> None:
        version.deleted_at = self._database.now()
        if not UserJobStatus(version.status).has_ended:
            self._stop(version)

    def _stop(self, version: UserJobVersionRow) -> None:
        version.stop_requested = True
        if version.attempt == 0:
            version.status, version.ended_at = UserJobStatus.CANCELED, self._database.now()
        else:
            version.status = UserJobStatus.KILLING


def _num_open(session: Session, project: str) -> int:
    query = select(func.count()).select_from(UserJobVersionRow).join(UserJobVersionRow.job)
    open_versions = query.where(UserJobRow.project == project, UserJobVersionRow.status.in_(OPEN_STATUSES))
    return session.scalar(open_versions) or 0
