"""Proximal policy optimisation's clipped surrogate."""

from __future__ import annotations

import torch
from torch import Tensor

from tandem.rl.config import LossConfig
from tandem.rl.losses.importance import clip


def ppo_token_losses(ratio: Tensor, advantages: Tensor, config: LossConfig) -> Tensor:
    """L_t = -min(r_t A_t, clip(r_t, 1 - epsilon, 1 + epsilon_high) A_t), all [N].

    Schulman et al. 2017, Proximal Policy Optimization Algorithms (arXiv 1707.06347), eq. 7, with the sign of a loss.
    The gradient flows through `ratio` (r_t), which may be of any importance-sampling level.

    Departures: the upper bound has its own epsilon (as in DAPO, Yu et al. 2025, arXiv 2503.14476, "clip-higher"),
    equal to epsilon unless configured; tokens are summed here, the learner divides by the count of the whole step.
    """
    return -torch.minimum(ratio * advantages, clip(ratio, config) * advantages)
