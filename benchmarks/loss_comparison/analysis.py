"""Statistics: numbers of one run, means with confidence intervals over seeds, and differences with p-values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

from scipy import stats

LEVEL = 0.95
FINAL_EVALUATIONS = 2


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its confidence interval, Student's t over n seeds; NaN for fewer than two values."""

    mean: float
    half_width: float
    n: int


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Return mean +- t(n - 1, (1 + level) / 2) s / sqrt(n), s with n - 1 in its denominator."""
    n = len(values)
    if n < 2 or any(math.isnan(value) for value in values):
        return Interval(fmean(values) if values else math.nan, math.nan, n)
    quantile = stats.t.ppf((1 + level) / 2, n - 1)
    return Interval(fmean(values), float(quantile) * stdev(values) / math.sqrt(n), n)


def area_under_curve(versions: Sequence[int], rewards: Sequence[float]) -> float:
    """Return the area by trapezoids, divided by the span of the versions: the mean reward during the run."""
    pairs = list(zip(versions, rewards, strict=True))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(pairs))
    return area / (versions[-1] - versions[0])


def steps_to_threshold(versions: Sequence[int], rewards: Sequence[float], threshold: float) -> int | None:
    """Return the first evaluated version at or above the threshold; None if the run is censored at its end."""
    return next((v for v, reward in zip(versions, rewards, strict=True) if reward >= threshold), None)


@dataclass(frozen=True)
class Outcome:
    """The numbers of one run."""

    final_reward: float
    """Mean of the last two evaluations."""
    area: float
    steps: float
    """To the threshold; the number of versions if it wasn't reached."""
    is_censored: bool
    kl_base: float
    """Of the last version, like `entropy`."""
    entropy: float
    grad_norm: float
    """Before clipping; mean over the gradient steps of all jobs."""
    clip_fraction: float
    """Share of trained tokens outside the clip range. NaN for the peer."""
    num_steps: float
    """Gradient steps per version."""
    cpu_s: float
    """Of sampling and training, without the evaluations."""


def outcome(result: Mapping[str, Any], threshold: float) -> Outcome:
    evaluated = [record for record in result["curve"] if "eval" in record]
    jobs = [record for record in result["curve"] if record["version"] > 0]
    versions = [record["version"] for record in evaluated]
    rewards = [record["eval"]["reward"] for record in evaluated]
    steps = steps_to_threshold(versions, rewards, threshold)
    return Outcome(
        final_reward=fmean(rewards[-FINAL_EVALUATIONS:]),
        area=area_under_curve(versions, rewards),
        steps=float(versions[-1] if steps is None else steps),
        is_censored=steps is None,
        kl_base=evaluated[-1]["eval"]["kl_base"],
        entropy=evaluated[-1]["eval"]["entropy"],
        grad_norm=_step_mean(jobs, "loss/grad_norm"),
        clip_fraction=_step_mean(jobs, "loss/clip_fraction"),
        num_steps=fmean(record["num_steps"] for record in jobs),
        cpu_s=result["cpu_seconds"],
    )


def _step_mean(jobs: Sequence[Mapping[str, Any]], metric: str) -> float:
    known = [(record[metric], record["num_steps"]) for record in jobs if metric in record]
    steps = sum(n for _, n in known)
    return sum(value * n for value, n in known) / steps if steps else math.nan


@dataclass(frozen=True)
class Difference:
    """A configuration minus the baseline, seed by seed: same tasks, same evaluation, same first rollouts."""

    interval: Interval
    p_value: float
    """Of the paired t test that the mean difference is 0."""
    adjusted_p_value: float = math.nan
    """Adjusted by Holm's method over the comparisons of a table."""


def paired_difference(own: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Compare over the seeds that both have."""
    seeds = sorted(own.keys() & baseline.keys())
    differences = [own[seed] - baseline[seed] for seed in seeds]
    interval = t_interval(differences)
    if len(differences) < 2:
        return Difference(interval, math.nan)
    if len(set(differences)) == 1:  # no spread to compare with
        return Difference(interval, 1.0 if differences[0] == 0 else math.nan)
    return Difference(interval, float(stats.ttest_1samp(differences, 0.0).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm (1979, A simple sequentially rejective multiple test procedure); NaN stay NaN.

    The k-th smallest of m is multiplied by m - k + 1. It is at least the adjusted value of the one before, at most 1.
    """
    order = sorted((index for index, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted, highest = list(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
