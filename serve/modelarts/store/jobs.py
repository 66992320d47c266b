"""Jobs that run user code or built-in algorithms, as the API sees them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tandem.serve.errors import ConflictError, NotFoundError
from tandem.serve.modelarts.store.tables import UserJobLogRow, UserJobRow, UserJobVersionRow
from tandem.serve.store.database import Database, Lock


class UserJobStatus(IntEnum):
    """The statuses of the API family that a job can have here."""

    INIT = 1
    SUBMITTING = 4
    SUBMIT_FAILED = 5
    WAITING = 7
    RUNNING = 8
    KILLING = 9
    COMPLETED = 10
    FAILED = 11
    KILLED = 12
    CANCELED = 13
    LOST = 14

    @property
    def has_ended(self) -> bool:
        return self not in OPEN_STATUSES


OPEN_STATUSES = (
    UserJobStatus.INIT,
    UserJobStatus.SUBMITTING,
    UserJobStatus.WAITING,
    UserJobStatus.RUNNING,
    UserJobStatus.KILLING,
)
JobOrder = Literal["job_name", "job_desc", "status", "version_count", "create_time"]


class TooManyJobsError(ConflictError):
    """The project has as many open jobs as it may."""


class UserJobTable(Database):
    """Queries and changes of a project's jobs and their versions. Other projects' don't exist for a caller."""

    def add_user_job(
        self, project: str, name: str, description: str, settings: Mapping[str, Any], max_open: int
    ) -> UserJobVersionRow:
        """A new job with its first version. Raises ConflictError when the name is taken, TooManyJobsError."""
        job = UserJobRow(project=project, name=name, description=description, created_at=self._clock())
        try:
            with self._write() as session:
                self._check_room_for_user_job(session, project, max_open)
                session.add(job)
                session.flush()
                return self._add_version(session, job, settings, None)
        except IntegrityError:
            raise ConflictError(f"Job name:{name} is existed", "user_job_exists", "job_name") from None

    def add_user_job_version(
        self,
        project: str,
        job_id: int,
        description: str | None,
        settings: Mapping[str, Any],
        pre_version_id: int | None,
        max_open: int,
    ) -> UserJobVersionRow:
        """Another version of a job. Raises NotFoundError, TooManyJobsError."""
        with self._write() as session:
            self._check_room_for_user_job(session, project, max_open)
            job = _find_job(session, project, job_id, lock=True)
            if pre_version_id is not None:
                _find_version(session, project, job_id, pre_version_id)
            if description is not None:
                job.description = description
            return self._add_version(session, job, settings, pre_version_id)

    def _check_room_for_user_job(self, session: Session, project: str, max_open: int) -> None:
        """Until the transaction ends, no other one counts, or adds, jobs."""
        self._lock(session, Lock.ACCEPT_JOBS)
        num_open = _num_open(session, project)
        if num_open >= max_open:
            raise TooManyJobsError(
                f"Project {project} has {num_open} jobs that wait or run, and may have {max_open}. "
                "Stop one, or wait until one has ended.",
                "too_many_jobs",
            )

    def _add_version(
        self, session: Session, job: UserJobRow, settings: Mapping[str, Any], pre_version_id: int | None
    ) -> UserJobVersionRow:
        job.num_versions += 1
        version = UserJobVersionRow(
            job=job,
            number=job.num_versions,
            settings=dict(settings),
            pre_version_id=pre_version_id,
            status=UserJobStatus.INIT,
            submission_prefix=f"tandem-{uuid.uuid4().hex}",
            created_at=self._clock(),
        )
        session.add(version)
        return version

    def user_jobs(
        self,
        project: str,
        limit: int,
        offset: int,
        order: JobOrder = "job_name",
        descending: bool = False,
        status: int | None = None,
        search: str | None = None,
    ) -> tuple[Sequence[tuple[UserJobVersionRow, int]], int]:
        """A page of jobs, each by its newest version with how many versions it has, and how many jobs there are."""
        version = UserJobVersionRow
        newest = (
            select(func.max(version.id).label("id"), func.count().label("count"))
            .join(version.job)
            .where(UserJobRow.project == project, UserJobRow.deleted_at.is_(None), version.deleted_at.is_(None))
            .group_by(version.job_id)
            .subquery()
        )
        query = select(version, newest.c.count, UserJobRow).join(newest, newest.c.id == version.id).join(version.job)
        if status is not None:
            query = query.where(version.status == status)
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
        with self._read() as session:
            total = session.scalar(select(func.count()).select_from(query.subquery())) or 0
            rows = session.execute(query.order_by(*columns).limit(limit).offset(offset)).all()
            return [(_with_job(row, job), count) for row, count, job in rows], total

    def num_open_user_jobs(self, project: str) -> int:
        with self._read() as session:
            return _num_open(session, project)

    def user_job_versions(self, project: str, job_id: int) -> Sequence[UserJobVersionRow]:
        """The versions of a job, oldest first. Raises NotFoundError."""
        with self._read() as session:
            job = _find_job(session, project, job_id)
            query = select(UserJobVersionRow).where(
                UserJobVersionRow.job_id == job_id, UserJobVersionRow.deleted_at.is_(None)
            )
            return [_with_job(row, job) for row in session.scalars(query.order_by(UserJobVersionRow.number))]

    def user_job_version(self, project: str, job_id: int, version_id: int) -> UserJobVersionRow:
        """Raises NotFoundError."""
        with self._read() as session:
            return _find_version(session, project, job_id, version_id)

    def describe_user_job(self, project: str, job_id: int, description: str) -> None:
        """Raises NotFoundError."""
        with self._write() as session:
            _find_job(session, project, job_id, lock=True).description = description

    def stop_user_job(self, project: str, job_id: int, version_id: int) -> bool:
        """Asks for a version's end; one that nobody has begun ends at once. False when it has ended already.

        Raises NotFoundError.
        """
        with self._write() as session:
            version = _find_version(session, project, job_id, version_id, lock=True)
            if UserJobStatus(version.status).has_ended:
                return False
            self._stop(version)
            return True

    def delete_user_job_version(self, project: str, job_id: int, version_id: int) -> None:
        """Removes a version from sight, and stops it. Its job goes with its last version. Raises NotFoundError."""
        with self._write() as session:
            job = _find_job(session, project, job_id, lock=True)
            version = _find_version(session, project, job_id, version_id, lock=True)
            self._delete(version)
            session.flush()
            rest = select(UserJobVersionRow.id).where(
                UserJobVersionRow.job_id == job_id, UserJobVersionRow.deleted_at.is_(None)
            )
            if session.scalar(rest.limit(1)) is None:
                job.deleted_at = self._clock()

    def delete_user_job(self, project: str, job_id: int) -> None:
        """Removes a job from sight, and stops what runs of it. Raises NotFoundError."""
        with self._write() as session:
            job = _find_job(session, project, job_id, lock=True)
            job.deleted_at = self._clock()
            query = select(UserJobVersionRow).where(
                UserJobVersionRow.job_id == job_id, UserJobVersionRow.deleted_at.is_(None)
            )
            for version in session.scalars(query.with_for_update()):
                self._delete(version)

    def _delete(self, version: UserJobVersionRow) -> None:
        version.deleted_at = self._clock()
        if not UserJobStatus(version.status).has_ended:
            self._stop(version)

    def _stop(self, version: UserJobVersionRow) -> None:
        version.stop_requested = True
        if version.attempt == 0:
            version.status, version.ended_at = UserJobStatus.CANCELED, self._clock()
        else:
            version.status = UserJobStatus.KILLING

    def user_job_log_files(self, project: str, job_id: int, version_id: int) -> Sequence[str]:
        """Raises NotFoundError."""
        query = select(UserJobLogRow.file).where(UserJobLogRow.version_id == version_id).distinct()
        with self._read() as session:
            _find_version(session, project, job_id, version_id)
            return session.scalars(query.order_by(UserJobLogRow.file)).all()

    def user_job_log_size(self, project: str, job_id: int, version_id: int, file: str) -> int:
        """How many lines a log file has. Raises NotFoundError."""
        with self._read() as session:
            _find_version(session, project, job_id, version_id)
            num_lines = num_log_lines(session, version_id, file)
        if not num_lines:
            raise NotFoundError(f"There is no log file {file!r} of this version.", "log_file_not_found", "log_file")
        return num_lines

    def user_job_log(self, version_id: int, file: str, first_line: int, num_lines: int) -> list[str]:
        """Lines of a log file, counted from 1."""
        log = UserJobLogRow
        query = (
            select(log)
            .where(log.version_id == version_id, log.file == file)
            .where(log.first_line < first_line + num_lines, log.first_line + log.num_lines > first_line)
        )
        lines: list[str] = []
        with self._read() as session:
            for row in session.scalars(query.order_by(log.first_line)):
                begin = max(0, first_line - row.first_line)
                lines += row.text.split("\n")[begin : first_line + num_lines - row.first_line]
        return lines


def num_log_lines(session: Session, version_id: int, file: str) -> int:
    log = UserJobLogRow
    query = select(func.max(log.first_line + log.num_lines - 1))
    return session.scalar(query.where(log.version_id == version_id, log.file == file)) or 0


def _with_job(version: UserJobVersionRow, job: UserJobRow) -> UserJobVersionRow:
    from sqlalchemy.orm.attributes import set_committed_value

    set_committed_value(version, "job", job)
    return version


def _num_open(session: Session, project: str) -> int:
    query = select(func.count()).select_from(UserJobVersionRow).join(UserJobVersionRow.job)
    open_ones = query.where(UserJobRow.project == project, UserJobVersionRow.status.in_(OPEN_STATUSES))
    return session.scalar(open_ones) or 0


def _find_job(session: Session, project: str, job_id: int, lock: bool = False) -> UserJobRow:
    query = select(UserJobRow).where(
        UserJobRow.id == job_id, UserJobRow.project == project, UserJobRow.deleted_at.is_(None)
    )
    job = session.scalar(query.with_for_update() if lock else query)
    if job is None:
        raise NotFoundError(f"There is no training job {job_id} in this project.", "user_job_not_found", "job_id")
    return job


def _find_version(
    session: Session, project: str, job_id: int, version_id: int, lock: bool = False
) -> UserJobVersionRow:
    job = _find_job(session, project, job_id)
    query = select(UserJobVersionRow).where(
        UserJobVersionRow.id == version_id,
        UserJobVersionRow.job_id == job_id,
        UserJobVersionRow.deleted_at.is_(None),
    )
    version = session.scalar(query.with_for_update() if lock else query)
    if version is None:
        raise NotFoundError(
            f"There is no version {version_id} of training job {job_id}.", "user_job_version_not_found", "version_id"
        )
    return _with_job(version, job)
