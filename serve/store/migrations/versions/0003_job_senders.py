"""Which key posted a job, so that a body that the same key posts again is recognized."""

import sqlalchemy as sa
from alembic import op

revision = "0003_job_senders"
down_revision = "0002_retention"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("api_key_id", sa.String(36)))
