"""Delivers the messages of alerts that are in the store, with retries."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta

from tandem.cluster.config import AlertRulesConfig, WebhookConfig
from tandem.cluster.metrics.recording import count
from tandem.serve.alerts.store import AlertStore, fingerprint
from tandem.serve.alerts.webhooks import DeliveryError, alert_body, send
from tandem.serve.store.tables.alerts import AlertDeliveryRow, AlertRow

logger = logging.getLogger(__name__)
AT_ONCE = 100
DELIVERIES = "tandem_webhook_deliveries_total"
FIRST_RETRY_S = 5.0
LAST_RETRY_S = 900.0
IDLE_S = 5.0

Send = Callable[[WebhookConfig, str, bytes, float], None]


class Delivery:
    """Sends pending messages in the order of each webhook. A failed one is retried after 5 s, 10 s, 20 s, ... 15 min
    until `webhook_deadline_s`."""

    def __init__(
        self, store: AlertStore, webhooks: Sequence[WebhookConfig], rules: AlertRulesConfig, send: Send = send
    ):
        self._store, self._rules, self._send = store, rules, send
        self._webhooks = {fingerprint(webhook): webhook for webhook in webhooks}
        self._woken = threading.Event()

    def wake(self) -> None:
        """There are new messages."""
        self._woken.set()

    def run(self, stop: threading.Event, may_send: Callable[[], bool]) -> None:
        """Deliver until `stop` is set, while `may_send` holds."""
        while not stop.is_set():
            self._woken.wait(IDLE_S)
            self._woken.clear()
            try:
                if self._store.pending(1) and may_send():
                    self.deliver(stop)
            except Exception:  # most likely the store
                logger.warning("Messages of alerts couldn't be delivered; the next attempt follows", exc_info=True)

    def deliver(self, stop: threading.Event | None = None) -> None:
        """Send what is due. A webhook that fails gets nothing else for now, so that its messages stay in order."""
        failing = set()
        for message, alert in self._store.pending(AT_ONCE):
            if stop is not None and stop.is_set():
                return
            if message.webhook in failing:
                continue
            if message.next_attempt_at > self._store.now():
                failing.add(message.webhook)
            elif not self._try(message, alert):
                failing.add(message.webhook)

    def _try(self, message: AlertDeliveryRow, alert: AlertRow) -> bool:
        webhook = self._webhooks.get(message.webhook)
        if webhook is None:
            self._store.not_delivered(message.id, "The webhook is no longer configured.", None)
            return True
        try:
            self._send(webhook, message.id, alert_body(webhook, message.event, alert), self._rules.webhook_timeout_s)
        except DeliveryError as error:
            self._retry_later(message, str(error))
            return False
        self._store.delivered(message.id)
        count(DELIVERIES, outcome="delivered")
        return True

    def _retry_later(self, message: AlertDeliveryRow, error: str) -> None:
        delay_s = min(FIRST_RETRY_S * 2 ** min(message.num_attempts, 20), LAST_RETRY_S)
        next_attempt = self._store.now() + timedelta(seconds=delay_s)
        deadline = message.created_at + timedelta(seconds=self._rules.webhook_deadline_s)
        if message.num_attempts == 0:
            logger.warning("A message of an alert wasn't delivered and is sent again: %s", error)
        if next_attempt > deadline:
            logger.error("A message of an alert is given up after %d attempts: %s", message.num_attempts + 1, error)
            self._store.not_delivered(message.id, error, None)
            count(DELIVERIES, outcome="failed")
        else:
            self._store.not_delivered(message.id, error, next_attempt)
