"""Reward collapse: the newest rewards of a model are far below the best that it had, beyond its noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import pi, sqrt
from statistics import fmean

MEAN_OF_DIFFERENCES = 2 / sqrt(pi)
"""The mean of |x - y| for two independent normal values of standard deviation 1."""


@dataclass(frozen=True)
class Collapse:
    """Means of `window` neighbouring versions."""

    best: float
    best_index: int
    """Of the last value of the best window."""
    recent: float
    noise: float
    """Standard deviation of one value."""


def find_collapse(rewards: Sequence[float], window: int, drop: float, noise: float) -> Collapse | None:
    """Return the collapse at the end of these mean rewards, one per version and the oldest first, or None.

    With m_i the mean of the `window` values that end at i, the fall is best - recent, where recent is the last m_i and
    best the largest one whose window doesn't overlap the last. It is a collapse if both hold:

        best - recent > drop * |best|
        best - recent > noise * s * sqrt(2 / window)

    s estimates the standard deviation of one version's reward around its trend: mean |r_i - r_(i-1)| / 1.128, which a
    trend or one jump changes little. sqrt(2 / window) * s is the standard error of the difference of two means. The
    best of many means lies above their average by chance, so `noise` has to be large: at 6, pure noise rarely raises an
    alarm in 1,000 versions.
    """
    if len(rewards) < 2 * window:
        return None
    total = sum(rewards[:window])
    means = [total / window]
    for index in range(window, len(rewards)):
        total += rewards[index] - rewards[index - window]
        means.append(total / window)
    recent, earlier = means[-1], means[:-window]
    best = max(earlier)
    spread = fmean(abs(b - a) for a, b in pairwise(rewards)) / MEAN_OF_DIFFERENCES
    fall = best - recent
    if fall <= drop * abs(best) or fall <= noise * spread * sqrt(2 / window):
        return None
    # The latest of equal ones: what came after it is what went wrong.
    index = len(earlier) - 1 - earlier[::-1].index(best)
    return Collapse(best, index + window - 1, recent, spread)
