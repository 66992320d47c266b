"""One request to the engine, under a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from tandem.serve.api.services import Headers
from tandem.serve.errors import DeadlineError, UnavailableError


class EngineCall:
    """The engine's response: `stream` yields status and headers first, then chunks of the body.

    The creator must `close` the call, which aborts a generation that is still running. `deadline_s` is the time until
    the last chunk; after it, every method raises DeadlineError.
    """

    def __init__(self, stream: AsyncGenerator[tuple[int, Headers] | bytes], deadline_s: float):
        self._stream, self._deadline_s = stream, deadline_s
        self._deadline = asyncio.get_running_loop().time() + deadline_s

    async def start(self) -> tuple[int, Headers]:
        """Return status and headers."""
        start = await self._next()
        if not isinstance(start, tuple):
            raise UnavailableError("The engine returned no response. Send the request again.", "engine_unavailable")
        return start

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the body as it arrives."""
        while (chunk := await self._next()) is not None:
            assert isinstance(chunk, bytes)
            yield chunk

    async def content(self) -> bytes:
        """Return the whole body."""
        return b"".join([chunk async for chunk in self.chunks()])

    async def close(self) -> None:
        await self._stream.aclose()

    async def _next(self) -> tuple[int, Headers] | bytes | None:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await anext(self._stream, None)
        except TimeoutError:
            raise DeadlineError(
                f"The completion took longer than the limit of {self._deadline_s:g} s. "
                "Request fewer tokens, or raise deadlines.inference_s in the service's configuration.",
                "deadline_exceeded",
            ) from None
