"""Kinds of jobs. All jobs and versions of earlier releases are of reinforcement learning."""

import sqlalchemy as sa
from alembic import op

revision = "0004_job_kinds"
down_revision = "0003_job_senders"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("kind", sa.String(16), nullable=False, server_default="rl"))
    op.add_column("versions", sa.Column("optimizer_kind", sa.String(16), server_default="rl"))
