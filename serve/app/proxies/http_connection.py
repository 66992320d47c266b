"""One connection to an HTTP server for many requests, one at a time, at a tenth of a general client's CPU time."""

from __future__ import annotations

import asyncio
import socket as socketlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass
from typing import cast

import httptools

Headers = list[tuple[str, str]]
HIGH_BYTES = 1 << 20
"""Of a response that isn't consumed, beyond which reading pauses."""
CONNECT_S = 5.0
CONTINUE = 100
_LIVENESS = (  # a server whose node is lost is noticed within half a minute
    (socketlib.SOL_SOCKET, socketlib.SO_KEEPALIVE, 1),
    (socketlib.IPPROTO_TCP, socketlib.TCP_KEEPIDLE, 10),
    (socketlib.IPPROTO_TCP, socketlib.TCP_KEEPINTVL, 5),
    (socketlib.IPPROTO_TCP, socketlib.TCP_KEEPCNT, 4),
    (socketlib.IPPROTO_TCP, socketlib.TCP_USER_TIMEOUT, 30_000),
)


@dataclass(frozen=True)
class BodyStream:
    """A body that is sent while it arrives, once the server wants it: a server that refuses the request reads none."""

    parts: AsyncIterator[bytes]
    num_bytes: int | None
    """None while it isn't known."""


class ConnectionLostError(ConnectionError):
    """The server closed the connection before the end of its response."""


class HttpConnection(asyncio.Protocol):
    """A connection that `open_connection` has opened.

        connection = await open_connection(host, port)
        async for item in connection.post(path, headers, body): ...

    While `is_reusable`, another request may follow.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._items: list[tuple[int, Headers] | bytes] = []
        self._parts: list[bytes] = []
        self._headers: Headers = []
        self._num_bytes = 0
        self._arrived: asyncio.Future[None] | None = None
        self._may_send, self._has_room = asyncio.Event(), asyncio.Event()
        self._has_room.set()
        self._is_busy = self._is_complete = self._keeps_alive = self._is_paused = False
        self._lost: Exception | None = None

    @property
    def is_reusable(self) -> bool:
        return self._lost is None and not self._is_busy and not self._transport.is_closing()

    def close(self) -> None:
        self._transport.abort()

    async def post(
        self, path: str, headers: Iterable[tuple[str, str]], body: bytes | BodyStream
    ) -> AsyncGenerator[tuple[int, Headers] | bytes]:
        """Yield status and headers, then the parts of the body. Closing the generator early closes the connection.

        Raises ConnectionLostError, and what a BodyStream raises.
        """
        self._is_busy, self._is_complete = True, False
        lines = [f"POST {path} HTTP/1.1", "Host: engine", *_length(body)]
        head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers), "", ""]).encode("latin-1")
        sending: asyncio.Task[None] | None = None
        if isinstance(body, BodyStream):
            self._may_send.clear()
            self._transport.write(head)
            sending = asyncio.create_task(self._send(body))
            sending.add_done_callback(self._sent)
        else:
            self._transport.write(head + body if len(body) < HIGH_BYTES else head)
            if len(body) >= HIGH_BYTES:
                self._transport.write(body)
        try:
            while True:
                while self._items:
                    items, self._items = self._items, []
                    self._num_bytes = 0
                    if self._is_paused:
                        self._is_paused = False
                        self._transport.resume_reading()
                    for item in items:
                        yield item
                if self._is_complete:
                    self._is_busy = not (self._keeps_alive and (sending is None or sending.done()))
                    return
                if self._lost is not None:
                    raise ConnectionLostError("The engine closed the connection.") from self._lost
                if sending is not None and sending.done():
                    sending.result()
                self._arrived = asyncio.get_running_loop().create_future()
                await self._arrived
        finally:
            self._arrived = None
            if sending is not None:
                sending.cancel()
            if self._is_busy:
                self.close()

    def _sent(self, sending: asyncio.Task[None]) -> None:
        if not sending.cancelled():
            sending.exception()  # seen: an answer that came before it counts more
        self._wake()

    async def _send(self, body: BodyStream) -> None:
        """Send the parts once the server asks for them, not faster than it takes them."""
        await self._may_send.wait()
        async for part in body.parts:
            self._transport.write(part if body.num_bytes is not None else b"%x\r\n%b\r\n" % (len(part), part))
            await self._has_room.wait()
        if body.num_bytes is None:
            self._transport.write(b"0\r\n\r\n")

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's isn't a subclass
        socket: socketlib.socket = transport.get_extra_info("socket")
        for level, option, value in _LIVENESS:
            socket.setsockopt(level, option, value)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lost = error
            self._transport.abort()
        if self._parts:
            part = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts.clear()
            self._items.append(part)
            self._num_bytes += len(part)
            if self._num_bytes > HIGH_BYTES and not self._is_paused:
                self._is_paused = True
                self._transport.pause_reading()
        self._wake()

    def pause_writing(self) -> None:
        self._has_room.clear()

    def resume_writing(self) -> None:
        self._has_room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._lost or exc or ConnectionResetError("closed")
        self._wake()

    # httptools' callbacks

    def on_message_begin(self) -> None:
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        if self._parser.get_status_code() == CONTINUE:
            self._may_send.set()
        else:
            self._items.append((self._parser.get_status_code(), self._headers))

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() != CONTINUE:
            self._is_complete, self._keeps_alive = True, self._parser.should_keep_alive()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)


def _length(body: bytes | BodyStream) -> list[str]:
    """Return the header lines that say how the body is sent."""
    if isinstance(body, bytes):
        return [f"Content-Length: {len(body)}"]
    known = "Transfer-Encoding: chunked" if body.num_bytes is None else f"Content-Length: {body.num_bytes}"
    return [known, "Expect: 100-continue"]


async def open_connection(host: str, port: int) -> HttpConnection:
    """Raises OSError, also TimeoutError."""
    async with asyncio.timeout(CONNECT_S):
        _, connection = await asyncio.get_running_loop().create_connection(HttpConnection, host, port)
    return connection
