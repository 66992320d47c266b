"""Advantages relative to a group of rollouts, and their weights.

The group baseline is that of GRPO (https://arxiv.org/abs/2402.03300, section 4.1.2, outcome supervision). Symbols: R_i
the reward of trajectory i of a group, A_i its advantage, w_i its weight, n_i its trained tokens.

Rewards are sums and means of other numbers, so those that mean the same may differ by rounding: 0.1 + 0.2 + 0.3 isn't
0.3 + 0.2 + 0.1. Advantages are relative, so such a difference would train at full strength. Differences that rounding
explains (`rounding_error`) count as none. They are relative to the rewards: 1e-12 and 2e-12 differ, 1e6 and 1e6 + 1e-9
don't.

All arithmetic is in float64 and scaled by powers of two, which is exact, so neither 1e-300 nor 1e300 is lost.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence
from statistics import fmean

EPSILON = 1e-6
ROUNDING = 2.0**-40
"""Rounding of float64, relative to the largest reward: 9e-13, what a sum of some thousand terms loses."""
ROUNDING_FLOAT32 = 2.0**-21
"""The same of float32: 5e-7, four units in the last place, as reward models on a GPU vary from call to call."""
NEGLIGIBLE = 2.0**-20
WHOLE_IN_FLOAT32 = 2.0**24
"""Smaller whole numbers are exact in float32."""


def rounding_error(rewards: Sequence[float]) -> float:
    """Return the largest difference between rewards of a group that rounding explains.

    Rewards that are all numbers of float32 were probably computed in it, unless they are whole.
    """
    size = _size(rewards)
    is_whole = size < WHOLE_IN_FLOAT32 and all(float(reward).is_integer() for reward in rewards)
    is_float32 = not is_whole and list(array("f", rewards)) == list(rewards)
    relative = ROUNDING_FLOAT32 if is_float32 else ROUNDING
    return max(size * relative, sys.float_info.min)  # smaller numbers have few digits


def have_spread(rewards: Sequence[float]) -> bool:
    """Return True if the rewards of a group differ by more than rounding."""
    if not rewards or max(rewards) == min(rewards):
        return False
    # Halves, because the difference of the largest numbers overflows.
    return max(rewards) / 2 - min(rewards) / 2 > rounding_error(rewards) / 2


def reward_std_dev(rewards: Sequence[float]) -> float:
    """Return the population standard deviation of a group's rewards, exactly 0 if they differ by rounding only."""
    if not have_spread(rewards):
        return 0.0
    exponent = _exponent(rewards)
    return math.ldexp(_root_mean_square(_deviations(rewards, exponent)), exponent)


def group_advantages(rewards: Sequence[float], scale_rewards: bool) -> list[float]:
    """A_i = R_i - mean(R), divided by (population standard deviation of R + 1e-6) when `scale_rewards`.

    If the rewards of a group differ by rounding only, its advantages are exactly 0, and so is the advantage of a
    reward that differs from the mean by rounding only, if it is negligible beside the others.
    """
    if not have_spread(rewards):
        return [0.0] * len(rewards)
    exponent = _exponent(rewards)
    noise = math.ldexp(rounding_error(rewards), -exponent)
    deviations = _deviations(rewards, exponent)
    noise = min(noise, NEGLIGIBLE * _size(deviations))  # so that the sum stays 0
    deviations = [0.0 if abs(deviation) <= noise else deviation for deviation in deviations]
    if not scale_rewards:
        return [math.ldexp(deviation, exponent) for deviation in deviations]
    std_dev = _root_mean_square(deviations)
    if exponent > 0:
        return [deviation / (std_dev + math.ldexp(EPSILON, -exponent)) for deviation in deviations]
    return [math.ldexp(d, exponent) / (math.ldexp(std_dev, exponent) + EPSILON) for d in deviations]


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
    exponent = _exponent(advantages)
    scaled = [math.ldexp(advantage, -exponent) for advantage in advantages]
    scaled = [a * (shrink_positive if a > 0 else shrink_negative) for a in scaled]
    scale = sum(abs(a) * w * n for a, w, n in zip(scaled, weights, num_tokens, strict=True)) / total
    if scale == 0:
        return None
    return [a / scale for a in scaled], weights


def _size(values: Sequence[float]) -> float:
    return max(map(abs, values), default=0.0)


def _exponent(values: Sequence[float]) -> int:
    """Return the power of two by which the values come to lie between -1 and 1."""
    return math.frexp(_size(values))[1]


def _deviations(rewards: Sequence[float], exponent: int) -> list[float]:
    """Return the deviations from the mean, in units of 2 ** exponent."""
    scaled = [math.ldexp(reward, -exponent) for reward in rewards]
    lowest = min(scaled)
    above = [reward - lowest for reward in scaled]  # exact where rewards are close to each other
    mean = fmean(above)
    return [reward - mean for reward in above]


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(fmean(value * value for value in values))
