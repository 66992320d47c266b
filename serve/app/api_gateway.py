"""Passes requests of the Tinker API from a proxy to a replica of the API, over connections that stay open."""

from __future__ import annotations

from contextlib import aclosing

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem.cluster.engine.requests.headers import REPLICA_HEADER, TOKEN_HEADER
from tandem.cluster.errors import EngineDeadError
from tandem.serve.api.connection import while_connected
from tandem.serve.api.error_body import error_body
from tandem.serve.api.request_ids import ID_HEADER, chosen_id
from tandem.serve.app import sdk_directory
from tandem.serve.app.engine_connections import EngineConnections
from tandem.serve.app.sdk_directory import API
from tandem.serve.tinker.api.errors import PREFIX

MAX_BYTES = 64 << 20
"""Larger bodies, which are collected here, take Serve's own way."""
_OF_THIS_CONNECTION = {
    *("host", "connection", "keep-alive", "content-length", "transfer-encoding", "expect"),
    TOKEN_HEADER,
}
_LOST = "The process that handled this request ended before it had answered. Send the request again."


class SdkGateway:
    """Middleware of a proxy: passes POSTs of the Tinker API on, and leaves all else to the application behind it."""

    def __init__(self, app: ASGIApp, connections: EngineConnections | None = None):
        self._app = app
        self._connections = connections or EngineConnections(sdk_directory.addresses, sdk_directory.withdraw)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith(PREFIX):
            length = dict(scope["headers"]).get(b"content-length", b"")
            if length.isdigit() and int(length) <= MAX_BYTES and await self._connections.exist():
                await self._pass_on(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, id = Request(scope, receive), chosen_id(scope["headers"])
        has_started = False

        async def send_marked(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            body = await request.body()
            await while_connected(request, self._answered(scope, id, body, send_marked))
        except ClientDisconnect:
            return
        except EngineDeadError:
            if has_started:
                raise  # half of the answer is sent; only a closed connection can tell that it failed
            response = JSONResponse(error_body(_LOST, "service_unavailable_error", "no_answer"), 503)
            response.headers[ID_HEADER.decode()] = id
            await response(scope, receive, send)

    async def _answered(self, scope: Scope, id: str, body: bytes, send: Send) -> None:
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
