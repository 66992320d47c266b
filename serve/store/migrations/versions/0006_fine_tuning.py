"""Uploaded files, and the jobs of the fine-tuning API with their events and checkpoints."""

import sqlalchemy as sa
from alembic import op

revision = "0006_fine_tuning"
down_revision = "0005_adapters"

_ID, _NAME, _TIME = sa.String(64), sa.String(128), sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "uploaded_files",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", _ID, nullable=False, unique=True),
        sa.Column("entity", _NAME, nullable=False),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("blob_key", _NAME, nullable=False, unique=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME),
        sa.Column("deleted_at", _TIME),
    )
    op.create_index("uploaded_files_entity", "uploaded_files", ["entity", "number"])
    op.create_table(
        "fine_tuning_jobs",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", _ID, nullable=False, unique=True),
        sa.Column("entity", _NAME, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("model", sa.String(512), nullable=False),
        sa.Column("base_model", _NAME, nullable=False),
        sa.Column("start_model_id", sa.String(36)),
        sa.Column("start_step", sa.Integer),
        sa.Column("suffix", _NAME),
        sa.Column("training_file", _ID, nullable=False),
        sa.Column("validation_file", _ID),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("method", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("model_id", sa.String(36), sa.ForeignKey("models.id")),
        sa.Column("parts", sa.JSON, nullable=False),
        sa.Column("error", sa.JSON),
        sa.Column("fine_tuned_model", sa.String(512)),
        sa.Column("trained_tokens", sa.BigInteger),
        sa.Column("num_events", sa.Integer, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(255)),
        sa.Column("lease_expires_at", _TIME, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("started_at", _TIME),
        sa.Column("finished_at", _TIME),
        sa.UniqueConstraint("entity", "idempotency_key", name="fine_tuning_jobs_idempotency"),
    )
    is_open = sa.text("status IN ('validating_files', 'queued', 'running')")
    op.create_index(
        "fine_tuning_jobs_open", "fine_tuning_jobs", ["number"], sqlite_where=is_open, postgresql_where=is_open
    )
    op.create_index("fine_tuning_jobs_entity", "fine_tuning_jobs", ["entity", "number"])
    op.create_table(
        "fine_tuning_events",
        sa.Column("job_id", _ID, sa.ForeignKey("fine_tuning_jobs.id"), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", sa.JSON),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_table(
        "fine_tuning_checkpoints",
        sa.Column("job_id", _ID, sa.ForeignKey("fine_tuning_jobs.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("gradient_steps", sa.Integer, nullable=False),
        sa.Column("model", sa.String(512), nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )
