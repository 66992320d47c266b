"""Advantages relative to a group of rollouts, and their weights.

The group baseline is that of GRPO (https://arxiv.org/abs/2402.03300, section 4.1.2, outcome supervision). Symbols: R_i
the reward of trajectory i of a group, A_i its advantage, w_i its weight, n_i its trained tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

EPSILON = 1e-6


def group_advantages(rewards: Sequence[float], scale_rewards: bool) -> list[float]:
    """A_i = R_i - mean(R), divided by (population standard deviation of R + 1e-6) when `scale_rewards`.

    If all rewards of a group are equal, its advantages are exactly 0, not rounding noise.
    """
    if not rewards or max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    deviations = [reward - mean for reward in rewards]
    if not scale_rewards:
        return deviations
    std_dev = math.sqrt(sum(deviation**2 for deviation in deviations) / len(deviations))
    return [deviation / (std_dev + EPSILON) for deviation in deviations]


def trajectory_weight(num_trained_tokens: int) -> float:
    """w_i = 1 / (n_i + 1e-6), n_i over all histories: all trajectories count equally, whatever their length."""
    return 1 / (num_trained_tokens + EPSILON)


def balance_and_normalize(
    advantages: Sequence[float], weights: Sequence[float], num_tokens: Sequence[int], balance: float
) -> tuple[list[float], list[float]] | None:
    """Return the final advantages and weights of a job's sequences, or None if nothing is left to train.

    Means are over the trained tokens of the job (`num_tokens` of each sequence):

        w_i <- w_i / mean(w)
        A_i <- A_i (1 - b) if A_i < 0 and b > 0;  A_i (1 + b) if A_i > 0 and b < 0
        A_i <- A_i / mean(|A| w)
    """
    total = sum(num_tokens)
    if total == 0:
        return None
    mean_weight = sum(w * n for w, n in zip(weights, num_tokens, strict=True)) / total
    weights = [weight / mean_weight for weight in weights]
    shrink_negative, shrink_positive = 1 - max(balance, 0.0), 1 + min(balance, 0.0)
    advantages = [a * (shrink_positive if a > 0 else shrink_negative) for a in advantages]
    scale = sum(abs(a) * w * n for a, w, n in zip(advantages, weights, num_tokens, strict=True)) / total
    if scale == 0:
        return None
    return [a / scale for a in advantages], weights
