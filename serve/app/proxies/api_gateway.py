"""Passes requests of the Tinker API, and large bodies, from a proxy to a replica of the API, over open connections.

Serve's own way makes Ray objects of the parts of a body, which takes as much processor time as checking a payload.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem.cluster.engine.requests.headers import REPLICA_HEADER, TOKEN_HEADER
from tandem.cluster.errors import EngineDeadError
from tandem.serve.api.connection import while_connected
from tandem.serve.api.error_body import error_body
from tandem.serve.api.request_ids import ID_HEADER, chosen_id
from tandem.serve.app.engines.connections import EngineConnections
from tandem.serve.app.proxies import api_directory
from tandem.serve.app.proxies.api_directory import API
from tandem.serve.app.proxies.http_connection import BodyStream
from tandem.serve.tinker.api.errors import PREFIX

PATHS = (PREFIX, "/v1/preview/")
"""How the paths of requests begin that are passed on."""
COLLECTED_BYTES = 1 << 20
"""A body up to this size is passed on once it is here, a larger one while it arrives."""
_OF_THIS_CONNECTION = {
    *("host", "connection", "keep-alive", "content-length", "transfer-encoding", "expect"),
    TOKEN_HEADER,
}
_LOST = "The process that handled this request ended before it had answered. Send the request again."


class ApiGateway:
    """Middleware of a proxy: passes POSTs below PATHS on, and leaves all else to the application behind it."""

    def __init__(self, app: ASGIApp, connections: EngineConnections | None = None):
        self._app = app
        self._connections = connections or EngineConnections(api_directory.addresses, api_directory.withdraw)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith(PATHS):
            if await self._connections.exist():
                await self._pass_on(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        id, arriving = chosen_id(scope["headers"]), _Arriving(scope, receive)
        has_started = False

        async def send_marked(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            body = await arriving.body()
            left = Request(scope, arriving.rest)
            await while_connected(left, self._answered(scope, id, body, send_marked))
        except ClientDisconnect:
            return
        except EngineDeadError:
            if has_started:
                raise  # half of the answer is sent; only a closed connection can tell that it failed
            if not scope["path"].startswith(PREFIX):
                return  # the proxy says that the request may have taken effect
            response = JSONResponse(error_body(_LOST, "service_unavailable_error", "no_answer"), 503)
            response.headers[ID_HEADER.decode()] = id
            await response(scope, receive, send)

    async def _answered(self, scope: Scope, id: str, body: bytes | BodyStream, send: Send) -> None:
        kept = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        headers = [(name, value) for name, value in kept if name.lower() not in _OF_THIS_CONNECTION]
        if all(name.lower() != ID_HEADER.decode() for name, _ in headers):
            headers.append((ID_HEADER.decode(), id))
        query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
        path = scope["raw_path"].decode("latin-1") + query
        async with aclosing(self._connections.http(API, "POST", path, headers, body, "")) as items:
            start = await anext(items)
            assert isinstance(start, tuple)
            dropped = {*_OF_THIS_CONNECTION - {"content-length"}, REPLICA_HEADER, ID_HEADER.decode()}
            answered = [(name.encode(), value.encode("latin-1")) for name, value in start[1] if name not in dropped]
            answered.append((ID_HEADER, id.encode()))
            await send({"type": "http.response.start", "status": start[0], "headers": answered})
            async for part in items:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Arriving:
    """The body of a request, and the client that may leave at any time."""

    def __init__(self, scope: Scope, receive: Receive):
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"" if b"transfer-encoding" in headers else b"0")
        self._num_bytes = int(length) if length.isdigit() else None
        self._receive, self._is_whole = receive, asyncio.Event()

    async def body(self) -> bytes | BodyStream:
        """Return a short body, and of a long one a stream. Raises ClientDisconnect, as the stream does."""
        if self._num_bytes is None or self._num_bytes > COLLECTED_BYTES:
            return BodyStream(self._parts(), self._num_bytes)
        return b"".join([part async for part in self._parts()])

    async def rest(self) -> Message:
        """Receive what follows the body."""
        await self._is_whole.wait()
        return await self._receive()

    async def _parts(self) -> AsyncIterator[bytes]:
        while not self._is_whole.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            if not message.get("more_body"):
                self._is_whole.set()
            if part := message.get("body"):
                yield part
