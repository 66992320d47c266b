"""The tables of keys, models, versions, training jobs and what belongs to them, and the base of all tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    bindparam,
    text,
)
from sqlalchemy import Table as SqlTable
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

NEVER = datetime.fromtimestamp(0, UTC)
_ID = String(36)
_NAME = String(128)
_DIGEST = String(64)
_JSON_OR_NULL = JSON(none_as_null=True)
_LIVE = text("deleted_at IS NULL")
_OPEN = text("state IN ('queued', 'running')")  # as `is_open` writes it


class UtcTime(TypeDecorator[datetime]):
    """A time with a time zone, stored as UTC: SQLite has no time zones and would return it without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


class Table(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, dict[str, float]: JSON, datetime: UtcTime}  # noqa: RUF012


def plain(row: type[Table]) -> SqlTable:
    """Return the table without the ORM, for writes that have to be quick."""
    assert isinstance(row.__table__, SqlTable)
    return row.__table__


class ApiKeyRow(Table):
    """A bearer key. Only its hash is stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    name: Mapped[str] = mapped_column(_NAME)
    entity: Mapped[str] = mapped_column(_NAME)
    key_sha256: Mapped[str] = mapped_column(_DIGEST, unique=True)
    role: Mapped[str] = mapped_column(String(16))
    """infer, train or admin."""
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class ModelRow(Table):
    """A model: a name in a project of an entity, on a base model. A deleted model keeps its row, not its name."""

    __tablename__ = "models"
    __table_args__ = (
        Index("models_live_name", "entity", "project", "name", unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE),
        Index("models_initial_digest", "initial_digest"),
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(_ID, unique=True)
    entity: Mapped[str] = mapped_column(_NAME)
    project: Mapped[str] = mapped_column(_NAME)
    name: Mapped[str] = mapped_column(_NAME)
    base_model: Mapped[str] = mapped_column(_NAME)
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
    next_step: Mapped[int] = mapped_column(default=1)
    """1 + the highest step that this model ever had: steps are never reused, even after deletion."""
    last_claimed_at: Mapped[datetime] = mapped_column(default=NEVER)
    """The time when a job of this model was last claimed; models take turns by it."""
    lora: Mapped[dict[str, Any] | None] = mapped_column(_JSON_OR_NULL)
    """The LoRA settings of a model that was registered with its own; None: those of the base model."""
    initial_digest: Mapped[str | None] = mapped_column(_DIGEST)
    """Version 0 of a model with its own LoRA settings. Its files are never deleted: later models may have the same."""
    origin: Mapped[dict[str, Any] | None] = mapped_column(_JSON_OR_NULL)
    """The version that the model was forked from: model, model_id, step, optimizer."""

    @property
    def path(self) -> str:
        """The model's name in completion requests."""
        return f"{self.entity}/{self.project}/{self.name}"


class VersionRow(Table):
    """A policy version that a job or a client of the Tinker API made, or that was imported or forked.

    The row of a deleted version stays until its files are gone; that of a retired one stays, so that requests learn
    what became of it.
    """

    __tablename__ = "versions"
    __table_args__ = (
        Index("versions_digest", "digest"),
        Index("versions_import_key", "model_id", "import_key", unique=True),
    )

    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(_DIGEST)
    metrics: Mapped[dict[str, float]]
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
    retired_at: Mapped[datetime | None]
    """When retention deleted the version; `deleted_at` is set, too."""
    kept_at: Mapped[datetime | None]
    """Since when a user keeps the version: nothing deletes it, or its optimizer state, until it is released."""
    files_removed_at: Mapped[datetime | None]
    """When the files of a retired version were gone."""
    optimizer_kind: Mapped[str | None] = mapped_column(String(16), server_default="rl")
    """The kind of the jobs that the optimizer state comes from; None if the checkpoint has none. A job of another kind
    starts without it."""
    optimizer_expired_at: Mapped[datetime | None]
    """From then on, a job that starts from this version starts without its optimizer state."""
    optimizer_removed_at: Mapped[datetime | None]
    """When the optimizer state was gone from the checkpoint."""
    origin: Mapped[dict[str, Any] | None] = mapped_column(_JSON_OR_NULL)
    """Of a version that no job made: its kind, import, fork or run, and where it came from."""
    import_key: Mapped[str | None] = mapped_column(String(255))
    """The Idempotency-Key of the request that imported the version."""


class InitialVersionRow(Table):
    """The zero adapter: version 0 of every model on a base model."""

    __tablename__ = "initial_versions"

    base_model: Mapped[str] = mapped_column(_NAME, primary_key=True)
    digest: Mapped[str] = mapped_column(_DIGEST)


class JobRow(Table):
    """A training job."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("model_id", "idempotency_key", name="jobs_idempotency"),
        Index("jobs_open", "model_id", "number", sqlite_where=_OPEN, postgresql_where=_OPEN),
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    """Order of acceptance."""
    id: Mapped[str] = mapped_column(_ID, unique=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    kind: Mapped[str] = mapped_column(String(16), server_default="rl")
    """A name in `cluster.jobs.kinds.registry`. Processes of the previous release add jobs without it."""
    state: Mapped[str] = mapped_column(String(16))
    """queued, running, succeeded, failed or cancelled."""
    payload_key: Mapped[str] = mapped_column(_NAME)
    config: Mapped[dict[str, Any]]
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    body_sha256: Mapped[str] = mapped_column(_DIGEST)
    api_key_id: Mapped[str | None] = mapped_column(_ID)
    """The key that posted the job; None for a job of the service itself."""
    request_id: Mapped[str | None] = mapped_column(_NAME)
    """The id of the request that posted the job, which its log lines have."""
    traceparent: Mapped[str | None] = mapped_column(_DIGEST)
    """The span of that request, which the job's trace links to."""
    attempt: Mapped[int] = mapped_column(default=0)
    """The number of claims; fences the writes of earlier claims."""
    num_handed_back: Mapped[int] = mapped_column(default=0)
    """Attempts that ended because the service was shut down. They don't count as tries."""
    owner: Mapped[str | None] = mapped_column(String(255))
    lease_expires_at: Mapped[datetime] = mapped_column(default=NEVER)
    start_digest: Mapped[str | None] = mapped_column(_DIGEST)
    """The version from which the last attempt started; its files are kept while the job is open."""
    start_step: Mapped[int | None]
    """The step of that version. Unknown for jobs of earlier releases."""
    reference_digest: Mapped[str | None] = mapped_column(_DIGEST)
    """The KL reference, pinned; its files are kept while the job is open. None without a KL penalty."""
    reference_lag: Mapped[int | None]
    """The KL reference lies this many versions before the start; the first claim pins it."""
    waiting_for: Mapped[str | None] = mapped_column(Text)
    """The resource that a running job needs before it can start, like learners that don't fit on the cluster."""
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    num_events: Mapped[int] = mapped_column(default=0)
    num_gradient_steps: Mapped[int] = mapped_column(default=0)
    error: Mapped[str | None] = mapped_column(Text)
    step: Mapped[int | None]
    """The version that the job made."""
    reward_std_dev: Mapped[float | None]
    """Of a job that succeeded. Stored here because versions may be deleted."""
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    model: Mapped[ModelRow] = relationship(lazy="raise")


def is_open(job: type[JobRow] = JobRow) -> ColumnElement[bool]:
    """True for a queued or running job. The states are literals in the query: with parameters, SQLite wouldn't use the
    index of open jobs, and each poll for work would read all jobs."""
    return job.state.in_(bindparam("open_states", ("queued", "running"), expanding=True, literal_execute=True))


class DatasetRow(Table):
    """Rows of supervised data that an entity uploaded, once by their content. Jobs name its blob as their payload."""

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("entity", "digest", name="datasets_digest"),)

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(_ID, unique=True)
    entity: Mapped[str] = mapped_column(_NAME)
    digest: Mapped[str] = mapped_column(_DIGEST)
    """The SHA-256 of the JSON lines."""
    blob_key: Mapped[str] = mapped_column(_NAME)
    num_rows: Mapped[int]
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    """Of the JSON lines, uncompressed."""
    ignored_fields: Mapped[dict[str, Any]]
    """Rows that have a key which training doesn't read, by the key's name."""
    created_at: Mapped[datetime]


class EventRow(Table):
    """One event of a job; `seq` counts from 1 without gaps."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


NO_PAYLOAD = ""
"""The payload key of a log entry that has only metrics."""


class LogRow(Table):
    """Trajectory groups that a client logged for a model, with their metrics, or the metrics of a gradient step."""

    __tablename__ = "logs"
    __table_args__ = (Index("logs_model", "model_id", "number"),)

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(_ID, unique=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    split: Mapped[str] = mapped_column(_NAME)
    payload_key: Mapped[str] = mapped_column(_NAME)
    metrics: Mapped[dict[str, float]]
    created_at: Mapped[datetime]
