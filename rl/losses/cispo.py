"""Clipped importance-sampling-weight policy optimisation."""

from __future__ import annotations

from torch import Tensor

from tandem.rl.config import LossConfig
from tandem.rl.losses.importance import clip


def cispo_token_losses(policy_logprobs: Tensor, ratio: Tensor, advantages: Tensor, config: LossConfig) -> Tensor:
    """L_t = -sg(clip(r_t, 1 - epsilon, 1 + epsilon_high)) A_t log pi_theta(t), all [N]; sg stops the gradient.

    MiniMax-M1 (2025, arXiv 2506.13585), eq. 4 (objective) and 5 (clipped weight), with the sign of a loss.
    The gradient flows through `policy_logprobs` alone, so every token trains, however far its ratio r_t was clipped.

    Departures: r_t may be of any importance-sampling level; the defaults (epsilon 1, epsilon_high 4) leave it
    unbounded from below, as the paper does in practice; tokens are summed here, the learner divides by the count of
    the whole step.
    """
    return -clip(ratio.detach(), config) * advantages * policy_logprobs
