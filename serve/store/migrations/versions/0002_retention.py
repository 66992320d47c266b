"""What retention has deleted of a version: the version itself, or the optimizer state of its checkpoint."""

import sqlalchemy as sa
from alembic import op

revision = "0002_retention"
down_revision = "0001_initial"


def upgrade() -> None:
    for name in ("retired_at", "files_removed_at", "optimizer_expired_at", "optimizer_removed_at"):
        op.add_column("versions", sa.Column(name, sa.DateTime(timezone=True)))
