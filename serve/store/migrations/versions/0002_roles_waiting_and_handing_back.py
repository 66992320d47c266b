"""Roles of keys; what a job waits for; attempts that ended because the service was stopped."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("role", sa.String(16), nullable=False, server_default="admin"))
    op.add_column("jobs", sa.Column("waiting_for", sa.Text))
    op.add_column("jobs", sa.Column("num_handed_back", sa.Integer, nullable=False, server_default="0"))
