"""Learner states kept in memory, because with several models in turn each is needed again soon."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tandem.rl.checkpoints import LearnerState


class KeptStates:
    """States by the digest of their checkpoint, the most recently kept ones that fit in `max_bytes`."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._states: OrderedDict[str, LearnerState] = OrderedDict()

    def put(self, digest: str, state: LearnerState) -> None:
        self._states[digest] = state
        self._states.move_to_end(digest)
        while self._states and sum(map(_num_bytes, self._states.values())) > self._max_bytes:
            self._states.popitem(last=False)

    def take(self, digest: str) -> LearnerState | None:
        """Remove and return the state; None if it isn't here."""
        return self._states.pop(digest, None)


def _num_bytes(state: LearnerState) -> int:
    tensors = (*state.adapter.values(), *state.optimizer.values())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
