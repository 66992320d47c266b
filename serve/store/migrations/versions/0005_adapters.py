"""LoRA settings of single models, forks of models, and versions that no job made."""

import sqlalchemy as sa
from alembic import op

revision = "0005_adapters"
down_revision = "0004_job_kinds"


def upgrade() -> None:
    op.add_column("models", sa.Column("lora", sa.JSON))
    op.add_column("models", sa.Column("initial_digest", sa.String(64)))
    op.add_column("models", sa.Column("origin", sa.JSON))
    op.create_index("models_initial_digest", "models", ["initial_digest"])
    op.add_column("versions", sa.Column("origin", sa.JSON))
    op.add_column("versions", sa.Column("import_key", sa.String(255)))
    op.create_index("versions_import_key", "versions", ["model_id", "import_key"], unique=True)
