"""How well the policy's probabilities agree with those it was sampled with: a diagnosis, not part of any loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tandem.rl.losses.inputs import LossInputs, known_or_nan, shift_left
from tandem.rl.packing import PackedSequence


def fresh_differences(packed: PackedSequence, inputs: LossInputs) -> Tensor:
    """|log pi_theta - log pi_sampling| of the F trained tokens that this very policy sampled, float64 [F].

    With nothing lost between sampler and learner they would be 0. Empty where the row's `is_fresh` isn't set.
    """
    policy = inputs.policy_logprobs.detach().double()
    if packed.is_fresh is None:
        return policy.new_empty(0)
    sampling = known_or_nan(inputs.sampling_logprobs)
    fresh = shift_left(packed.is_fresh, False) & inputs.loss_mask & ~sampling.isnan()
    return (policy[fresh] - sampling[fresh].double()).abs()


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
