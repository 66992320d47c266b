"""Work on behalf of a client that may disconnect before it is done."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from tandem.cluster.telemetry.context import in_this_context

T = TypeVar("T")

MAX_ACCEPTED_AT_ONCE = 8
# Checking a large payload takes long. In the thread pool that all routes share, it would block other requests.
_ACCEPTING = ThreadPoolExecutor(MAX_ACCEPTED_AT_ONCE, "accepting")
# An import waits for learners and engines, and must not keep jobs waiting.
IMPORTING = ThreadPoolExecutor(2, "importing")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. If the client disconnects first, cancel it and raise ClientDisconnect."""
    working = asyncio.create_task(work)
    disconnecting = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait((working, disconnecting), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, disconnecting):
            task.cancel()
        await asyncio.gather(working, disconnecting, return_exceptions=True)


async def to_completion(
    request: Request, work: Callable[[Callable[[], None]], T], pool: ThreadPoolExecutor = _ACCEPTING
) -> T:
    """Return the result of `work`, which runs in a thread to its end even if the request is cancelled.

    `work` gets a function that raises ClientDisconnect if the client has disconnected, to be called before the work
    has effects that the client would never learn of.
    """
    loop, cancelled = asyncio.get_running_loop(), threading.Event()

    def check_connected() -> None:
        if cancelled.is_set() or asyncio.run_coroutine_threadsafe(request.is_disconnected(), loop).result(timeout=60):
            raise ClientDisconnect

    try:
        return await loop.run_in_executor(pool, in_this_context(partial(work, check_connected)))
    except asyncio.CancelledError:
        cancelled.set()
        raise


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
