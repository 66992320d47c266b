"""The message of a webhook: its body, its signature, and one attempt to deliver it.

Signatures are those of Standard Webhooks (standardwebhooks.com), so that its libraries check them: the header
webhook-signature is "v1," and the base64 of HMAC-SHA256 over `{webhook-id}.{webhook-timestamp}.{body}`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import httpx

from tandem import __version__
from tandem.cluster.config import WebhookConfig
from tandem.cluster.config.observability import signing_key
from tandem.serve.store.tables.alerts import AlertRow

MAX_TEXT = 2000
"""Characters of a sentence in Slack's message."""


class DeliveryError(Exception):
    """A webhook didn't take a message. The sentence has no part of its address but the host."""


def alert_fields(alert: AlertRow) -> dict[str, Any]:
    """Return an alert as the JSON of a message has it."""
    return {
        "id": alert.id,
        "kind": alert.kind,
        "severity": alert.severity,
        "entity": alert.entity,
        "title": alert.title,
        "cause": alert.cause,
        "remedy": alert.remedy,
        "links": alert.links,
        "opened_at": alert.opened_at.isoformat(),
        "resolved_at": alert.resolved_at.isoformat() if alert.resolved_at else None,
    }


def alert_body(webhook: WebhookConfig, event: str, alert: AlertRow) -> bytes:
    """Return the body of a message that an alert has `opened` or `resolved`."""
    if webhook.format == "slack":
        state = "Over" if event == "resolved" else alert.severity.capitalize()
        detail = "" if event == "resolved" else f"\n{alert.cause}\n{alert.remedy}"
        return _slack(f"[{state}] {alert.title}{detail}")
    return _json({"type": f"alert.{event}", "timestamp": _iso_now(), "data": alert_fields(alert)})


def test_body(webhook: WebhookConfig) -> bytes:
    """Return the body of a test."""
    sentence = "This is a test of Tandem's alerts. Nothing is wrong."
    if webhook.format == "slack":
        return _slack(f"[Test] {sentence}")
    return _json({"type": "test", "timestamp": _iso_now(), "data": {"message": sentence}})


def send(webhook: WebhookConfig, message_id: str, body: bytes, timeout_s: float) -> None:
    """POST a message. Raises DeliveryError unless the answer is 2xx. Redirects aren't followed.

    Each attempt is signed with its own time, and has the same `message_id`, by which a receiver ignores repeats.
    """
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"tandem/{__version__}",
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
    }
    if webhook.secret is not None:
        headers["webhook-signature"] = signature(webhook.secret, message_id, timestamp, body)
    try:
        # Proxies of the environment apply, as for every other client of this machine.
        with (
            httpx.Client(timeout=timeout_s, follow_redirects=False) as client,
            client.stream("POST", webhook.url, content=body, headers=headers) as response,
        ):
            status = response.status_code  # the body is of no use, and may be of any size
    except httpx.HTTPError as error:
        raise DeliveryError(f"{webhook.shown}: {type(error).__name__}") from None
    if 300 <= status < 400:
        raise DeliveryError(f"{webhook.shown} answered {status}; redirects aren't followed, so name the final address")
    if not 200 <= status < 300:
        raise DeliveryError(f"{webhook.shown} answered {status}")


def signature(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    """Return the value of webhook-signature."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(signing_key(secret), signed, hashlib.sha256)).decode()


def _slack(text: str) -> bytes:
    # Slack reads <...> as links and &-sequences as characters.
    escaped = text[:MAX_TEXT].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _json({"text": escaped})


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _iso_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
