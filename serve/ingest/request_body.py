"""Receives request bodies piece by piece, decoded, up to a limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from tandem.serve.errors import StalledError, TooLargeError
from tandem.serve.ingest.content_coding import Unpacker

BATCH_BYTES = 256 << 10
"""Packets are collected to this size before a thread works on them, which keeps the event loop free."""
MAX_RECEIVE_S = 3600.0
"""The deadline for the whole body, however steadily it arrives."""


@dataclass(frozen=True)
class BodyLimit:
    max_bytes: int
    """Of the decoded body."""
    setting: str
    """The field of the configuration that sets the limit."""

    def check(self, num_bytes: int) -> None:
        """Raises TooLargeError."""
        if num_bytes > self.max_bytes:
            raise TooLargeError(
                f"The body is larger than {self.max_bytes} bytes, the limit of this route (uncompressed). "
                f"Send less in one request, or raise {self.setting} in the service's configuration.",
                "body_too_large",
            )


async def receive(
    request: Request,
    limit: BodyLimit,
    silence_s: float,
    write: Callable[[bytes], object],
    may_block: bool = True,
) -> None:
    """Pass the decoded body to `write`, piece by piece, in worker threads: all pieces if it may block, else those that
    are decoded.

    Raises TooLargeError (before reading anything if the declared length exceeds the limit), StalledError after
    `silence_s` without a byte, UnsupportedCodingError, InvalidRequestError for a body that can't be decoded,
    ClientDisconnect, and any error of `write`.
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
        if may_block or not unpacker.is_identity:
            await run_in_threadpool(unpack, batch)
        else:
            unpack(batch)
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
                f"The body didn't arrive in time: no data for {silence_s:g} s (deadlines.receive_s), or incomplete "
                f"after {MAX_RECEIVE_S:g} s. Send the request again.",
                "request_stalled",
            ) from None
        batch += part or b""
        if batch and (part is None or len(batch) >= BATCH_BYTES):
            yield bytes(batch)
            batch.clear()
        if part is None:
            return
