"""The objective of a gradient step: importance ratios, advantage adjustments and the loss, in order."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from tandem.rl.config import CrossEntropy, Dpo, LossConfig, Objective
from tandem.rl.losses.cispo import cispo_token_losses
from tandem.rl.losses.cross_entropy import cross_entropy
from tandem.rl.losses.dpo import dpo
from tandem.rl.losses.importance import (
    cap_and_mask,
    importance_ratio,
    is_within_clip_range,
    old_logprobs_or_policy,
    truncated_importance_weight,
)
from tandem.rl.losses.inputs import LossInputs
from tandem.rl.losses.kl import kl_adjusted_advantages, token_kl
from tandem.rl.losses.ppo import ppo_token_losses
from tandem.rl.losses.terms import LossTerms

# Added to every token count that divides; the reference numbers (openpipe-art 0.5.18) contain it.
TOKEN_COUNT_EPSILON = 1e-6


def loss_terms(inputs: LossInputs, objective: Objective, of_step: Tensor | None = None) -> LossTerms:
    """Return the summed loss of one packed sequence under any objective.

    `of_step` is what the objective needs of the whole gradient step: see `kl_mean` of `policy_loss`, and `sums` of
    `dpo`.
    """
    match objective:
        case LossConfig():
            return policy_loss(inputs, objective, of_step)
        case CrossEntropy():
            return cross_entropy(inputs)
        case Dpo():
            assert of_step is not None, "the learner sums up the pairs of a step first"
            return dpo(inputs, objective, of_step)


def policy_loss(inputs: LossInputs, config: LossConfig, kl_mean: Tensor | None = None) -> LossTerms:
    """Return the summed loss of one packed sequence, differentiable in `inputs.policy_logprobs`.

    In order: d = log pi_theta - log pi_old (0 where pi_old is unknown); the ratio at its level, capped and masked;
    A -= kimi_k2_tau * d, the gradient of the regulariser (tau / 2) d^2 of policy mirror descent (Kimi k1.5, 2025,
    arXiv 2501.12599, section 2.3.2; the same in Kimi K2), always at token level; the KL adjustment of A; PPO or
    CISPO; the truncated importance weight; sum of L_t w_t. A and d are constants for the gradient.

    `kl_mean` is the mean KL of the whole gradient step (scalar); None: this sequence is the whole step.
    """
    trained = inputs.trained()
    old_logprobs = old_logprobs_or_policy(trained)
    log_ratio = trained.policy_logprobs - old_logprobs
    raw_ratio = importance_ratio(log_ratio, trained.completion_ids, config.importance_sampling_level)
    ratio = cap_and_mask(raw_ratio, config)

    advantages = trained.advantages
    if config.kimi_k2_tau is not None:
        advantages = advantages - config.kimi_k2_tau * log_ratio.detach()
    kl = token_kl(trained, old_logprobs, config)
    if kl is not None:
        mean = mean_over_tokens(kl.sum(), kl.numel()) if kl_mean is None else kl_mean
        advantages = kl_adjusted_advantages(advantages, kl, mean, config)

    if config.loss_fn == "ppo":
        losses = ppo_token_losses(ratio, advantages, config)
    else:
        losses = cispo_token_losses(trained.policy_logprobs, ratio, advantages, config)
    if config.truncated_importance_sampling is not None:
        limit = config.truncated_importance_sampling
        losses = losses * truncated_importance_weight(trained, old_logprobs, ratio, limit)

    return LossTerms(
        loss_sum=(losses * trained.weights).sum(),
        num_tokens=losses.numel(),
        ratio_sum=raw_ratio.detach().sum(),
        num_clipped=(~is_within_clip_range(raw_ratio.detach(), config)).sum(),
        kl_sum=None if kl is None else kl.sum(),
    )


def kl_sum(inputs: LossInputs, config: LossConfig) -> Tensor:
    """Return the sum of token KLs of one packed sequence, for the mean of the step."""
    trained = inputs.trained()
    kl = token_kl(trained, old_logprobs_or_policy(trained), config)
    return torch.zeros((), device=inputs.policy_logprobs.device) if kl is None else kl.sum()


@overload
def mean_over_tokens(total: Tensor, num_tokens: Tensor | float) -> Tensor: ...
@overload
def mean_over_tokens(total: float, num_tokens: float) -> float: ...
def mean_over_tokens(total: Tensor | float, num_tokens: Tensor | float) -> Tensor | float:
    """Return total / (num_tokens + 1e-6)."""
    return total / (num_tokens + TOKEN_COUNT_EPSILON)
