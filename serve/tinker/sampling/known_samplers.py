"""The samplers that this process has met. They never change, so each is read from the store once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from tandem.serve.api.quick_reads import read_quickly
from tandem.serve.store.store import Store
from tandem.serve.tinker.store.samplers import Samplers

MAX_KNOWN = 4096


@dataclass(frozen=True)
class Sampler:
    """A sampling session, pinned to a checkpoint."""

    id: str
    base_model: str
    digest: str
    model_id: str
    """Empty for a base model."""
    step: int
    name: str
    """As the client named the model, for logs."""


class KnownSamplers:
    """Use it in one event loop."""

    def __init__(self, store: Store, samplers: Samplers):
        self._store, self._samplers = store, samplers
        self._known: OrderedDict[tuple[str, str], Sampler] = OrderedDict()  # the least recently used first

    async def get(self, entity: str, id: str) -> Sampler:
        """Return a sampler of an entity. Raises NotFoundError."""
        key = entity, id
        if (known := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            return known
        row = await read_quickly(self._store, self._samplers.get, entity, id)
        found = self._known[key] = Sampler(
            id, row.base_model, row.digest, row.model_id or "", row.step or 0, row.path or row.base_model
        )
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return found
