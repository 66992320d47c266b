"""Rows of supervised data."""

import sqlalchemy as sa
from alembic import op

revision = "0008_datasets"
down_revision = "0007_wandb"

_ID, _NAME, _DIGEST, _TIME = sa.String(36), sa.String(128), sa.String(64), sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "datasets",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", _ID, nullable=False, unique=True),
        sa.Column("entity", _NAME, nullable=False),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.Column("blob_key", _NAME, nullable=False),
        sa.Column("num_rows", sa.Integer, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("ignored_fields", sa.JSON, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.UniqueConstraint("entity", "digest", name="datasets_digest"),
    )
