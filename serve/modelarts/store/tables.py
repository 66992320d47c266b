"""The tables of saved configurations and of the jobs that run user code or built-in algorithms."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from tandem.serve.store.tables.training import NEVER, Table

_NAME = String(128)
_LIVE = text("deleted_at IS NULL")


class SavedConfigRow(Table):
    """The settings of a job, saved under a name in a project."""

    __tablename__ = "training_configs"
    __table_args__ = (UniqueConstraint("project", "name", name="training_configs_name"),)

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    project: Mapped[str] = mapped_column(_NAME)
    name: Mapped[str] = mapped_column(String(64))
    description: Mapped[str] = mapped_column(String(256))
    settings: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class UserJobRow(Table):
    """A job of a project. Each of its versions is one run."""

    __tablename__ = "user_jobs"
    __table_args__ = (
        Index("user_jobs_live_name", "project", "name", unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    project: Mapped[str] = mapped_column(_NAME)
    name: Mapped[str] = mapped_column(String(64))
    description: Mapped[str] = mapped_column(String(256))
    num_versions: Mapped[int] = mapped_column(default=0)
    """Deleted versions included: a number is never reused."""
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class UserJobVersionRow(Table):
    """One run of a job."""

    __tablename__ = "user_job_versions"
    __table_args__ = (
        UniqueConstraint("job_id", "number", name="user_job_versions_number"),
        Index("user_job_versions_status", "status", "id"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("user_jobs.id"))
    number: Mapped[int]
    settings: Mapped[dict[str, Any]]
    config_name: Mapped[str | None] = mapped_column(String(64))
    """The saved configuration that filled in the settings, if one did."""
    pre_version_id: Mapped[int | None]
    status: Mapped[int]
    """A `UserJobStatus`."""
    error: Mapped[str | None] = mapped_column(Text)
    """Why the version failed, or what it waits for."""
    stop_requested: Mapped[bool] = mapped_column(default=False)
    submission_prefix: Mapped[str] = mapped_column(String(64))
    """Of this run's submission ids in Ray. Random, because Ray may also run jobs of other stores."""
    num_submissions: Mapped[int] = mapped_column(default=0)
    """More than 1 if the Ray cluster that ran it was lost."""
    log_offsets: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Lines of each log file at the last submission to Ray."""
    attempt: Mapped[int] = mapped_column(default=0)
    """Number of claims; fences the writes of earlier ones."""
    owner: Mapped[str | None] = mapped_column(String(255))
    lease_expires_at: Mapped[datetime] = mapped_column(default=NEVER)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]

    job: Mapped[UserJobRow] = relationship(lazy="raise")


class UserJobLogRow(Table):
    """Consecutive lines of one log file."""

    __tablename__ = "user_job_logs"

    version_id: Mapped[int] = mapped_column(ForeignKey("user_job_versions.id"), primary_key=True)
    file: Mapped[str] = mapped_column(String(64), primary_key=True)
    first_line: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Counted from 1."""
    num_lines: Mapped[int]
    text: Mapped[str] = mapped_column(Text)


class DatasetVersionRow(Table):
    """The fingerprint of a dataset version at its first use by a job: versions must not change."""

    __tablename__ = "dataset_versions"

    project: Mapped[str] = mapped_column(_NAME, primary_key=True)
    dataset_id: Mapped[str] = mapped_column(_NAME, primary_key=True)
    version: Mapped[str] = mapped_column(_NAME, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
