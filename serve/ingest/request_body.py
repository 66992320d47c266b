"""Receives request bodies: as they arrive, unpacked, and no further than a limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from tandem.serve.errors import StalledError, TooLargeError
from tandem.serve.ingest.content_coding import Unpacker

BATCH_BYTES = 256 << 10
"""What is collected before a thread works on it; a part of its own for each packet would keep the event loop busy."""
MAX_RECEIVE_S = 3600.0
"""However steadily a body trickles in, it is there after this time."""


@dataclass(frozen=True)
class BodyLimit:
    max_bytes: int
    """Of the unpacked body."""
    setting: str
    """Where the limit is set."""

    def check(self, num_bytes: int) -> None:
        """Raises TooLargeError."""
        if num_bytes > self.max_bytes:
            raise TooLargeError(
                f"The body is larger than the {self.max_bytes} bytes that this service takes here (unpacked). "
                f"Send less at a time, or raise {self.setting} in the service's configuration.",
                "body_too_large",
            )


async def receive(request: Request, limit: BodyLimit, silence_s: float, write: Callable[[bytes], object]) -> None:
    """Gives the unpacked body to `write`, piece by piece and in other threads, until it ends or is refused.

    Raises TooLargeError (before anything is read if the body's declared length says so), StalledError after `silence_s`
    without a byte, UnsupportedCodingError, InvalidRequestError when it can't be unpacked, ClientDisconnect, and what
    `write` raises.
    """
    unpacker = Unpacker(request.headers.get("content-encoding", ""))
    declared = request.headers.get("content-length", "")
    limit.check(int(declared) if declared.isdecimal() and declared.isascii() else 0)
    num_bytes = 0

    def unpack(batch: bytes) -> None:
        nonlocal num_bytes
        for piece in unpacker.feed(batch):
            num_bytes += len(piece)
            limit.check(num_bytes)
            write(piece)

    async for batch in _batches(request, silence_s):
        await run_in_threadpool(unpack, batch)
    unpacker.finish()


async def _batches(request: Request, silence_s: float) -> AsyncIterator[bytes]:
    stream, batch = request.stream(), bytearray()
    clock = asyncio.get_running_loop().time
    end = clock() + MAX_RECEIVE_S
    while True:
        try:
            async with asyncio.timeout_at(min(clock() + silence_s, end)):
                part = await anext(stream, None)
        except TimeoutError:
            raise StalledError(
                f"The request didn't arrive: nothing came for {silence_s:g} s (deadlines.receive_s), or it wasn't "
                f"complete after {MAX_RECEIVE_S:g} s. Send it again.",
                "request_stalled",
            ) from None
        batch += part or b""
        if batch and (part is None or len(batch) >= BATCH_BYTES):
            yield bytes(batch)
            batch.clear()
        if part is None:
            return
