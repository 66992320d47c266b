"""The tables of alerts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from tandem.serve.store.tables.training import NEVER, Table

_ID, _NAME = String(36), String(128)
_OPEN = text("resolved_at IS NULL")
_PENDING = text("state = 'pending'")


class AlertRow(Table):
    """Something that was wrong from `opened_at` to `resolved_at`. An open alert is unique by its key."""

    __tablename__ = "alerts"
    __table_args__ = (
        Index("alerts_open", "key", unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN),
        Index("alerts_entity", "entity", "number"),
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(_ID, unique=True)
    key: Mapped[str] = mapped_column(String(255))
    kind: Mapped[str] = mapped_column(String(32))
    entity: Mapped[str | None] = mapped_column(_NAME)
    """None: of the whole service."""
    severity: Mapped[str] = mapped_column(String(16))
    title: Mapped[str] = mapped_column(Text)
    cause: Mapped[str] = mapped_column(Text)
    remedy: Mapped[str] = mapped_column(Text)
    links: Mapped[dict[str, Any]]
    opened_at: Mapped[datetime]
    resolved_at: Mapped[datetime | None]
    acknowledged_at: Mapped[datetime | None]
    acknowledged_by: Mapped[str | None] = mapped_column(_ID)
    """The id of the key."""


class AlertDeliveryRow(Table):
    """A message about an alert for one webhook."""

    __tablename__ = "alert_deliveries"
    __table_args__ = (
        Index("alert_deliveries_pending", "number", sqlite_where=_PENDING, postgresql_where=_PENDING),
        Index("alert_deliveries_alert", "alert_id"),
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(_ID, unique=True)
    alert_id: Mapped[str] = mapped_column(ForeignKey("alerts.id"))
    event: Mapped[str] = mapped_column(String(16))
    """opened or resolved."""
    webhook: Mapped[str] = mapped_column(String(64))
    """The SHA-256 of its address, which may be a secret."""
    host: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(16), default="pending")
    """pending, delivered or failed."""
    num_attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime] = mapped_column(default=NEVER)
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(Text)
    """Of the last attempt."""


class LeaseRow(Table):
    """Which process does a work of the service that one does at a time."""

    __tablename__ = "service_leases"

    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    owner: Mapped[str] = mapped_column(_NAME)
    expires_at: Mapped[datetime]
