"""The Tinker API: sessions, runs, calls, checkpoints and samplers."""

import sqlalchemy as sa
from alembic import op

revision = "0013_tinker"
down_revision = "0012_trajectories"

_ID, _RUN, _NAME, _DIGEST, _KIND = sa.String(36), sa.String(64), sa.String(128), sa.String(64), sa.String(24)
_TIME = sa.DateTime(timezone=True)
_LIVE = sa.text("deleted_at IS NULL")
_UNANSWERED = sa.text("answered_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "tinker_sessions",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", _ID, nullable=False, unique=True),
        sa.Column("entity", _NAME, nullable=False),
        sa.Column("key_id", _ID),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("user_metadata", sa.JSON),
        sa.Column("sdk_version", _NAME, nullable=False),
        sa.Column("project", _NAME),
        sa.Column("display_name", sa.Text),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("heartbeat_at", _TIME, nullable=False),
        sa.Column("finished_at", _TIME),
        sa.Column("finish_reason", _KIND),
        sa.Column("finish_detail", sa.Text),
        sa.UniqueConstraint("entity", "idempotency_key", name="tinker_sessions_idempotency"),
    )
    op.create_index("tinker_sessions_entity", "tinker_sessions", ["entity", "number"])
    op.create_table(
        "tinker_runs",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", _RUN, nullable=False, unique=True),
        sa.Column("session_id", _ID, sa.ForeignKey("tinker_sessions.id"), nullable=False),
        sa.Column("model_seq_id", sa.Integer, nullable=False),
        sa.Column("entity", _NAME, nullable=False),
        sa.Column("key_id", _ID),
        sa.Column("base_model", _NAME, nullable=False),
        sa.Column("model_id", _ID, sa.ForeignKey("models.id"), nullable=False, unique=True),
        sa.Column("flags", sa.JSON, nullable=False),
        sa.Column("user_metadata", sa.JSON),
        sa.Column("request_sha256", _DIGEST, nullable=False),
        sa.Column("start_path", sa.Text),
        sa.Column("parent", sa.JSON),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("last_request_at", _TIME, nullable=False),
        sa.Column("unloaded_at", _TIME),
        sa.Column("anchor_digest", _DIGEST, nullable=False),
        sa.Column("anchor_seq", sa.Integer, nullable=False),
        sa.Column("anchor_has_optimizer", sa.Boolean, nullable=False),
        sa.Column("applied_seq", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(255)),
        sa.Column("lease_expires_at", _TIME, nullable=False),
        sa.Column("waiting_for", sa.Text),
        sa.UniqueConstraint("session_id", "model_seq_id", name="tinker_runs_of_session"),
    )
    op.create_index("tinker_runs_entity", "tinker_runs", ["entity", "number"])
    op.create_index("tinker_runs_anchor", "tinker_runs", ["anchor_digest"])
    op.create_table(
        "tinker_calls",
        sa.Column("run_id", _RUN, sa.ForeignKey("tinker_runs.id"), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", _KIND, nullable=False),
        sa.Column("body_sha256", _DIGEST, nullable=False),
        sa.Column("body_key", sa.String(255)),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("digest", _DIGEST),
        sa.Column("arrived_at", _TIME, nullable=False),
        sa.Column("answered_at", _TIME),
        sa.Column("result", sa.LargeBinary),
        sa.Column("media_type", _NAME),
        sa.Column("error", sa.Text),
        sa.Column("category", sa.String(16)),
    )
    op.create_index(
        "tinker_calls_waiting",
        "tinker_calls",
        ["run_id", "seq"],
        sqlite_where=_UNANSWERED,
        postgresql_where=_UNANSWERED,
    )
    op.create_index("tinker_calls_body", "tinker_calls", ["body_key"])
    op.create_index("tinker_calls_answered", "tinker_calls", ["answered_at"])
    op.create_table(
        "tinker_checkpoints",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("run_id", _RUN, sa.ForeignKey("tinker_runs.id"), nullable=False),
        sa.Column("model_id", _ID, nullable=False),
        sa.Column("entity", _NAME, nullable=False),
        sa.Column("kind", _KIND, nullable=False),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.Column("has_optimizer", sa.Boolean, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("step", sa.Integer),
        sa.Column("parent", sa.JSON),
        sa.Column("user_metadata", sa.JSON),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME),
        sa.Column("deleted_at", _TIME),
    )
    op.create_index(
        "tinker_checkpoints_live",
        "tinker_checkpoints",
        ["run_id", "kind", "name"],
        unique=True,
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    )
    op.create_index("tinker_checkpoints_digest", "tinker_checkpoints", ["digest"])
    op.create_index("tinker_checkpoints_entity", "tinker_checkpoints", ["entity", "number"])
    op.create_index("tinker_checkpoints_version", "tinker_checkpoints", ["model_id", "step"])
    op.create_table(
        "tinker_samplers",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", _RUN, nullable=False, unique=True),
        sa.Column("session_id", _ID, sa.ForeignKey("tinker_sessions.id"), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("entity", _NAME, nullable=False),
        sa.Column("key_id", _ID),
        sa.Column("base_model", _NAME, nullable=False),
        sa.Column("path", sa.Text),
        sa.Column("model_id", _ID),
        sa.Column("step", sa.Integer),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.UniqueConstraint("session_id", "seq", name="tinker_samplers_of_session"),
    )
    op.create_index("tinker_samplers_digest", "tinker_samplers", ["digest"])
