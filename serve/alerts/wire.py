"""Alerts as the API returns them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from tandem.serve.api.wire.paging import Listed
from tandem.serve.store.tables.alerts import AlertDeliveryRow, AlertRow


class AlertLinks(BaseModel):
    """Where to look. All fields are optional."""

    model_id: str | None = None
    model: str | None = Field(None, description="The model as completions name it.")
    job_id: str | None = None
    step: int | None = None
    best_step: int | None = Field(None, description="Of a reward collapse: the last version of the best window.")
    base_model: str | None = None


class AlertDelivery(BaseModel):
    """A message to a webhook."""

    id: str
    event: Literal["opened", "resolved"]
    host: str = Field(description="Of the webhook; its address may be a secret.")
    state: Literal["pending", "delivered", "failed"]
    num_attempts: int
    error: str | None = Field(description="Of the last attempt, unless it succeeded.")
    created_at: datetime
    ended_at: datetime | None


class Alert(Listed):
    """Something that is wrong, or was."""

    kind: str = Field(description="Like reward_collapse, stuck_job or engine_unhealthy; docs/observability.md has all.")
    state: Literal["open", "resolved"]
    severity: Literal["critical", "warning"]
    scope: Literal["entity", "service"]
    title: str
    cause: str
    remedy: str = Field(description="What to do.")
    links: AlertLinks
    opened_at: datetime
    resolved_at: datetime | None
    acknowledged_at: datetime | None
    acknowledged_by: str | None = Field(description="The id of the key that acknowledged it.")
    deliveries: list[AlertDelivery] | None = Field(None, description="Messages to webhooks; for admins.")


class AlertCounts(BaseModel):
    """Open alerts that the key may see."""

    open: int
    unacknowledged: int


class WebhookTest(BaseModel):
    """How a test message fared."""

    host: str
    state: Literal["delivered", "failed"]
    error: str | None


class WebhookTests(BaseModel):
    """One entry for each configured webhook, in order."""

    webhooks: list[WebhookTest]


def alert_view(row: AlertRow, deliveries: list[AlertDeliveryRow] | None = None) -> Alert:
    names = [name for name in Alert.model_fields if hasattr(row, name)]
    return Alert.model_validate(
        {name: getattr(row, name) for name in names}
        | {
            "state": "open" if row.resolved_at is None else "resolved",
            "scope": "service" if row.entity is None else "entity",
            "deliveries": None if deliveries is None else [_delivery_view(delivery) for delivery in deliveries],
        }
    )


def _delivery_view(row: AlertDeliveryRow) -> AlertDelivery:
    return AlertDelivery.model_validate({name: getattr(row, name) for name in AlertDelivery.model_fields})
