"""Which metrics of a version are charted, those that follow from its job's times, and where alarm bands begin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tandem.cluster.config import BaseModelConfig
from tandem.rl.probe import tolerance_for
from tandem.rl.reports.reward_spread import QUANTILES
from tandem.serve.store.curves import VersionPoint

CHARTED = (
    "reward",
    "reward_std_dev",
    *QUANTILES,
    "loss/train",
    "loss/entropy",
    "loss/kl_policy_ref",
    "loss/clip_fraction",
    "loss/ratio_mean",
    "loss/probs_corr",
    "loss/grad_norm",
    "loss/learning_rate",
    "policy_lag/mean",
    "policy_lag/max",
    "logprobs/sampled_current_abs_diff_mean",
    "logprobs/sampled_current_abs_diff_max",
    "logprobs/engine_learner_abs_diff_mean",
    "logprobs/engine_learner_abs_diff_max",
    "data/step_num_tokens_trained",
    "data/step_num_trajectories",
    "data/step_num_trajectories_trained",
    "sft/loss",
    "sft/learning_rate",
    "sft/grad_norm",
    "sft/num_trainable_tokens",
    "job/seconds",
    "job/queued_seconds",
    "job/gradient_steps",
)
"""The metrics of an answer whose request names none. A version lacks those that its kind of job doesn't have."""
OF_JOB = ("job/seconds", "job/queued_seconds", "job/gradient_steps")
"""Metrics that aren't stored with the version, but follow from its job's row."""


def metrics_of(point: VersionPoint) -> dict[str, float]:
    """Return all metrics of a version. Seconds are those from the job's first start to the version."""
    metrics = dict(point.metrics)
    if point.job_started_at is not None:
        metrics["job/seconds"] = (point.created_at - point.job_started_at).total_seconds()
    if point.job_started_at is not None and point.job_created_at is not None:
        metrics["job/queued_seconds"] = (point.job_started_at - point.job_created_at).total_seconds()
    if point.num_gradient_steps is not None:
        metrics["job/gradient_steps"] = float(point.num_gradient_steps)
    return metrics


def names_in(all_metrics: Iterable[Mapping[str, float]]) -> list[str]:
    """Return the names of all metrics, those that are charted first and in their order, the others by name."""
    found = {name for metrics in all_metrics for name in metrics}
    return [name for name in CHARTED if name in found] + sorted(found - set(CHARTED))


def alarm_limits(base: BaseModelConfig) -> dict[str, float]:
    """Return the values above which the service itself takes sampler and learner for different, in nats.

    The first two are those of the probe (`cluster.jobs.engine_agreement`), the last is that of scoring
    (`cluster.logprobs.pool`).
    """
    tolerance = tolerance_for(base.least_precise_dtype)
    return {
        "logprobs/sampled_current_abs_diff_mean": tolerance.mean,
        "logprobs/sampled_current_abs_diff_max": tolerance.max,
        "logprobs/engine_learner_abs_diff_max": base.logprob_tolerance,
    }
