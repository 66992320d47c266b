"""Counts requests and their seconds, by the template of their route."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem.cluster.metrics.recording import count, observe

UNMATCHED = "unmatched"
"""The route of requests that have none: anybody can invent paths."""
NOBODY = 499
"""The status of a request whose client left before its answer."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestMeter:
    """Measures one request: pass on its messages with `send`, then `end`."""

    def __init__(self, scope: Scope, send: Send, answered_by: str):
        self._scope, self._send, self._answered_by = scope, send, answered_by
        self._began, self._status = time.perf_counter(), NOBODY

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        await self._send(message)

    def failed(self) -> None:
        """Count the request as an unexpected error, unless its answer has begun."""
        if self._status == NOBODY:
            self._status = 500

    def end(self, route: str | None = None) -> None:
        """Record the request. `route` is the template of its path, by default that of FastAPI's route."""
        template = route or getattr(self._scope.get("route"), "path", None) or UNMATCHED
        method = self._scope["method"] if self._scope["method"] in _METHODS else "other"
        labels: dict[str, str] = {"route": template, "method": method, "answered_by": self._answered_by}
        count("tandem_http_requests_total", status=str(self._status), **labels)
        observe("tandem_http_request_seconds", time.perf_counter() - self._began, **labels)


class HttpMetrics:
    """Middleware of the API."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        meter = RequestMeter(scope, send, "api")
        try:
            await self._app(scope, receive, meter.send)
        except Exception:
            meter.failed()
            raise
        finally:
            meter.end()
