"""The tables of uploaded files and of fine-tuning jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from tandem.serve.store.tables.training import NEVER, Table

_ID = String(64)
_NAME = String(128)
_OPEN = text("status IN ('validating_files', 'queued', 'running')")
OPEN_STATUSES = ("validating_files", "queued", "running")


class UploadedFileRow(Table):
    """An uploaded file. A deleted one keeps its row until its contents are gone, which jobs may still need."""

    __tablename__ = "uploaded_files"
    __table_args__ = (Index("uploaded_files_entity", "entity", "number"),)

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(_ID, unique=True)
    entity: Mapped[str] = mapped_column(_NAME)
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    blob_key: Mapped[str] = mapped_column(_NAME, unique=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]


class FineTuningJobRow(Table):
    """A fine-tuning job. Its training jobs are rows of `jobs`, found by their idempotency keys."""

    __tablename__ = "fine_tuning_jobs"
    __table_args__ = (
        UniqueConstraint("entity", "idempotency_key", name="fine_tuning_jobs_idempotency"),
        Index("fine_tuning_jobs_open", "number", sqlite_where=_OPEN, postgresql_where=_OPEN),
        Index("fine_tuning_jobs_entity", "entity", "number"),
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(_ID, unique=True)
    entity: Mapped[str] = mapped_column(_NAME)
    status: Mapped[str] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(String(512))
    """As requested."""
    base_model: Mapped[str] = mapped_column(_NAME)
    start_model_id: Mapped[str | None] = mapped_column(String(36))
    """The model from whose version `start_step` the job starts; None: from the base model."""
    start_step: Mapped[int | None]
    suffix: Mapped[str | None] = mapped_column(_NAME)
    training_file: Mapped[str] = mapped_column(_ID)
    validation_file: Mapped[str | None] = mapped_column(_ID)
    seed: Mapped[int]
    method: Mapped[dict[str, Any]]
    """As validated; hyperparameters that are "auto" get their values from the file."""
    labels: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    body_sha256: Mapped[str] = mapped_column(String(64))
    model_id: Mapped[str | None] = mapped_column(String(36), ForeignKey("models.id"))
    """The model that the job trains, once it has begun."""
    parts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """How much of each part of the job is in its events, like how many events of each training job."""
    error: Mapped[dict[str, Any] | None]
    fine_tuned_model: Mapped[str | None] = mapped_column(String(512))
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    num_events: Mapped[int] = mapped_column(default=0)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    attempt: Mapped[int] = mapped_column(default=0)
    """Number of claims; fences the writes of earlier ones."""
    owner: Mapped[str | None] = mapped_column(String(255))
    lease_expires_at: Mapped[datetime] = mapped_column(default=NEVER)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class FineTuningEventRow(Table):
    """One event of a fine-tuning job; `seq` counts from 1 without gaps."""

    __tablename__ = "fine_tuning_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    level: Mapped[str] = mapped_column(String(8))
    """info, warn or error."""
    type: Mapped[str] = mapped_column(String(16))
    """message or metrics."""
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]


class CheckpointRow(Table):
    """A version that a fine-tuning job made."""

    __tablename__ = "fine_tuning_checkpoints"

    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """From 1, in order."""
    step: Mapped[int]
    """Of the model's versions."""
    gradient_steps: Mapped[int]
    """That the job had taken until then."""
    model: Mapped[str] = mapped_column(String(512))
    """The version's name for completions."""
    metrics: Mapped[dict[str, float]]
    created_at: Mapped[datetime]
