"""Errors of the Tinker API, with the statuses that its SDK handles well. Importing this module imports no FastAPI.

The SDK shows the body of an error, and repeats requests by their status: 408, 409, 429 and 5xx for five minutes, with
growing pauses; those for results without any pause. So no refusal is a 409, and a request for a result that fails here
is held before it gets the answer of one that has to wait.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "/api/v1/"
RESULTS = f"{PREFIX}retrieve_future"
HOLD_S = 2.0
"""How long a failed request for a result is held."""
_TROUBLE = "the service has trouble and tries again"


def try_again(request_id: str, state: str, reason: str | None) -> dict[str, Any]:
    """Return the body, with status 408, for a result that isn't there yet. The SDK repeats the request at once."""
    body = {"type": "try_again", "request_id": request_id, "queue_state": state}
    return body if reason is None else {**body, "queue_state_reason": reason}


class SdkErrors:
    """Middleware: turns 409 into 400 on routes of the Tinker API, and failed requests for results into "try again"."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PREFIX):
            send = _Patient(send, is_for_result=scope["path"] == RESULTS)
        await self._app(scope, receive, send)


class _Patient:
    def __init__(self, send: Send, is_for_result: bool):
        self._send, self._is_for_result = send, is_for_result
        self._is_replaced = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 500 and self._is_for_result:
                self._is_replaced = True
                await self._answer(message)
            else:
                await self._send({**message, "status": 400} if message["status"] == 409 else message)
        elif not self._is_replaced:
            await self._send(message)

    async def _answer(self, start: Mapping[str, Any]) -> None:
        await asyncio.sleep(HOLD_S)
        content = json.dumps(try_again("", "paused_capacity", _TROUBLE)).encode()
        replaced = {b"content-type": b"application/json", b"content-length": str(len(content)).encode()}
        kept = [(name, value) for name, value in start["headers"] if name.lower() not in (*replaced, b"retry-after")]
        await self._send({**start, "status": 408, "headers": [*kept, *replaced.items()]})
        await self._send({"type": "http.response.body", "body": content, "more_body": False})
