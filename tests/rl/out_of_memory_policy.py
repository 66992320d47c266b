"""A policy whose device is small: torch really fails to allocate memory for a row that is too long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from small_models import randomise_adapter
from torch import Tensor

from tandem.rl.learner import Learner
from tandem.rl.packing import PackedSequence
from tandem.rl.policy import Policy
from tandem.rl.settings import OptimizerSettings


class SmallDevice(Policy):
    """Has room for rows of `room` tokens with the gradient, of twice as many without. Counts failures."""

    room = 1 << 20
    room_chunk_size = 1 << 20
    num_failures = 0

    def logprobs(self, packed: PackedSequence, chunk_size: int = 1024, *args: Any, **kwargs: Any) -> Any:
        found = super().logprobs(packed, chunk_size, *args, **kwargs)  # the graph exists when the memory runs out
        self._allocate(packed, chunk_size)
        return found

    def target_logprobs(
        self, packed: PackedSequence, places: Tensor, targets: Tensor, counted: Tensor, chunk_size: int = 1024
    ) -> Tensor:
        found = super().target_logprobs(packed, places, targets, counted, chunk_size)
        self._allocate(packed, chunk_size)
        return found

    def _allocate(self, packed: PackedSequence, chunk_size: int) -> None:
        room = self.room if torch.is_grad_enabled() else 2 * self.room
        if packed.num_tokens > room or chunk_size > self.room_chunk_size:
            self.num_failures += 1
            torch.empty(1 << 60, dtype=torch.uint8)


def new_learner(path: Path) -> Learner:
    policy = SmallDevice.load(path, "cpu")
    randomise_adapter(policy)
    return Learner(policy, OptimizerSettings(max_grad_norm=1e9, eps=1e-3))  # smooth, also where a gradient is nearly 0


def fail_above(learner: Learner, room: int, chunk_size: int = 1 << 20) -> SmallDevice:
    policy = learner.policy
    assert isinstance(policy, SmallDevice)
    policy.room, policy.room_chunk_size, policy.num_failures = room, chunk_size, 0
    return policy
