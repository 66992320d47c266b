"""The request of each job; alerts, their deliveries to webhooks, and the lease of the process that evaluates them."""

import sqlalchemy as sa
from alembic import op

revision = "0011_alerts"
down_revision = "0010_usage"

_ID, _NAME, _TIME = sa.String(36), sa.String(128), sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("request_id", sa.String(128)))
    op.add_column("jobs", sa.Column("traceparent", sa.String(64)))
    op.create_table(
        "alerts",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", _ID, nullable=False, unique=True),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("entity", _NAME),
        sa.Column("severity", sa.String(16), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("remedy", sa.Text, nullable=False),
        sa.Column("links", sa.JSON, nullable=False),
        sa.Column("opened_at", _TIME, nullable=False),
        sa.Column("resolved_at", _TIME),
        sa.Column("acknowledged_at", _TIME),
        sa.Column("acknowledged_by", _ID),
    )
    is_open = sa.text("resolved_at IS NULL")
    op.create_index("alerts_open", "alerts", ["key"], unique=True, sqlite_where=is_open, postgresql_where=is_open)
    op.create_index("alerts_entity", "alerts", ["entity", "number"])
    op.create_table(
        "alert_deliveries",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", _ID, nullable=False, unique=True),
        sa.Column("alert_id", _ID, sa.ForeignKey("alerts.id"), nullable=False),
        sa.Column("event", sa.String(16), nullable=False),
        sa.Column("webhook", sa.String(64), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("num_attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", _TIME, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME),
        sa.Column("error", sa.Text),
    )
    pending = sa.text("state = 'pending'")
    op.create_index(
        "alert_deliveries_pending", "alert_deliveries", ["number"], sqlite_where=pending, postgresql_where=pending
    )
    op.create_index("alert_deliveries_alert", "alert_deliveries", ["alert_id"])
    op.create_table(
        "service_leases",
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("owner", _NAME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
    )
