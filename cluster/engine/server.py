"""The HTTP server of an engine replica: the API sends completions here, over connections that stay open."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from tandem.cluster.engine.requests.completions import Completions
from tandem.cluster.engine.requests.headers import (
    MODEL_HEADER,
    REPLICA_HEADER,
    STOPPING_HEADER,
    TOKEN_HEADER,
    VERSION_HEADER,
)
from tandem.cluster.engine.requests.openai_app import Message, Receive, Scope, Send, error_app
from tandem.cluster.engine.samples.samples_app import CANCEL_PATH, FETCH_PATH, PREFIX, Samples
from tandem.cluster.processes.private_server import PrivateServer
from tandem.cluster.telemetry.context import TRACEPARENT, logged_with
from tandem.cluster.telemetry.tracing import Span, span, valid_traceparent

logger = logging.getLogger(__name__)
POLL_S = 0.05
STATE_PATH = "/tandem/state"


@dataclass(frozen=True)
class EngineAddress:
    """Where a replica answers, and the secret that it asks for."""

    replica: str
    host: str
    port: int
    token: str


class EngineServer:
    """Serves an engine's completions on a port of this node, to callers with this server's token alone.

    server = EngineServer(engine.completions, replica, samples=engine.samples)
    address = await server.start(host)
    await server.stop(timeout_s)
    """

    def __init__(
        self,
        completions: Completions,
        replica: str,
        state: Callable[[], Mapping[str, Any]] = dict,
        samples: Samples | None = None,
    ):
        """`state` returns what STATE_PATH answers, as JSON; it may read files, so it runs in a thread."""
        self._completions, self._replica, self._state, self._samples = completions, replica, state, samples
        self._token = secrets.token_urlsafe(32)
        self._replica_header = REPLICA_HEADER.encode(), replica.encode()
        self._is_stopping = False
        self._server = PrivateServer(self._app)

    async def start(self, host: str) -> EngineAddress:
        """Listen on a free port of the address. Return once requests are taken."""
        port = await self._server.start(host)
        return EngineAddress(self._replica, host, port, self._token)

    async def stop(self, timeout_s: float) -> None:
        """Refuse new requests, wait for the open ones as long as allowed, and close all connections.

        Samples are begun work too, until their clients have fetched them; the others are handed back.
        """
        self._is_stopping = True
        deadline = time.monotonic() + timeout_s
        while (self._completions.num_open or self._num_awaited) and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        if self._samples is not None:
            await self._samples.futures.close()
            await asyncio.sleep(POLL_S)  # for the answers that say so
        await self._server.stop()

    @property
    def _num_awaited(self) -> int:
        return self._samples.futures.num_awaited if self._samples is not None else 0

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = dict(scope["headers"]).get(TOKEN_HEADER.encode(), b"")
        if not secrets.compare_digest(token, self._token.encode()):
            return await error_app(401, "AuthenticationError", "This port is for the API alone.")(scope, receive, send)
        if scope["path"] == STATE_PATH:
            return await self._tell_state(send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        # The API has added what makes the id of a generation unique.
        request_id = headers.get(b"x-request-id", "").rpartition("-")[0]
        model = unquote(headers.get(MODEL_HEADER.encode(), ""))
        with (
            logged_with(
                request_id=request_id or None,
                version=headers.get(VERSION_HEADER.encode()),
                **{TRACEPARENT: valid_traceparent(headers.get(TRACEPARENT.encode()))},
            ),
            span(f"engine {scope['path']}", is_server=True, model=model) as spanned,
        ):
            await self._answer(scope, receive, send, model, spanned)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, model: str, spanned: Span) -> None:
        is_begun = scope["path"] in (FETCH_PATH, CANCEL_PATH)  # work that a stopping engine still owes
        is_refused = self._is_stopping and not is_begun
        named = [self._replica_header, *([(STOPPING_HEADER.encode(), b"1")] if is_refused else [])]
        has_started = has_ended = False
        status, began = 0, time.monotonic()

        async def send_named(message: Message) -> None:
            nonlocal has_started, has_ended, status
            if message["type"] == "http.response.start":
                has_started, status = True, message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *named]}
            else:
                has_ended = not message.get("more_body")
            await send(message)

        try:
            if is_refused:
                refusal = error_app(503, "ServiceUnavailableError", "The engine is being replaced; retry later.")
                await refusal(scope, receive, send_named)
            elif self._samples is not None and scope["path"].startswith(PREFIX):
                await self._samples(scope, receive, send_named)
            else:
                await self._completions(scope, receive, send_named)
        except Exception:
            logger.exception("The engine failed on a request")
            if has_ended:
                return  # it answered with the error; the connection may serve again
            if has_started:
                raise  # half of the response is sent; only a closed connection can tell that it failed
            await error_app(500, "InternalServerError", "Internal server error.")(scope, receive, send_named)
        spanned.note(**{"http.response.status_code": status})
        logger.info("%s of %s: %d in %.3f s", scope["path"], model, status, time.monotonic() - began)

    async def _tell_state(self, send: Send) -> None:
        content = json.dumps(await asyncio.to_thread(self._state)).encode()
        length = (b"content-length", str(len(content)).encode())
        headers = [(b"content-type", b"application/json"), length, self._replica_header]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content, "more_body": False})
