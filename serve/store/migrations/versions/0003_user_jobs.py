"""Saved training configurations, and the jobs that run user code or built-in algorithms."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_NAME, _TIME = sa.String(128), sa.DateTime(timezone=True)
_LIVE = sa.text("deleted_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "training_configs",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("project", _NAME, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("description", sa.String(256), nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.UniqueConstraint("project", "name", name="training_configs_name"),
    )
    op.create_table(
        "user_jobs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("project", _NAME, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("description", sa.String(256), nullable=False),
        sa.Column("num_versions", sa.Integer, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("deleted_at", _TIME),
    )
    op.create_index(
        "user_jobs_live_name",
        "user_jobs",
        ["project", "name"],
        unique=True,
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    )
    op.create_table(
        "user_job_versions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("job_id", sa.Integer, sa.ForeignKey("user_jobs.id"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("pre_version_id", sa.Integer),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("stop_requested", sa.Boolean, nullable=False),
        sa.Column("submission_prefix", sa.String(64), nullable=False),
        sa.Column("num_submissions", sa.Integer, nullable=False),
        sa.Column("log_offsets", sa.JSON, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(255)),
        sa.Column("lease_expires_at", _TIME, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("started_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.Column("deleted_at", _TIME),
        sa.UniqueConstraint("job_id", "number", name="user_job_versions_number"),
    )
    op.create_index("user_job_versions_status", "user_job_versions", ["status", "id"])
    op.create_table(
        "user_job_logs",
        sa.Column("version_id", sa.Integer, sa.ForeignKey("user_job_versions.id"), primary_key=True),
        sa.Column("file", sa.String(64), primary_key=True),
        sa.Column("first_line", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("num_lines", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_table(
        "dataset_versions",
        sa.Column("project", _NAME, primary_key=True),
        sa.Column("dataset_id", _NAME, primary_key=True),
        sa.Column("version", _NAME, primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
    )
