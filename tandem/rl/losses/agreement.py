"""How well the policy's probabilities agree with those it was sampled with: a diagnosis, not part of any loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tandem.rl.losses.inputs import LossInputs


def probability_moments(inputs: LossInputs) -> Tensor:
    """Sums over the positions with known probabilities x = pi_old, y = pi_theta: (n, x, y, x^2, y^2, xy), float64 [6].

    Moments of several sequences and learners add up to those of all.
    """
    old = inputs.behaviour_logprobs()
    policy = inputs.policy_logprobs.detach()
    known = ~(old.isnan() | policy.isnan())
    x, y = torch.exp(old[known].double()), torch.exp(policy[known].double())
    return torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y]).sum(dim=1)


def probability_correlation(moments: Tensor) -> float | None:
    """Pearson's correlation from moments [6]; None where it is not defined (fewer than two values, or no spread)."""
    n, x, y, xx, yy, xy = moments.tolist()
    if n < 2:
        return None
    variance_x, variance_y = xx - x * x / n, yy - y * y / n
    if variance_x <= 0 or variance_y <= 0:
        return None
    return (xy - x * y / n) / math.sqrt(variance_x * variance_y)
