"""One request to the engine: under a deadline, and given up when its client hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from tandem.serve.api.services import Headers
from tandem.serve.errors import DeadlineError, UnavailableError

T = TypeVar("T")


class EngineCall:
    """The answer of the engine, of which `stream` gives status and headers first, then chunks of the body.

    Whoever makes one must `close` it: that ends the generation, unless it has ended. `deadline_s` counts from here to
    the last chunk; what exceeds it raises DeadlineError.
    """

    def __init__(self, stream: AsyncGenerator[tuple[int, Headers] | bytes], deadline_s: float):
        self._stream, self._deadline_s = stream, deadline_s
        self._deadline = asyncio.get_running_loop().time() + deadline_s

    async def start(self) -> tuple[int, Headers]:
        """Status and headers."""
        start = await self._next()
        if not isinstance(start, tuple):
            raise UnavailableError("The engine gave no answer. Send the request again.", "engine_unavailable")
        return start

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The body, as it comes."""
        while (chunk := await self._next()) is not None:
            assert isinstance(chunk, bytes)
            yield chunk

    async def content(self) -> bytes:
        """The whole body."""
        return b"".join([chunk async for chunk in self.chunks()])

    async def close(self) -> None:
        await self._stream.aclose()

    async def _next(self) -> tuple[int, Headers] | bytes | None:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await anext(self._stream, None)
        except TimeoutError:
            raise DeadlineError(
                f"The completion took longer than this service's limit of {self._deadline_s:g} s. "
                "Ask for fewer tokens, or raise deadlines.inference_s in its configuration.",
                "deadline_exceeded",
            ) from None


async def while_connected(request: Request, work: Coroutine[None, None, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up. Raises ClientDisconnect then."""
    working = asyncio.create_task(work)
    hanging_up = asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait((working, hanging_up), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, hanging_up):
            task.cancel()
        await asyncio.gather(working, hanging_up, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
