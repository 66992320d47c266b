"""Versions that are kept, the version that a job started from, and the configuration that a user's job comes from."""

import sqlalchemy as sa
from alembic import op

revision = "0009_kept_versions"
down_revision = "0008_datasets"


def upgrade() -> None:
    op.add_column("versions", sa.Column("kept_at", sa.DateTime(timezone=True)))
    op.add_column("jobs", sa.Column("start_step", sa.Integer))
    op.add_column("user_job_versions", sa.Column("config_name", sa.String(64)))
