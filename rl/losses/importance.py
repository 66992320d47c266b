"""Importance ratios between the policy in training and the policy that sampled, over N trained positions.

    d_t = log pi_theta(t) - log pi_old(t)          log_ratio [N]
    r_t = exp(d_t)                                 token level
    q_c = exp(sum of d_t over completion c / n_c)  sequence level: one ratio per completion, at each of its n_c tokens

The sequence-level ratio is that of GSPO (Zheng et al. 2025, Group Sequence Policy Optimization, arXiv 2507.18071,
eq. 7). Departures: n_c counts the trained tokens of all turns of a trajectory, not of one response, and 1e-8 is
added to it; the two mixed levels, (r + q) / 2 and sqrt(r q), are not in the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tandem.rl.config import LossConfig
from tandem.rl.losses.inputs import LossInputs, known_or_nan

COUNT_EPSILON = 1e-8


def old_logprobs_or_policy(trained: LossInputs) -> Tensor:
    """Return log pi_old [N]; where unknown, the policy's own detached logprob, which makes the ratio 1."""
    known = trained.behaviour_logprobs()
    return torch.where(known.isnan(), trained.policy_logprobs.detach(), known)


def importance_ratio(log_ratio: Tensor, completion_ids: Tensor, level: str) -> Tensor:
    """Return the ratio [N] at `level`: token, sequence, average or geometric_average; differentiable."""
    if level == "token":
        return torch.exp(log_ratio)
    mean_log_ratio = completion_mean(log_ratio, completion_ids)
    if level == "sequence":
        return torch.exp(mean_log_ratio)
    if level == "average":
        return (torch.exp(log_ratio) + torch.exp(mean_log_ratio)) / 2
    assert level == "geometric_average", level
    return torch.exp((log_ratio + mean_log_ratio) / 2)


def completion_mean(values: Tensor, completion_ids: Tensor) -> Tensor:
    """Return the mean of `values` [N] over each completion, repeated for its tokens [N]. Ids are any integers."""
    unique_ids, completion = torch.unique(completion_ids, return_inverse=True)
    counts = torch.bincount(completion, minlength=unique_ids.numel()).to(values.dtype)
    sums = values.new_zeros(unique_ids.numel()).index_add(0, completion, values)
    return (sums / (counts + COUNT_EPSILON))[completion]


def is_within_clip_range(ratio: Tensor, config: LossConfig) -> Tensor:
    """Return 1 - epsilon < ratio < 1 + epsilon_high, bool [N]."""
    return (ratio > 1 - config.epsilon) & (ratio < 1 + config.epsilon_high)


def clip(ratio: Tensor, config: LossConfig) -> Tensor:
    """Limit the ratio to [1 - epsilon, 1 + epsilon_high]."""
    return torch.clamp(ratio, 1 - config.epsilon, 1 + config.epsilon_high)


def cap_and_mask(ratio: Tensor, config: LossConfig) -> Tensor:
    """Apply `max_negative_advantage_importance_sampling_weight`, then `mask_prob_ratio`, where configured. [N]

    The cap min(r, x) applies to every token, whatever the sign of its advantage: the name is historical, and the
    behaviour is that of openpipe-art 0.5.18. The mask sets a ratio outside the clip range to 0; a loss that clips
    afterwards raises it to 1 - epsilon again, so with CISPO it removes a token only if epsilon >= 1.
    """
    cap = config.max_negative_advantage_importance_sampling_weight
    if cap is not None:
        ratio = torch.clamp(ratio, max=cap)
    if config.mask_prob_ratio:
        ratio = torch.where(is_within_clip_range(ratio, config), ratio, 0.0)
    return ratio


def truncated_importance_weight(trained: LossInputs, old_logprobs: Tensor, ratio: Tensor, limit: float) -> Tensor:
    """Return min(v, limit) [N], detached: the correction for an engine whose logprobs differ from the learner's.

    v = pi_old(t) / pi_sampling(t) where pi_old was recomputed by the learner (Yao et al. 2025, "Your Efficient RL
    Framework Secretly Brings You Off-Policy RL Training": truncated importance sampling). A token without a
    sampling logprob gets v = 1. Departure: if nothing was recomputed, pi_old is pi_sampling, and v is the policy ratio
    itself, as used in the loss (after level, cap and mask).
    """
    if trained.old_logprobs is None:
        weight = ratio
    else:
        sampling = known_or_nan(trained.sampling_logprobs)
        weight = torch.exp(torch.where(sampling.isnan(), 0.0, old_logprobs - sampling))
    return torch.clamp(weight, max=limit).detach()
