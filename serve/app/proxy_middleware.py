"""Middleware of Ray Serve's HTTP proxies, which stand between every client and the API.

By itself, a proxy answers some requests in its own words: 404 in plain text while it doesn't know the routes yet, after
a start or when it replaces a proxy that died, and 500 for headers that it can't decode. Clients take a 404 as final, so
`middleware` turns the proxy's own answers into errors of the API's shape that clients retry.

The gateway behind it answers completions without the API.

Each proxy calls `middleware` at its start if PROXY_ENVIRONMENT is in the environment of Serve's controller. Serve's own
routes (/-/healthz, /-/routes) stay as they are.
"""

from __future__ import annotations

import logging
import re

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem.cluster.telemetry.redaction import without_keys
from tandem.serve.api.anthropic_errors import AnthropicErrors
from tandem.serve.api.error_body import error_body
from tandem.serve.api.request_ids import ID_HEADER, chosen_id, unexpected_error
from tandem.serve.app.proxies.lazy_gateway import LazyGateway
from tandem.serve.tinker.api.errors import SdkErrors

logger = logging.getLogger(__name__)

PROXY_ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "tandem.serve.app.proxy_middleware.middleware"}
_SERVES_OWN = "/-/"
_NO_ROUTE = re.compile(rb"Path '.*' not found\. Ping http", re.DOTALL)
# A request would steer the proxy with these, and one that isn't UTF-8 makes it fail.
_STEERING = (
    b"serve-multiplexed-model-id",
    b"x-session-id",
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
)
_STARTING = "The service is starting and doesn't answer requests yet. Send the request again in a moment."
_BUSY = "The service can't take this request now. Send it again in a moment."
_LOST = (
    "The process that handled this request ended before it had answered. Send the request again; if it creates "
    "something, check first whether it took effect."
)


def middleware() -> list[Middleware]:
    """Return the middleware of a proxy, in the form that Serve's callback requires."""
    own = (LazyGateway, ProxyAnswers, AnthropicErrors, SdkErrors)  # the last is the outermost
    return [Middleware(kind) for kind in own]


class ProxyAnswers:
    """Replaces the proxy's own answers, and request ids that aren't plain."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_SERVES_OWN):
            await self._app(scope, receive, send)
            return
        id = chosen_id(scope["headers"])
        kept = [(name, value) for name, value in scope["headers"] if not _is_replaced(name)]
        scope = {**scope, "headers": [*kept, (ID_HEADER, id.encode())]}
        answer = _Answer(send)
        try:
            await self._app(scope, receive, answer.take)
        except Exception:
            logger.exception("%s %s failed, request %s", scope["method"], without_keys(scope["path"]), id)
            if answer.has_started:
                raise  # half of the response is sent; only a closed connection can tell that it failed
            response = JSONResponse(unexpected_error(id), 500)
        else:
            if answer.has_started:
                return
            response = answer.refusal or _refusal(503, _LOST, "no_answer")
        response.headers[ID_HEADER.decode()] = id
        await response(scope, receive, send)


class _Answer:
    """Passes on an answer of the API, and keeps back one of the proxy itself."""

    def __init__(self, send: Send):
        self._send = send
        self._held: Message | None = None
        self.has_started = False
        self.refusal: JSONResponse | None = None
        """The answer in place of the proxy's own."""

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_plain_error(message):
            self._held = message
            return
        if self._held is not None:  # the body tells which answer of the proxy it is
            held, self._held = self._held, None
            self.refusal = _instead(held["status"], message.get("body", b""))
            if self.refusal is None:
                await self._pass_on(held)
        if self.refusal is None:
            await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        self.has_started = True
        await self._send(message)


def _is_plain_error(start: Message) -> bool:
    """Return True if the answer may be the proxy's: the API answers errors in JSON."""
    return start["status"] >= 400 and any(
        name.lower() == b"content-type" and value.startswith(b"text/plain") for name, value in start["headers"]
    )


def _instead(status: int, body: bytes) -> JSONResponse | None:
    """Return the answer in place of one in plain text; None if that isn't one of the proxy's."""
    if status == 404:
        return _refusal(503, _STARTING, "starting") if _NO_ROUTE.match(body) else None
    return _refusal(status, _BUSY, "unavailable") if status in (408, 429, 503) else None


def _refusal(status: int, message: str, code: str) -> JSONResponse:
    type = {408: "timeout_error", 429: "rate_limit_error"}.get(status, "service_unavailable_error")
    return JSONResponse(error_body(message, type, code), status, {"Retry-After": "1"})


def _is_replaced(header: bytes) -> bool:
    return header == ID_HEADER or header.lower().replace(b"_", b"-") in _STEERING
