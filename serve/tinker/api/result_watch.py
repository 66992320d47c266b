"""Waits of many requests for results of calls, with one look at the store for all of them."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.concurrency import run_in_threadpool

from tandem.serve.errors import NoAnswerError
from tandem.serve.store.database import Database
from tandem.serve.tinker.store.progress import applied_seqs

CHANGE_POLL_S = 0.003
QUERY_POLL_S = 0.02
"""How often a store is queried that doesn't show its changes otherwise."""


class ResultWatch:
    """Wakes requests whose call has ended. Belongs to one event loop.

    A call may end a few milliseconds after another, and hundreds of requests may wait, so one task looks for all.
    """

    def __init__(self, database: Database):
        self._database = database
        self._waiting: dict[asyncio.Future[None], tuple[str, int]] = {}
        self._has_joined = False  # a request whose call may have ended before it waited
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, run_id: str, seq: int, timeout_s: float) -> None:
        """Return when the call has ended in its turn, or after the timeout."""
        ended = asyncio.get_running_loop().create_future()
        self._waiting[ended], self._has_joined = (run_id, seq), True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            await asyncio.wait([ended], timeout=timeout_s)
        finally:
            del self._waiting[ended]

    async def _look(self) -> None:
        seen = None
        while self._waiting:
            mark = self._database.change_mark()
            if mark is None or mark != seen or self._has_joined:
                seen, self._has_joined = mark, False
                with suppress(NoAnswerError):  # a request that looks itself then reports it
                    await self._wake()
            await asyncio.sleep(QUERY_POLL_S if mark is None else CHANGE_POLL_S)

    async def _wake(self) -> None:
        runs = {run_id for run_id, _ in self._waiting.values()}
        if self._database.is_local:
            applied = applied_seqs(self._database, runs)
        else:
            applied = await run_in_threadpool(applied_seqs, self._database, runs)
        for ended, (run_id, seq) in self._waiting.items():
            if applied.get(run_id, 0) >= seq and not ended.done():
                ended.set_result(None)
