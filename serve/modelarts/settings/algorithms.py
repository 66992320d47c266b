"""Built-in algorithms: reinforcement learning on recorded trajectory groups, by the service's own training jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Algorithm:
    """An algorithm as the API lists it."""

    model_id: int
    name: str
    loss_fn: Literal["cispo", "ppo"]
    usage: str


ALGORITHMS = {
    1: Algorithm(
        1,
        "RL on trajectory groups (CISPO)",
        "cispo",
        "Trains a LoRA policy on JSON Lines of trajectory groups with rewards, with the CISPO loss.",
    ),
    2: Algorithm(
        2,
        "RL on trajectory groups (PPO)",
        "ppo",
        "Trains a LoRA policy on JSON Lines of trajectory groups with rewards, with PPO's clipped loss.",
    ),
}
