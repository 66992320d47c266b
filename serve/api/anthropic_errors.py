"""Errors in Anthropic's shape, on the routes of its Messages. Importing this module imports no FastAPI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem.cluster.engine.requests.protocols import speaks_anthropic

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}

_NO_THREADS = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
"""Makes Anthropic's clients send the whole conversation instead of continuing one that the server holds."""


def anthropic_error(status: int, body: Mapping[str, Any], request_id: str | None = None) -> dict[str, Any]:
    """Return an error of the service or the engine in Anthropic's shape. The message names the place in the request."""
    if body.get("type") == "error":
        return dict(body)
    error = body.get("error")
    known = error if isinstance(error, Mapping) else {}
    message = str(known.get("message") or body.get("detail") or "The request failed.")
    if (param := known.get("param")) and str(param) not in message:
        message = f"{param}: {message}"
    type = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    shaped: dict[str, Any] = {"type": "error", "error": {"type": type, "message": message}}
    if param == "thread":
        shaped["error"]["details"] = _NO_THREADS
    return shaped | ({"request_id": request_id} if request_id else {})


class AnthropicErrors:
    """Middleware: answers errors on Anthropic's routes in Anthropic's shape, whoever made them."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and speaks_anthropic(scope["path"]):
            send = _Reshaping(send)
        await self._app(scope, receive, send)


class _Reshaping:
    """Holds back an error until its body is there."""

    def __init__(self, send: Send):
        self._send = send
        self._start: Message | None = None
        self._content = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400 and _is_json(message):
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._content += message.get("body", b"")
            if not message.get("more_body"):
                await self._finish(self._start)

    async def _finish(self, start: Message) -> None:
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        id = next((value.decode() for name, value in headers if name.lower() == b"x-request-id"), None)
        body = json.loads(self._content)
        content = json.dumps(anthropic_error(start["status"], body if isinstance(body, dict) else {}, id)).encode()
        self._start = None
        await self._send({**start, "headers": [*headers, (b"content-length", str(len(content)).encode())]})
        await self._send({"type": "http.response.body", "body": content, "more_body": False})


def _is_json(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"application/json") for name, value in start["headers"]
    )
