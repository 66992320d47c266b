"""The spread of a job's rewards: what a mean doesn't show, like a policy that is sometimes right and mostly not."""

from __future__ import annotations

import math
from collections.abc import Sequence

QUANTILES = {
    "reward/min": 0.0,
    "reward/quantile_10": 0.1,
    "reward/median": 0.5,
    "reward/quantile_90": 0.9,
    "reward/max": 1.0,
}
"""Metrics of a version, and the shares of its trajectories whose rewards are below them."""


def reward_spread(rewards: Sequence[float]) -> dict[str, float]:
    """Return the quantiles of the rewards of all trajectories of a job; empty without any.

    Between two rewards, a quantile is interpolated linearly: that of share q lies at index q * (n - 1) of the n sorted
    rewards (definition 7 of Hyndman and Fan, https://doi.org/10.1080/00031305.1996.10473566).
    """
    ordered = sorted(rewards)
    return {name: _at(ordered, share * (len(ordered) - 1)) for name, share in QUANTILES.items()} if ordered else {}


def _at(ordered: Sequence[float], position: float) -> float:
    lower = math.floor(position)
    below, above, share = ordered[lower], ordered[math.ceil(position)], position - lower
    return below if below == above else below * (1 - share) + above * share  # a difference could overflow
