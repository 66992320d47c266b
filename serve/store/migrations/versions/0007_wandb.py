"""Artifacts that clients upload through the W&B API."""

import sqlalchemy as sa
from alembic import op

revision = "0007_wandb"
down_revision = "0006_fine_tuning"

_ID, _NAME, _DIGEST, _TIME = sa.String(36), sa.String(128), sa.String(64), sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "wandb_artifacts",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("entity", _NAME, nullable=False),
        sa.Column("project", _NAME, nullable=False),
        sa.Column("collection", sa.String(255), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("client_id", sa.String(255)),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.Column("artifact_metadata", sa.JSON, nullable=False),
        sa.Column("aliases", sa.JSON, nullable=False),
        sa.Column("manifest", sa.JSON),
        sa.Column("version_index", sa.Integer),
        sa.Column("model_id", _ID, sa.ForeignKey("models.id")),
        sa.Column("step", sa.Integer),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("committed_at", _TIME),
        sa.UniqueConstraint("entity", "project", "collection", "version_index", name="wandb_artifacts_version"),
    )
    op.create_index("wandb_artifacts_client", "wandb_artifacts", ["entity", "client_id"])
    op.create_table(
        "wandb_files",
        sa.Column("artifact_id", _ID, sa.ForeignKey("wandb_artifacts.id"), primary_key=True),
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("md5", sa.String(24), nullable=False),
        sa.Column("blob_key", _NAME),
        sa.Column("sha256", _DIGEST),
        sa.Column("num_bytes", sa.BigInteger),
    )
    op.create_table(
        "wandb_metadata",
        sa.Column("model_id", _ID, sa.ForeignKey("models.id"), primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("content", sa.JSON, nullable=False),
    )
    op.create_table(
        "url_secrets",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("secret", _DIGEST, nullable=False),
    )
