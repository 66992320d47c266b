"""Learner states kept in memory, because with several models in turn each is needed again soon."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tandem.rl.checkpoints import LearnerState


@dataclass(frozen=True)
class KeptState:
    """The state of a version, and the version's logprobs of the probe where they are known."""

    state: LearnerState
    probe: list[float]


class KeptStates:
    """States by the digest of their checkpoint, the most recently kept ones that fit in `max_bytes`.

    Of these, the most recent ones that fit in `device_bytes` stay on the learner's device, the others are moved to the
    main memory. On a CPU that is the same memory.
    """

    def __init__(self, max_bytes: int, device_bytes: int = 0):
        self._max_bytes, self._device_bytes = max_bytes, device_bytes
        self._states: OrderedDict[str, KeptState] = OrderedDict()

    def put(self, digest: str, state: LearnerState, probe: list[float]) -> None:
        self._states[digest] = KeptState(state, probe)
        self._states.move_to_end(digest)
        total = 0
        for name in reversed(list(self._states)):
            kept = self._states[name]
            total += _num_bytes(kept.state)
            if total > self._max_bytes:
                del self._states[name]
            elif total > self._device_bytes:
                self._states[name] = replace(kept, state=in_main_memory(kept.state))

    def take(self, digest: str) -> KeptState | None:
        """Remove and return the state; None if it isn't here."""
        return self._states.pop(digest, None)


def _num_bytes(state: LearnerState) -> int:
    tensors = (*state.adapter.values(), *state.optimizer.values())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def in_main_memory(state: LearnerState) -> LearnerState:
    """Return the state with every tensor on the CPU."""
    return replace(
        state,
        adapter={name: tensor.cpu() for name, tensor in state.adapter.items()},
        optimizer={name: tensor.cpu() for name, tensor in state.optimizer.items()},
    )
