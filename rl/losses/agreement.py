"""Agreement of the policy's probabilities with those of the sampler: a diagnostic, not part of any loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tandem.rl.advantages import ROUNDING
from tandem.rl.losses.inputs import LossInputs, known_or_nan


def fresh_differences(inputs: LossInputs) -> Tensor:
    """|log pi_theta - log pi_sampling| of the F trained tokens that this very policy sampled, float64 [F].

    They are 0 if sampler and learner compute alike. Empty if `is_fresh` isn't set.
    """
    policy = inputs.policy_logprobs.detach().double()
    if inputs.is_fresh is None:
        return policy.new_empty(0)
    sampling = known_or_nan(inputs.sampling_logprobs)
    fresh = inputs.is_fresh & inputs.loss_mask & ~sampling.isnan()
    return (policy[fresh] - sampling[fresh].double()).abs()


def probability_moments(inputs: LossInputs) -> Tensor:
    """Return (n, sum x, sum y, sum x^2, sum y^2, sum xy), float64 [6], of known x = pi_old and y = pi_theta.

    The moments of sequences and learners add up.
    """
    old = inputs.behaviour_logprobs()
    policy = inputs.policy_logprobs.detach()
    known = ~(old.isnan() | policy.isnan())
    x, y = torch.exp(old[known].double()), torch.exp(policy[known].double())
    return torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y]).sum(dim=1)


def probability_correlation(moments: Tensor) -> float | None:
    """Return Pearson's correlation from moments [6]; None if undefined (fewer than two values, or no variance)."""
    sums: list[float] = moments.tolist()
    n, x, y, xx, yy, xy = sums
    if n < 2:
        return None
    variance_x, variance_y = xx - x * x / n, yy - y * y / n
    if variance_x <= ROUNDING * xx or variance_y <= ROUNDING * yy:
        return None
    return (xy - x * y / n) / math.sqrt(variance_x * variance_y)
