"""Waits of many requests for new versions, with one look at the store for all of them."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.concurrency import run_in_threadpool

from tandem.serve.errors import NoAnswerError
from tandem.serve.store.store import Store

CHANGE_POLL_S = 0.02
VERSION_POLL_S = 0.2
"""How often a store is queried that doesn't show its changes otherwise."""


class VersionWatch:
    """Wakes requests whose model has a newer version. Belongs to one event loop.

    While jobs run, the store changes many times a second, and a query by each waiting request at each change would cost
    more than training small jobs.
    """

    def __init__(self, store: Store):
        self._store = store
        self._waiting: dict[asyncio.Future[None], tuple[str, int]] = {}
        self._has_joined = False  # a request whose version may have appeared before it waited
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, model_id: str, after: int, timeout_s: float) -> None:
        """Return when the model has a version newer than step `after`, or after the timeout."""
        newer = asyncio.get_running_loop().create_future()
        self._waiting[newer], self._has_joined = (model_id, after), True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            await asyncio.wait([newer], timeout=timeout_s)
        finally:
            del self._waiting[newer]

    async def _look(self) -> None:
        seen = None
        while self._waiting:
            mark = self._store.database.change_mark()
            if mark is None or mark != seen or self._has_joined:
                seen, self._has_joined = mark, False
                with suppress(NoAnswerError):  # a request that looks itself then reports it
                    await self._wake()
            await asyncio.sleep(VERSION_POLL_S if mark is None else CHANGE_POLL_S)

    async def _wake(self) -> None:
        models = {model_id for model_id, _ in self._waiting.values()}
        newest = await run_in_threadpool(self._store.versions.newest_steps, models)
        for newer, (model_id, after) in self._waiting.items():
            if newest.get(model_id, 0) > after and not newer.done():
                newer.set_result(None)
