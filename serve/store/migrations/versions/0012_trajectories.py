"""The index of trajectories."""

import sqlalchemy as sa
from alembic import op

revision = "0012_trajectories"
down_revision = "0011_alerts"

_ID, _NAME, _TIME = sa.String(36), sa.String(128), sa.DateTime(timezone=True)
_UNFINISHED = sa.text("state IN ('pending', 'unkept', 'removing')")
_EXISTING = """
    INSERT INTO trajectory_sources (id, kind, model_id, entity, split, payload_key, state, attempt, lease_expires_at,
        num_groups, num_trajectories, num_bytes, created_at)
    SELECT found.id, found.kind, found.model_id, models.entity, found.split, found.payload_key, 'pending', 0,
        models.created_at, 0, 0, 0, found.created_at
    FROM (
        SELECT id, 'job' AS kind, model_id, 'train' AS split, payload_key, created_at FROM jobs WHERE kind = 'rl'
        UNION ALL
        SELECT id, 'log' AS kind, model_id, split, payload_key, created_at FROM logs WHERE payload_key <> ''
    ) AS found JOIN models ON models.id = found.model_id
    WHERE models.deleted_at IS NULL
    ORDER BY found.created_at
"""
"""Numbers follow time, so the trajectories of earlier jobs come before later ones."""


def upgrade() -> None:
    op.create_table(
        "trajectory_sources",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", _ID, nullable=False, unique=True),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("model_id", _ID, sa.ForeignKey("models.id"), nullable=False),
        sa.Column("entity", _NAME, nullable=False),
        sa.Column("split", _NAME, nullable=False),
        sa.Column("payload_key", _NAME, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("lease_expires_at", _TIME, nullable=False),
        sa.Column("num_groups", sa.Integer, nullable=False),
        sa.Column("num_trajectories", sa.Integer, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("removed_at", _TIME),
    )
    op.create_index("trajectory_sources_entity", "trajectory_sources", ["entity", "number"])
    op.create_index("trajectory_sources_model", "trajectory_sources", ["model_id", "number"])
    op.create_index(
        "trajectory_sources_unfinished",
        "trajectory_sources",
        ["number"],
        sqlite_where=_UNFINISHED,
        postgresql_where=_UNFINISHED,
    )
    op.create_table(
        "trajectory_groups",
        _source(),
        _index("group_index"),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("num_failed", sa.Integer, nullable=False),
        sa.Column("reward_mean", sa.Float),
        sa.Column("reward_std_dev", sa.Float),
        sa.Column("reward_min", sa.Float),
        sa.Column("reward_max", sa.Float),
        sa.Column("num_tokens", sa.BigInteger, nullable=False),
        sa.Column("not_trained", sa.String(32)),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "trajectories",
        _source(),
        _index("group_index"),
        _index("trajectory_index"),
        sa.Column("entity", _NAME, nullable=False),
        sa.Column("model_id", _ID, nullable=False),
        sa.Column("reward", sa.Float),
        sa.Column("first_version", sa.Integer),
        sa.Column("last_version", sa.Integer),
        sa.Column("num_turns", sa.Integer, nullable=False),
        sa.Column("num_tokens", sa.BigInteger, nullable=False),
        sa.Column("num_tool_calls", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
    )
    place = ["reward", "source_number", "group_index", "trajectory_index"]
    op.create_index("trajectories_entity_reward", "trajectories", ["entity", *place])
    op.create_index("trajectories_model_reward", "trajectories", ["model_id", *place])
    op.execute(_EXISTING)


def _source() -> sa.Column[int]:
    return sa.Column("source_number", sa.Integer, sa.ForeignKey("trajectory_sources.number"), primary_key=True)


def _index(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, primary_key=True, autoincrement=False)
