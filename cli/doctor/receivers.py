"""Checks the addresses to which the service sends alerts and traces."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from tandem.cli.doctor.report import FaultError, Report
from tandem.cluster.config import TandemConfig


def check_receivers(report: Report, config: TandemConfig) -> None:
    """Check that the host of each webhook, and that of the collector of traces, has an address. Nothing is sent."""
    for number, webhook in enumerate(config.alerts):
        signed = "signed" if webhook.secret else "not signed: set its secret"
        report.check(
            f"webhook {number + 1}",
            lambda url=webhook.url, number=number, signed=signed: (  # type: ignore[misc]
                f"{_resolved(url, f'alerts.{number}.url')}, messages are {signed}"
            ),
        )
    if (tracing := config.tracing) is not None:
        report.check("traces", lambda: _resolved(tracing.endpoint, "tracing.endpoint"))


def _resolved(url: str, field: str) -> str:
    """Return the host of an address, whose path may be a secret. Raises FaultError."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        socket.getaddrinfo(host, parts.port or (443 if parts.scheme == "https" else 80))
    except OSError as error:
        raise FaultError(f"the host {host} of {field} isn't found from this machine ({error}). Correct it.") from None
    return f"{host} by {parts.scheme}"
