"""The ledger: phases of jobs, amounts by the hour, prices."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010_usage"
down_revision = "0009_kept_versions"

_ID, _NAME, _WORD = sa.String(36), sa.String(128), sa.String(32)
_TIME, _SECONDS = sa.DateTime(timezone=True), sa.Float(53)


def _key(name: str, type: Any) -> sa.Column[Any]:
    return sa.Column(name, type, primary_key=True, autoincrement=False)


def _amounts(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, _SECONDS if name.endswith("seconds") else sa.BigInteger, nullable=False) for name in names]


def upgrade() -> None:
    op.create_table(
        "job_attempts",
        sa.Column("job_id", _ID, sa.ForeignKey("jobs.id"), primary_key=True),
        _key("attempt", sa.Integer),
        sa.Column("outcome", sa.String(16)),
        sa.Column("claimed_at", _TIME, nullable=False),
        sa.Column("recorded_at", _TIME, nullable=False),
    )
    op.create_table(
        "job_phases",
        sa.Column("job_id", _ID, sa.ForeignKey("jobs.id"), primary_key=True),
        _key("attempt", sa.Integer),
        _key("seq", sa.Integer),
        sa.Column("name", _WORD, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("began_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME, nullable=False),
        *_amounts("seconds", "learner_seconds", "cpu_seconds"),
        *_amounts("trained_tokens", "scored_tokens", "engine_scored_tokens"),
    )
    op.create_table(
        "usage",
        _key("entity", _NAME),
        _key("start", _TIME),
        _key("base_model", _NAME),
        _key("model_id", _ID),
        _key("step", sa.Integer),
        _key("key_id", _ID),
        _key("job_id", sa.String(64)),
        _key("phase", _WORD),
        _key("prices_id", sa.Integer),
        *_amounts("requests", "prompt_tokens", "cached_prompt_tokens", "sampled_tokens"),
        *_amounts("scored_tokens", "engine_scored_tokens", "trained_tokens"),
        *_amounts("seconds", "learner_seconds", "engine_seconds", "cpu_seconds"),
    )
    op.create_index("usage_job", "usage", ["job_id"])
    op.create_table(
        "usage_prices",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("content", sa.JSON, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_table(
        "usage_sources",
        sa.Column("source", _NAME, primary_key=True),
        sa.Column("last_batch", sa.Integer, nullable=False),
        sa.Column("recorded_at", _TIME, nullable=False),
    )
    op.create_table(
        "sampling_spans",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("model_id", _ID, nullable=False),
        sa.Column("source", _NAME, nullable=False),
        sa.Column("began_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME, nullable=False),
    )
    op.create_index("sampling_spans_model", "sampling_spans", ["model_id", "ended_at"])
