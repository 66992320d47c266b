"""Alerts in the service's store."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, delete, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tandem.cluster.config import WebhookConfig
from tandem.serve.alerts.findings import Finding
from tandem.serve.errors import NotFoundError
from tandem.serve.store.database import Database, position
from tandem.serve.store.tables.alerts import AlertDeliveryRow, AlertRow, LeaseRow

LEASE = "alerts"


@dataclass(frozen=True)
class Counts:
    open: int
    unacknowledged: int


@dataclass(frozen=True)
class Viewer:
    """Whose alerts a caller sees: those of its entity, and as an admin also those of the whole service."""

    entity: str
    is_admin: bool

    def may_see(self) -> ColumnElement[bool]:
        own = AlertRow.entity == self.entity
        return or_(own, AlertRow.entity.is_(None)) if self.is_admin else own


def fingerprint(webhook: WebhookConfig) -> str:
    """Return the name of a webhook in the store, from which its address doesn't follow."""
    return hashlib.sha256(webhook.url.encode()).hexdigest()


class AlertStore:
    def __init__(self, database: Database):
        self._database = database

    def now(self) -> datetime:
        return self._database.now()

    def hold_lease(self, owner: str, lease_s: float) -> bool:
        """Take or extend the lease to evaluate alerts. Return False while another process holds it."""
        now = self._database.now()
        try:
            with self._database.write() as session:
                row = session.scalar(select(LeaseRow).where(LeaseRow.name == LEASE).with_for_update())
                if row is not None and row.owner != owner and row.expires_at > now:
                    return False
                if row is None:
                    row = LeaseRow(name=LEASE)
                    session.add(row)
                row.owner, row.expires_at = owner, now + timedelta(seconds=lease_s)
        except IntegrityError:  # another process was first
            return False
        return True

    def release_lease(self, owner: str) -> None:
        with self._database.write() as session:
            session.execute(delete(LeaseRow).where(LeaseRow.name == LEASE, LeaseRow.owner == owner))

    def open_keys(self) -> dict[str, str]:
        """Return the kinds of the open alerts by key."""
        with self._database.read() as session:
            rows = session.execute(select(AlertRow.key, AlertRow.kind).where(AlertRow.resolved_at.is_(None)))
            return {key: kind for key, kind in rows}

    def open(self, findings: Sequence[Finding], webhooks: Sequence[WebhookConfig]) -> list[AlertRow]:
        """Open an alert for each finding that has none, with messages to the webhooks. Return the new ones."""
        opened = []
        with self._database.write() as session:
            known = set(session.scalars(select(AlertRow.key).where(AlertRow.resolved_at.is_(None))))
            for finding in findings:
                if finding.key in known:
                    continue
                row = AlertRow(
                    id=str(uuid.uuid4()),
                    key=finding.key,
                    kind=finding.kind,
                    entity=finding.entity,
                    severity=finding.severity,
                    title=finding.title,
                    cause=finding.cause,
                    remedy=finding.remedy,
                    links=dict(finding.links),
                    opened_at=self._database.now(),
                )
                session.add(row)
                opened.append(row)
                known.add(finding.key)
            session.flush()
            self._enqueue(session, opened, "opened", webhooks)
        return opened

    def resolve(self, keys: Collection[str], webhooks: Sequence[WebhookConfig]) -> list[AlertRow]:
        """End the open alerts of these keys, with messages to the webhooks. Return them."""
        with self._database.write() as session:
            is_open = AlertRow.resolved_at.is_(None)
            rows = list(session.scalars(select(AlertRow).where(is_open, AlertRow.key.in_(keys)).with_for_update()))
            for row in rows:
                row.resolved_at = self._database.now()
            self._enqueue(session, rows, "resolved", webhooks)
        return rows

    def _enqueue(
        self, session: Session, alerts: Sequence[AlertRow], event: str, webhooks: Sequence[WebhookConfig]
    ) -> None:
        for alert in alerts:
            for webhook in webhooks:
                if webhook.events is None or alert.kind in webhook.events:
                    session.add(
                        AlertDeliveryRow(
                            id=str(uuid.uuid4()),
                            alert_id=alert.id,
                            event=event,
                            webhook=fingerprint(webhook),
                            host=webhook.shown,
                            state="pending",
                            num_attempts=0,
                            created_at=self._database.now(),
                        )
                    )

    def page(
        self,
        viewer: Viewer,
        limit: int,
        after: str | None = None,
        is_open: bool | None = None,
        link: tuple[str, str] | None = None,
    ) -> Sequence[AlertRow]:
        """Return alerts, the newest first. `link` keeps those whose links have this name and value."""
        query = select(AlertRow).where(viewer.may_see())
        if is_open is not None:
            query = query.where(AlertRow.resolved_at.is_(None) if is_open else AlertRow.resolved_at.is_not(None))
        if link is not None:
            query = query.where(AlertRow.links[link[0]].as_string() == link[1])
        with self._database.read() as session:
            if after is not None:
                query = query.where(AlertRow.number < position(session, AlertRow, after, viewer.may_see()))
            return session.scalars(query.order_by(AlertRow.number.desc()).limit(limit)).all()

    def counts(self, viewer: Viewer) -> Counts:
        """Return how many of the viewer's alerts are open."""
        query = select(func.count(), func.count(AlertRow.acknowledged_at))
        with self._database.read() as session:
            row = session.execute(query.where(viewer.may_see(), AlertRow.resolved_at.is_(None))).one()
        return Counts(row[0], row[0] - row[1])

    def acknowledge(self, alert_id: str, viewer: Viewer, key_id: str) -> AlertRow:
        """Mark an alert as seen, once. Raises NotFoundError."""
        with self._database.write() as session:
            row = session.scalar(_of(alert_id, viewer).with_for_update())
            if row is None:
                raise NotFoundError(
                    f"There is no alert {alert_id} that this key may see. List the alerts to see their ids.",
                    "alert_not_found",
                    "alert_id",
                )
            if row.acknowledged_at is None:
                row.acknowledged_at, row.acknowledged_by = self._database.now(), key_id
        return row

    def deliveries(self, alert_ids: Sequence[str]) -> Mapping[str, list[AlertDeliveryRow]]:
        """Return the messages about each of these alerts, the oldest first."""
        found: dict[str, list[AlertDeliveryRow]] = {id: [] for id in alert_ids}
        query = select(AlertDeliveryRow).where(AlertDeliveryRow.alert_id.in_(alert_ids))
        with self._database.read() as session:
            for row in session.scalars(query.order_by(AlertDeliveryRow.number)):
                found[row.alert_id].append(row)
        return found

    def pending(self, limit: int) -> list[tuple[AlertDeliveryRow, AlertRow]]:
        """Return messages that aren't delivered yet, the oldest first, due or not."""
        query = select(AlertDeliveryRow, AlertRow).join(AlertRow, AlertRow.id == AlertDeliveryRow.alert_id)
        query = query.where(AlertDeliveryRow.state == "pending").order_by(AlertDeliveryRow.number).limit(limit)
        with self._database.read() as session:
            return [(delivery, alert) for delivery, alert in session.execute(query)]

    def delivered(self, delivery_id: str) -> None:
        with self._database.write() as session:
            row = _delivery(session, delivery_id)
            row.state, row.ended_at, row.error = "delivered", self._database.now(), None
            row.num_attempts += 1

    def not_delivered(self, delivery_id: str, error: str, next_attempt_at: datetime | None) -> None:
        """Record a failed attempt; without a next one, the message is given up."""
        with self._database.write() as session:
            row = _delivery(session, delivery_id)
            row.num_attempts += 1
            row.error = error
            if next_attempt_at is None:
                row.state, row.ended_at = "failed", self._database.now()
            else:
                row.next_attempt_at = next_attempt_at

    def forget(self, resolved_before: datetime) -> int:
        """Delete alerts that ended before then. Return how many."""
        old = select(AlertRow.id).where(AlertRow.resolved_at < resolved_before)
        with self._database.write() as session:
            session.execute(delete(AlertDeliveryRow).where(AlertDeliveryRow.alert_id.in_(old)))
            ids = session.scalars(delete(AlertRow).where(AlertRow.resolved_at < resolved_before).returning(AlertRow.id))
            return len(ids.all())


def _of(alert_id: str, viewer: Viewer) -> Select[AlertRow]:
    return select(AlertRow).where(AlertRow.id == alert_id, viewer.may_see())


def _delivery(session: Session, delivery_id: str) -> AlertDeliveryRow:
    return session.scalars(select(AlertDeliveryRow).where(AlertDeliveryRow.id == delivery_id).with_for_update()).one()
