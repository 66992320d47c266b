"""The learning rate of a gradient step: the base rate, scaled by the step's size and the trend of rewards."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, linear_regression
from typing import TYPE_CHECKING

from tandem.rl.advantages import ROUNDING
from tandem.rl.config import TrainingConfig

if TYPE_CHECKING:
    from tandem.rl.packing import PackedSequence


def step_learning_rate(
    base_rate: float,
    config: TrainingConfig,
    sequences: Sequence[PackedSequence],
    reward_std_devs: Sequence[float],
) -> float:
    """Return the rate of one gradient step.

    Args:
        base_rate: the job's learning_rate, or the base model's default.
        config: the job's options.
        sequences: all packed sequences of the step, whichever learner has them.
        reward_std_devs: reward_std_dev of the model's earlier jobs, oldest first.
    """
    rate = base_rate
    if power := config.num_trajectories_learning_rate_multiplier_power:
        rate *= mean_completions(sequences) ** power
    if config.scale_learning_rate_by_reward_std_dev:
        rate *= reward_spread_trend(reward_std_devs)
    return rate


def mean_completions(sequences: Sequence[PackedSequence]) -> float:
    """Return the mean number of completions per packed sequence of a step; each counts at least 1."""
    return fmean(max(sequence.num_completions, 1) for sequence in sequences)


def reward_spread_trend(reward_std_devs: Sequence[float]) -> float:
    """Return the fraction of its initial spread that the reward has kept, by a line fitted to its history.

    With the least-squares line m k + b through the points (k, std dev of job k), k = 0 .. last, that is
    (m last + b) / b, but at least 0. It is 1 without a trend: fewer than two points, or b <= 0 up to rounding.
    """
    if len(reward_std_devs) < 2:
        return 1.0
    slope, intercept = linear_regression(range(len(reward_std_devs)), reward_std_devs)
    if intercept <= ROUNDING * max(reward_std_devs):
        return 1.0
    return max((slope * (len(reward_std_devs) - 1) + intercept) / intercept, 0.0)
