"""All tables of the first release."""

import sqlalchemy as sa
from alembic import op

revision = "0001_initial"
down_revision = None

_metadata = sa.MetaData()
_ID, _NAME, _DIGEST, _TIME = sa.String(36), sa.String(128), sa.String(64), sa.DateTime(timezone=True)

sa.Table(
    "api_keys",
    _metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("name", _NAME, nullable=False),
    sa.Column("entity", _NAME, nullable=False),
    sa.Column("key_sha256", _DIGEST, nullable=False, unique=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("revoked_at", _TIME),
)
_models = sa.Table(
    "models",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", _ID, nullable=False, unique=True),
    sa.Column("entity", _NAME, nullable=False),
    sa.Column("project", _NAME, nullable=False),
    sa.Column("name", _NAME, nullable=False),
    sa.Column("base_model", _NAME, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("deleted_at", _TIME),
    sa.Column("next_step", sa.Integer, nullable=False),
    sa.Column("last_claimed_at", _TIME, nullable=False),
)
_LIVE = sa.text("deleted_at IS NULL")
sa.Index(
    "models_live_name",
    _models.c.entity,
    _models.c.project,
    _models.c.name,
    unique=True,
    sqlite_where=_LIVE,
    postgresql_where=_LIVE,
)
_versions = sa.Table(
    "versions",
    _metadata,
    sa.Column("model_id", _ID, sa.ForeignKey("models.id"), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", _DIGEST, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("deleted_at", _TIME),
)
sa.Index("versions_digest", _versions.c.digest)
sa.Table(
    "initial_versions",
    _metadata,
    sa.Column("base_model", _NAME, primary_key=True),
    sa.Column("digest", _DIGEST, nullable=False),
)
_jobs = sa.Table(
    "jobs",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", _ID, nullable=False, unique=True),
    sa.Column("model_id", _ID, sa.ForeignKey("models.id"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("payload_key", _NAME, nullable=False),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("body_sha256", _DIGEST, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("num_handed_back", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(255)),
    sa.Column("lease_expires_at", _TIME, nullable=False),
    sa.Column("start_digest", _DIGEST),
    sa.Column("reference_digest", _DIGEST),
    sa.Column("reference_lag", sa.Integer),
    sa.Column("waiting_for", sa.Text),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("num_events", sa.Integer, nullable=False),
    sa.Column("num_gradient_steps", sa.Integer, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("step", sa.Integer),
    sa.Column("reward_std_dev", sa.Double),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("started_at", _TIME),
    sa.Column("ended_at", _TIME),
    sa.UniqueConstraint("model_id", "idempotency_key", name="jobs_idempotency"),
)
_OPEN = sa.text("state IN ('queued', 'running')")
sa.Index("jobs_open", _jobs.c.model_id, _jobs.c.number, sqlite_where=_OPEN, postgresql_where=_OPEN)
sa.Table(
    "events",
    _metadata,
    sa.Column("job_id", _ID, sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
)
_logs = sa.Table(
    "logs",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", _ID, nullable=False, unique=True),
    sa.Column("model_id", _ID, sa.ForeignKey("models.id"), nullable=False),
    sa.Column("split", _NAME, nullable=False),
    sa.Column("payload_key", _NAME, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
)
sa.Index("logs_model", _logs.c.model_id, _logs.c.number)
sa.Table(
    "training_configs",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("project", _NAME, nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("description", sa.String(256), nullable=False),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.UniqueConstraint("project", "name", name="training_configs_name"),
)
_user_jobs = sa.Table(
    "user_jobs",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("project", _NAME, nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("description", sa.String(256), nullable=False),
    sa.Column("num_versions", sa.Integer, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("deleted_at", _TIME),
)
sa.Index(
    "user_jobs_live_name",
    _user_jobs.c.project,
    _user_jobs.c.name,
    unique=True,
    sqlite_where=_LIVE,
    postgresql_where=_LIVE,
)
_user_job_versions = sa.Table(
    "user_job_versions",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.Integer, sa.ForeignKey("user_jobs.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("pre_version_id", sa.Integer),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("stop_requested", sa.Boolean, nullable=False),
    sa.Column("submission_prefix", sa.String(64), nullable=False),
    sa.Column("num_submissions", sa.Integer, nullable=False),
    sa.Column("log_offsets", sa.JSON, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(255)),
    sa.Column("lease_expires_at", _TIME, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("started_at", _TIME),
    sa.Column("ended_at", _TIME),
    sa.Column("deleted_at", _TIME),
    sa.UniqueConstraint("job_id", "number", name="user_job_versions_number"),
)
sa.Index("user_job_versions_status", _user_job_versions.c.status, _user_job_versions.c.id)
sa.Table(
    "user_job_logs",
    _metadata,
    sa.Column("version_id", sa.Integer, sa.ForeignKey("user_job_versions.id"), primary_key=True),
    sa.Column("file", sa.String(64), primary_key=True),
    sa.Column("first_line", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("num_lines", sa.Integer, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)
sa.Table(
    "dataset_versions",
    _metadata,
    sa.Column("project", _NAME, primary_key=True),
    sa.Column("dataset_id", _NAME, primary_key=True),
    sa.Column("version", _NAME, primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
)


def upgrade() -> None:
    _metadata.create_all(op.get_bind(), checkfirst=False)
