"""The HTTP server of a replica of the API, to which proxies pass requests of the Tinker API and large bodies.

A training step is four requests in a row, and Serve's own way from a proxy to a replica takes several milliseconds of
CPU time for each, and as much as checking it for a large payload.
"""

from __future__ import annotations

import asyncio
import secrets

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem.cluster.engine.requests.headers import REPLICA_HEADER, STOPPING_HEADER, TOKEN_HEADER
from tandem.cluster.engine.server import EngineAddress
from tandem.cluster.processes.private_server import POLL_S, PrivateServer
from tandem.serve.api.error_body import error_body
from tandem.serve.tinker.api.errors import PREFIX


class ApiServer:
    """Serves the application on a port of this node, to callers with this server's token alone."""

    def __init__(self, app: ASGIApp, replica: str):
        self._app, self._replica = app, replica
        self._token = secrets.token_urlsafe(32)
        self._name = REPLICA_HEADER.encode(), replica.encode()
        self._num_polls = self._num_others = 0
        self._is_stopping = False
        self._server = PrivateServer(self._answer)

    async def start(self, host: str) -> EngineAddress:
        """Listen on a free port of the address. Return once requests are taken."""
        port = await self._server.start(host)
        return EngineAddress(self._replica, host, port, self._token)

    async def stop(self, polls_s: float, others_s: float) -> None:
        """Refuse new requests, wait for the open ones, and close all connections.

        Requests of the Tinker API, which wait for results and are sent again, have `polls_s` to end, others `others_s`.
        """
        self._is_stopping = True
        clock = asyncio.get_running_loop().time
        began = clock()
        while clock() < began + (others_s if self._num_others else polls_s if self._num_polls else 0):
            await asyncio.sleep(POLL_S)
        await self._server.stop()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = dict(scope["headers"]).get(TOKEN_HEADER.encode(), b"")
        if not secrets.compare_digest(token, self._token.encode()):
            refusal = error_body("This port is for the service's own proxies.", "authentication_error", "invalid_token")
            await JSONResponse(refusal, 401)(scope, receive, send)
            return

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), self._name]}
            await send(message)

        if self._is_stopping:
            moving = error_body("This process is being replaced.", "service_unavailable_error", "stopping")
            await JSONResponse(moving, 503, {STOPPING_HEADER: "1"})(scope, receive, send_named)
            return
        is_poll = scope["path"].startswith(PREFIX)
        self._count(is_poll, 1)
        try:
            await self._app(scope, receive, send_named)
        finally:
            self._count(is_poll, -1)

    def _count(self, is_poll: bool, change: int) -> None:
        self._num_polls += change * is_poll
        self._num_others += change * (not is_poll)
