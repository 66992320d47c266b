"""The policy versions that an engine holds: each is loaded once for all its users, and none is dropped while in use."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tandem.cluster.errors import AdapterUnavailableError, EngineDeadError
from tandem.cluster.metrics.recording import count


@dataclass
class _Entry:
    loading: asyncio.Task[None]
    users: int = 0


class AdapterPool:
    """Loads adapters on demand and unloads the least recently used idle ones beyond `capacity`.

        async with pool.use(digest):
            ...  # the adapter stays loaded until the block ends

    The pool exceeds `capacity` while more adapters than that are in use. After a failed load, all users that waited for
    it get the error, and the next request loads again.
    """

    def __init__(
        self,
        load: Callable[[str], Awaitable[None]],
        unload: Callable[[str], Awaitable[None]],
        capacity: int,
        base_model: str = "",
    ):
        """`base_model` labels the metrics."""
        self._load, self._unload, self._capacity = load, unload, capacity
        self._base_model = base_model
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # the least recently used first
        self._unloading = asyncio.Lock()

    @property
    def digests(self) -> list[str]:
        """The loaded adapters, the least recently used first."""
        return [digest for digest, entry in self._entries.items() if entry.loading.done()]

    @asynccontextmanager
    async def use(self, digest: str) -> AsyncIterator[None]:
        """Keep the adapter loaded inside the block. Raises AdapterUnavailableError or EngineDeadError."""
        entry = self._entries.get(digest)
        if entry is None:
            entry = self._entries[digest] = _Entry(asyncio.create_task(self._load_new(digest)))
        self._entries.move_to_end(digest)
        entry.users += 1
        try:
            # Shielded: a client that disconnects must not cancel a load that others wait for.
            await asyncio.shield(entry.loading)
            yield
        finally:
            entry.users -= 1

    async def _load_new(self, digest: str) -> None:
        try:
            await self._make_room()
            await self._load(digest)
            count("tandem_engine_adapter_loads_total", base_model=self._base_model, outcome="loaded")
        except Exception as error:
            del self._entries[digest]
            count("tandem_engine_adapter_loads_total", base_model=self._base_model, outcome="failed")
            if isinstance(error, (AdapterUnavailableError, EngineDeadError)):
                raise
            raise AdapterUnavailableError(f"Policy version {digest} can't be loaded: {error}") from error

    async def _make_room(self) -> None:
        # One at a time, so that an adapter is loaded again only after its old copy is completely unloaded.
        async with self._unloading:
            while len(self._entries) > self._capacity and (idle := self._least_recently_used_idle()):
                del self._entries[idle]
                await self._unload(idle)
                count("tandem_engine_adapter_evictions_total", base_model=self._base_model)

    def _least_recently_used_idle(self) -> str | None:
        return next((d for d, e in self._entries.items() if e.users == 0 and e.loading.done()), None)
