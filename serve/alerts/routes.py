"""Routes of alerts."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, FastAPI, Query

from tandem.serve.alerts.store import AlertStore, Viewer
from tandem.serve.alerts.webhooks import DeliveryError, send, test_body
from tandem.serve.alerts.wire import Alert, AlertCounts, WebhookTest, WebhookTests, alert_view
from tandem.serve.api.auth import AdminCaller, Caller, TrainCaller, include_with_key
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.paging import Limit, Page
from tandem.serve.errors import ConflictError

router = APIRouter(prefix="/preview/alerts", tags=["alerts"])
TEST_TIMEOUT_S = 10.0


def add_routes(app: FastAPI) -> None:
    """Add the routes under /v1."""
    include_with_key(app, router)


@router.get("")
def list_alerts(
    caller: TrainCaller,
    services: ServicesDep,
    state: Literal["open", "resolved"] | None = None,
    model_id: Annotated[UUID | None, Query(description="Only alerts about this model, or a job of it.")] = None,
    job_id: Annotated[UUID | None, Query(description="Only alerts about this job.")] = None,
    after: UUID | None = None,
    limit: Limit = 20,
) -> Page[Alert]:
    """List the entity's alerts, the newest first. Admins also get those of the whole service."""
    alerts, viewer = _alerts(services), _viewer(caller)
    link = ("job_id", str(job_id)) if job_id else ("model_id", str(model_id)) if model_id else None
    is_open = None if state is None else state == "open"
    rows = alerts.page(viewer, limit + 1, str(after) if after else None, is_open, link)
    deliveries = alerts.deliveries([row.id for row in rows]) if viewer.is_admin else {}
    return Page.of([alert_view(row, deliveries.get(row.id)) for row in rows], limit)


@router.get("/count")
def count_alerts(caller: TrainCaller, services: ServicesDep) -> AlertCounts:
    """Return how many alerts are open, and how many of them nobody has acknowledged."""
    counts = _alerts(services).counts(_viewer(caller))
    return AlertCounts(open=counts.open, unacknowledged=counts.unacknowledged)


@router.post("/{alert_id}/acknowledge")
def acknowledge_alert(alert_id: UUID, caller: TrainCaller, services: ServicesDep) -> Alert:
    """Mark an alert as seen by this key, once. It stays open until what it is about is over."""
    return alert_view(_alerts(services).acknowledge(str(alert_id), _viewer(caller), caller.key_id))


@router.post("/test")
def test_webhooks(caller: AdminCaller, services: ServicesDep) -> WebhookTests:
    """Send a test message to each webhook of the configuration, and return how each fared."""
    webhooks = services.config.alerts
    if not webhooks:
        raise ConflictError(
            "The service has no webhook. Add one to its configuration: alerts: [{url: https://...}].", "no_webhook"
        )
    found = []
    for webhook in webhooks:
        error = None
        try:
            send(webhook, f"test_{uuid.uuid4().hex}", test_body(webhook), TEST_TIMEOUT_S)
        except DeliveryError as failure:
            error = str(failure)
        found.append(WebhookTest(host=webhook.shown, state="failed" if error else "delivered", error=error))
    return WebhookTests(webhooks=found)


def _alerts(services: Services) -> AlertStore:
    return AlertStore(services.store.database)


def _viewer(caller: Caller) -> Viewer:
    return Viewer(caller.entity, is_admin=caller.role == "admin")
